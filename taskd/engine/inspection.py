"""Reads the frames and variables of a suspended coroutine, by Trio's own means.

One thread runs all coroutines, so an execution's is suspended whenever another one looks
at it. Its frames can be read without stopping anything, and reading costs only the reader.
"""

from __future__ import annotations

from collections.abc import Coroutine, Generator
from pathlib import PurePath
from types import CodeType, FrameType, TracebackType
from typing import Any

import trio

from taskd.domain.model import Frame

_PACKAGE = __name__.partition(".")[0]

VISIBLE_VARIABLES = frozenset(
    {
        "address",
        "attempt",
        "host",
        "phase",
        "port",
        "received_bytes",
        "scheme",
        "sent_bytes",
        "status",
        "timeout_ms",
    }
)
"""Names of local variables that an inspection may show. None of them ever holds a secret,
a header or another app's data."""


class CountedCoroutine(Coroutine[Any, Any, None]):
    """A coroutine that counts how often it was resumed.

    It counts in `send` and `throw`, which Trio calls for every step of a task,
    so only executions pay for the counting (an `Instrument` would be called for
    every step of every task). It shows the attributes of a native coroutine that
    `trio.lowlevel.Task.iter_await_frames` walks along.
    """

    __slots__ = ("__weakref__", "_coroutine", "rounds")

    def __init__(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self._coroutine: Any = coroutine
        self.rounds = 0

    def send(self, value: Any) -> Any:  # noqa: ANN401 - whatever Trio sends and gets
        """Resume it with a value."""
        self.rounds += 1
        return self._coroutine.send(value)

    def throw(
        self,
        typ: Any,  # noqa: ANN401 - the signature of Coroutine.throw
        val: BaseException | object | None = None,
        tb: TracebackType | None = None,
    ) -> Any:  # noqa: ANN401 - as above
        """Resume it with an exception."""
        self.rounds += 1
        if val is None and tb is None:
            return self._coroutine.throw(typ)
        return self._coroutine.throw(typ, val, tb)

    def close(self) -> None:
        """Unwind it."""
        self._coroutine.close()

    def __await__(self) -> Generator[Any, Any, None]:
        generator: Generator[Any, Any, None] = self._coroutine.__await__()
        return generator

    @property
    def cr_frame(self) -> FrameType | None:
        """As a native coroutine's."""
        frame: FrameType | None = self._coroutine.cr_frame
        return frame

    @property
    def cr_await(self) -> object:
        """As a native coroutine's."""
        awaited: object = self._coroutine.cr_await
        return awaited

    @property
    def cr_code(self) -> CodeType:
        """As a native coroutine's."""
        code: CodeType = self._coroutine.cr_code
        return code

    @property
    def cr_running(self) -> bool:
        """As a native coroutine's."""
        return bool(self._coroutine.cr_running)


def frames_of(task: trio.lowlevel.Task) -> list[tuple[FrameType, Frame]]:
    """A suspended task's frames, innermost first, each beside its description."""
    frames = [(frame, _describe(frame, line)) for frame, line in task.iter_await_frames()]
    frames.reverse()
    return frames


def executed_frame(frames: list[tuple[FrameType, Frame]]) -> tuple[FrameType, Frame] | None:
    """The innermost frame of this package's own code, if there is one."""
    for frame, description in frames:
        if _module(frame).partition(".")[0] == _PACKAGE:
            return frame, description
    return None


def outside_of(frames: list[tuple[FrameType, Frame]], module: str) -> list[tuple[FrameType, Frame]]:
    """Return the frames that called into a module, without its own and those that it called."""
    own = [at for at, (frame, _) in enumerate(frames) if _module(frame) == module]
    return frames[own[-1] + 1 :] if own else frames


def visible_variables(
    frame: FrameType, hidden: frozenset[str] = frozenset()
) -> dict[str, str | int | float | bool | None]:
    """Return the frame's allow-listed locals except the hidden ones: scalars as they are,
    bytes as their length, anything else left out."""
    shown: dict[str, str | int | float | bool | None] = {}
    for name, value in frame.f_locals.items():
        if name not in VISIBLE_VARIABLES or name in hidden:
            continue
        if isinstance(value, bytes | bytearray | memoryview):
            shown[name] = len(value)
        elif isinstance(value, str):
            shown[name] = str(value)
        elif value is None or isinstance(value, int | float):
            shown[name] = value
    return shown


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _describe(frame: FrameType, line: int) -> Frame:
    # Built from the module's name, so that no path of the machine shows.
    *packages, last = _module(frame).split(".")
    name = PurePath(frame.f_code.co_filename).name
    folders = [*packages, last] if name == "__init__.py" else packages
    return Frame(file="/".join([*folders, name]), line=line, function=frame.f_code.co_name)

"""Reads the lines of a file of tasks in batches: any number of them, in constant memory."""

from __future__ import annotations

import json
import os
import select
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import IO

from taskd.domain.record import record
from taskd.runtime.json_depth import MAX_DEPTH, NestedTooDeep, refuse_deep
from taskd.runtime.text import MARK, unmarked

MAX_LINE = 1_048_576
"""Bytes; a longer line is refused unread."""

BATCH_LINES = 200
BATCH_BYTES = 256 * 1024
"""A batch is handed on once it has so many lines or bytes, or the input pauses."""

REMEMBERED = 100_000
"""How many different taskNos are remembered, to find those that come again in the file."""

_LONGEST_TASK_NO = 64
"""The daemon takes no longer taskNo, so none is remembered."""

QUIET_S = 0.2
"""After a pause of this length, the lines so far are handed on."""

_CHUNK = 65_536
_WHITE_SPACE = b" \t\r"

# Only whether a line is JSON, and its taskNo, matters here. So numbers are not converted:
# `len` stands for a cheap parser.
_decode = json.JSONDecoder(parse_int=len, parse_float=len).decode


@record
class Line:
    """A line that holds a JSON object. The daemon may still refuse it."""

    number: int
    """Counted from 1."""
    text: bytes


@record
class RefusedLine:
    """A line that is no task, and why."""

    number: int
    reason: str


@dataclass(slots=True)
class Batch:
    """Consecutive lines of the file."""

    lines: list[Line] = field(default_factory=list)
    refused: list[RefusedLine] = field(default_factory=list)
    size: int = 0
    """Bytes of the file that these lines take, empty lines included."""

    @property
    def full(self) -> bool:
        """Whether it has enough lines or bytes to be handed on."""
        return len(self.lines) + len(self.refused) >= BATCH_LINES or self.size >= BATCH_BYTES


def chunks(stream: IO[bytes]) -> Iterator[bytes]:
    """The bytes of a file or a pipe; an empty chunk each time nothing came for `QUIET_S`."""
    descriptor = stream.fileno()
    while True:
        if not select.select([descriptor], [], [], QUIET_S)[0]:
            yield b""
            continue
        chunk = os.read(descriptor, _CHUNK)
        if not chunk:
            return
        yield chunk


class LineReader:
    """Cuts chunks into lines and puts them into batches.

    A line is refused if it is no JSON object, is too long, or has the taskNo of an earlier
    line, as far as `REMEMBERED` reaches. Other lines are not affected. Empty lines are
    skipped.
    """

    def __init__(self) -> None:
        self.lines = 0
        """Lines so far, empty ones included."""
        self._seen: OrderedDict[str, int] = OrderedDict()
        self._batch = Batch()
        self._rest = bytearray()
        self._too_long = False

    def batches(self, source: Iterable[bytes]) -> Iterator[Batch]:
        """The batches of a file; a batch may be empty after a pause.

        Raises:
            NotText: the file is UTF-16 or UTF-32; no batch was handed on.
        """
        for chunk in unmarked(source):
            if not chunk:
                yield self._hand_on()
                continue
            *complete, rest = chunk.split(b"\n")
            if complete:
                complete[0] = bytes(self._rest) + complete[0]
                self._rest.clear()
            for raw in complete:
                self._take(raw, len(raw) + 1)
                if self._batch.full:
                    yield self._hand_on()
            self._rest += rest
            if len(self._rest) > MAX_LINE:
                self._too_long = True
                self._batch.size += len(self._rest)
                self._rest.clear()
        if self._rest or self._too_long:
            self._take(bytes(self._rest), len(self._rest))
        yield self._hand_on()

    def _hand_on(self) -> Batch:
        batch, self._batch = self._batch, Batch()
        return batch

    def _take(self, raw: bytes, size: int) -> None:
        self.lines += 1
        self._batch.size += size
        # Files that were joined may each begin with a byte order mark.
        text = raw.removeprefix(MARK).strip(_WHITE_SPACE)
        if self._too_long or len(text) > MAX_LINE:
            self._too_long = False
            self._refuse(f"is longer than {MAX_LINE} bytes")
        elif text:
            try:
                refuse_deep(text, MAX_DEPTH)
                value = _decode(text.decode())
            except UnicodeDecodeError as error:
                self._refuse(f"is not UTF-8 at byte {error.start}")
            except json.JSONDecodeError as error:
                problem = error.msg.removesuffix(" at")
                self._refuse(f"is not JSON: {problem} at character {error.pos}")
            except NestedTooDeep:
                self._refuse("is nested too deep")
            else:
                self._judge(value, text)

    def _judge(self, value: object, text: bytes) -> None:
        if type(value) is not dict:
            self._refuse("is no JSON object")
            return
        task_no = value.get("taskNo")
        if isinstance(task_no, str) and len(task_no) <= _LONGEST_TASK_NO:
            if (earlier := self._seen.setdefault(task_no, self.lines)) != self.lines:
                self._refuse(f"has the taskNo of line {earlier}")
                return
            if len(self._seen) > REMEMBERED:
                self._seen.popitem(last=False)
        self._batch.lines.append(Line(self.lines, text))

    def _refuse(self, reason: str) -> None:
        self._batch.refused.append(RefusedLine(self.lines, reason))

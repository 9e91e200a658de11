"""The submitter's process as the harness sees it: it is given orders, and answers."""

from __future__ import annotations

import functools
import json
import threading
from dataclasses import dataclass
from typing import Any

from tools.bench.load import CONTENT
from tools.bench.peers.processes import Program

_PATIENCE_S = 20


@dataclass(frozen=True)
class Answer:
    """What the submitter said of an order."""

    began_s: float
    ended_s: float
    cpu_s: float
    acknowledged: list[int]
    sent_us: dict[int, int]
    errors: list[str]


class Submitter:
    """The process that submits."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.can_batch: bool = self._read()["batch"]

    def _read(self) -> dict[str, Any]:
        line = self.program.stdout.readline()
        if not line:
            raise RuntimeError(f"the submitter ended: {self.program.tail()}")
        told: dict[str, Any] = json.loads(line)
        return told

    def order(self, mode: str, first: int, count: int, within_s: float, **more: float) -> Answer:
        """Have so many tasks submitted, numbered from ``first``; wait until it is done."""
        order = {"mode": mode, "first": first, "count": count, "content": CONTENT}
        # A client that waits for ever for a broker that is gone must not hold us up.
        watchdog = threading.Timer(within_s + _PATIENCE_S, self.program.kill)
        watchdog.start()
        try:
            self.program.stdin.write(json.dumps({**order, "within_s": within_s, **more}) + "\n")
            self.program.stdin.flush()
            told = self._read()
        finally:
            watchdog.cancel()
        return Answer(**{**told, "sent_us": dict(told["sent_us"])})


class BackgroundOrder:
    """An order under way in a thread."""

    def __init__(self, carry_out: functools.partial[Answer]) -> None:
        self._answer: Answer | None = None
        self._error: BaseException | None = None
        self._carry_out = carry_out
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._answer = self._carry_out()
        except BaseException as error:  # noqa: BLE001 - raised again where it is asked for
            self._error = error

    @property
    def done(self) -> bool:
        """Whether it has ended, one way or the other."""
        return not self._thread.is_alive()

    def answer(self, within_s: float) -> Answer:
        """Wait for its answer."""
        self._thread.join(within_s)
        if self._error is not None:
            raise self._error
        if self._answer is None:
            raise TimeoutError("the submitter did not come to an end")
        return self._answer

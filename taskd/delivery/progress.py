"""How far a running attempt has come: written by the transport, read by all."""

from __future__ import annotations

import time
from dataclasses import field

from taskd.domain.model import Phase
from taskd.domain.record import record


@record
class Response:
    """A receiver's answer, as far as it was read: its head is there."""

    status: int
    body: bytes = field(repr=False)
    """The whole of it, or with a ``problem`` its beginning."""
    retry_after: str | None
    """The Retry-After header, as it came."""
    location: str | None = None
    """The Location header, as it came."""
    encoding: str | None = None
    """The codings of Content-Encoding and Transfer-Encoding; None if they change nothing."""
    problem: str | None = None
    """What is wrong with the answer beside its status, as the end of a sentence; None
    if all of it was read."""


class Progress:
    """The live record of one attempt.

    Attributes:
        phase: where the attempt is now; None before the first phase and after
            `finish`.
        last: the phase it is in or was in last; None before the first.
        sent: whether a byte of the request may have left. Never taken back.
        address: ``IP:port`` that was connected to.
        via: the proxy that the way leads through, for people; None without one.
        answer: what had been read of an answer, its head at least, when the attempt was
            cut off by its deadline or from outside.
        timings_ms: time spent in each phase so far, in milliseconds.
    """

    __slots__ = ("_entered", "address", "answer", "last", "phase", "sent", "timings_ms", "via")

    def __init__(self) -> None:
        self.phase: Phase | None = None
        self.last: Phase | None = None
        self.sent = False
        self.address: str | None = None
        self.via: str | None = None
        self.answer: Response | None = None
        self.timings_ms: dict[Phase, float] = {}
        self._entered = 0.0

    def enter(self, phase: Phase) -> None:
        """Note that the attempt is in this phase from now on. Entering `SENDING`
        sets `sent`: from there nobody can tell how much has left."""
        self._account()
        self.phase = self.last = phase
        if phase is Phase.SENDING:
            self.sent = True

    def finish(self) -> None:
        """Note that the attempt has ended."""
        self._account()
        self.phase = None

    def _account(self) -> None:
        now = time.perf_counter()  # a third of what Trio's time costs
        if self.phase is not None:
            spent = (now - self._entered) * 1000
            self.timings_ms[self.phase] = self.timings_ms.get(self.phase, 0.0) + spent
        self._entered = now

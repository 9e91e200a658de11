"""Whether each nsqd brings what it was given. No I/O, no waiting.

::

    confirmed ──┬─ came here, or at another node ───────────────► nothing to see
                └─ found by a look into the Store, while this ──► a sign
                   node was ready all along and nothing came

An nsqd may take wake-ups and not bring them (its topic or channel is paused, they are
held up, or lost), or let a node consume and not publish (its disk is full, or its secret
is for consuming only). Nothing breaks then, and each task is a second late. Signs tell:
`SIGNS` of them without a timely message in between are trouble. A message that comes in
time, from whichever node, takes all signs away, since others that were not seen here may
be in flight to a node that hangs or has died. Trouble is over after a stretch without a
sign, once messages come again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from taskd.domain.model import DueTask
from taskd.queues.nsq.target import Address
from taskd.runtime.logs import log_event

logger = logging.getLogger("taskd.queues.nsq")

LATE_S = 0.9
"""A message that was under way for longer came too late: nodes look for its task."""

SIGNS = 3
QUIET_S = 10.0
"""A stretch without a sign that ends trouble."""

REST_S = 5.0
"""Nothing is published to an nsqd for so long after it has refused: each refusal costs
the connection, and what is in flight on it comes only when its time is over."""

PROBE_S = 10.0
"""How often something is published to an nsqd in trouble where others are well."""

FORGOTTEN_S = 600.0
"""After this long without a sign of anything, nothing is known any more."""

_UNCONFIRMED = 2
"""Times in a row that an nsqd leaves a publish unconfirmed, to be told as refusing."""

_REMEMBERED = 2_000
_REMEMBERED_S = 5.0
"""A look into the store finds what did not come long before."""

_MS_PER_S = 1000


@dataclass(slots=True)
class _Silence:
    """What speaks against an nsqd that takes wake-ups."""

    signs: int = 0
    last: float = 0.0
    told: bool = False
    came: bool = False
    """Whether messages came since the last sign."""


@dataclass(slots=True)
class _Refusal:
    """Why an nsqd takes no wake-ups."""

    reason: str
    times: int = 0
    last: float = 0.0
    confirmed: bool = False
    """Whether it took some since."""

    @property
    def told(self) -> bool:
        return self.times >= _UNCONFIRMED


class Watch:
    """See the module. Times are Trio's; ``now_ms`` is the Store's.

    Args:
        topic, channel: as messages name them.
    """

    def __init__(self, *, topic: str, channel: str) -> None:
        self._topic = topic
        self._channel = channel
        self._sent: dict[tuple[int, int], tuple[Address, float]] = {}
        self._came_at: dict[Address, float] = {}
        self._silent: dict[Address, _Silence] = {}
        self._refusals: dict[Address, _Refusal] = {}
        self._probed_at = float("-inf")

    @property
    def easy(self) -> bool:
        """Whether nothing speaks against any nsqd."""
        return not self._silent and not self._refusals

    def confirmed(self, address: Address, tasks: Sequence[DueTask], *, began: float) -> None:
        """An nsqd has confirmed these, whose publishing began then. Of very many it
        remembers some."""
        for task in tasks[: _REMEMBERED - len(self._sent)]:
            self._sent[task.task_id, task.due_at] = (address, began)
        refusal = self._refusals.get(address)
        if refusal is not None and not refusal.told:
            del self._refusals[address]
        elif refusal is not None:
            refusal.confirmed = True

    def refused(self, address: Address, reason: str, *, answered: bool, now: float) -> None:
        """An nsqd did not take what was published.

        Args:
            address: the nsqd's.
            reason: why, as far as is known.
            answered: whether it said so; one that says nothing may just have gone.
            now: the time.
        """
        refusal = self._refusals.setdefault(address, _Refusal(reason))
        told = refusal.told
        refusal.times += _UNCONFIRMED if answered else 1
        refusal.reason, refusal.last, refusal.confirmed = reason, now, False
        if refusal.told and not told:
            log_event(
                logger,
                logging.WARNING,
                "nsqd takes no wake-ups, what is due is worked on where it is known",
                nsqd=str(address),
                topic=self._topic,
                reason=reason,
            )

    def arrived(self, address: Address, task: DueTask, *, now: float, now_ms: int) -> None:
        """A message has come."""
        sent = self._sent.pop((task.task_id, task.due_at), None)
        late = now_ms - task.due_at > LATE_S * _MS_PER_S if sent is None else now - sent[1] > LATE_S
        if not late:
            self._came_at[address] = now
        silence = self._silent.get(address)
        if silence is None:
            return
        silence.came = True
        if late and silence.told:
            silence.last = now
        elif not late and not silence.told:
            del self._silent[address]

    def found(
        self,
        tasks: Iterable[DueTask],
        *,
        now: float,
        ready: Callable[[Address, float], bool],
        elsewhere: Callable[[int], bool],
    ) -> None:
        """Due tasks were found in the Store.

        Args:
            tasks: these.
            now: the time.
            ready: whether this node could have been brought messages of an nsqd ever
                since then.
            elsewhere: whether messages of an app go to others, since it is at its limit
                here.
        """
        if not self._sent:
            return
        for task in tasks:
            key = (task.task_id, task.due_at)
            address, at = self._sent.get(key, (None, now))
            if address is None or now - at <= LATE_S:
                continue
            del self._sent[key]
            seen = self._came_at.get(address, float("-inf")) >= at
            if not seen and not elsewhere(task.app_id) and ready(address, at):
                self._sign(address, now)

    def tend(self, *, now: float) -> None:
        """Forget what is old, and see trouble end. To be called now and then."""
        while self._sent:
            key, (_, at) = next(iter(self._sent.items()))
            if now - at < _REMEMBERED_S:
                break
            del self._sent[key]
        for address, silence in list(self._silent.items()):
            quiet = now - silence.last
            if quiet > (QUIET_S if silence.came else FORGOTTEN_S):
                del self._silent[address]
                if silence.told:
                    self._tell_end(address, "nsqd brings wake-ups again")
        for address, refusal in list(self._refusals.items()):
            quiet = now - refusal.last
            if quiet > (QUIET_S if refusal.confirmed else FORGOTTEN_S):
                del self._refusals[address]
                if refusal.told:
                    self._tell_end(address, "nsqd takes wake-ups again")

    def doubts(self, address: Address) -> bool:
        """Whether what an nsqd confirms is not to be relied on."""
        silence, refusal = self._silent.get(address), self._refusals.get(address)
        return (silence is not None and silence.told) or (refusal is not None and refusal.told)

    def rests(self, address: Address, *, now: float) -> bool:
        """Whether nothing is to be published to an nsqd for the moment."""
        refusal = self._refusals.get(address)
        if refusal is None or not refusal.told or refusal.confirmed:
            return False
        return now - refusal.last < REST_S

    def probes(self, *, now: float) -> bool:
        """Whether it is time to try one in trouble, although others are well."""
        if now - self._probed_at < PROBE_S:
            return False
        self._probed_at = now
        return True

    def degraded(self) -> list[str]:
        """What is wrong, with what to look at."""
        silent = [
            f"nsqd {address} takes wake-ups of topic {self._topic} and does not bring them to "
            f"channel {self._channel} in time (is one of them paused? nsqadmin and its /stats "
            "show it)"
            for address, silence in self._silent.items()
            if silence.told
        ]
        refusing = [
            f"nsqd {address} takes no wake-ups for topic {self._topic} ({refusal.reason}: look at "
            "its disk, its log, and what the secret allows)"
            for address, refusal in self._refusals.items()
            if refusal.told
        ]
        return silent + refusing

    def forget(self, address: Address) -> None:
        """The connection has ended: what it did not bring has another reason."""
        if address in self._silent and not self._silent[address].told:
            del self._silent[address]

    def gone(self, address: Address) -> None:
        """The nsqd is not used any more."""
        self._silent.pop(address, None)
        self._refusals.pop(address, None)

    def _sign(self, address: Address, now: float) -> None:
        silence = self._silent.setdefault(address, _Silence())
        silence.signs += 1
        silence.last = now
        silence.came = False
        if silence.signs >= SIGNS and not silence.told:
            silence.told = True
            log_event(
                logger,
                logging.WARNING,
                "nsqd takes wake-ups and does not bring them in time: is the topic or the channel "
                "paused? Due tasks are looked for in the store",
                nsqd=str(address),
                topic=self._topic,
                channel=self._channel,
            )

    def _tell_end(self, address: Address, words: str) -> None:
        log_event(logger, logging.INFO, words, nsqd=str(address), topic=self._topic)

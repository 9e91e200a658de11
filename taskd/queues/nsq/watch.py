"""Tells whether each nsqd delivers the wake-ups that it confirmed. No I/O, no waiting.

::

    confirmed ──┬─ came here, or at another node ───────────────► nothing to see
                └─ found by a sweep of the Store, while this ───► a sign
                   node was ready all along and nothing came

An nsqd may take wake-ups and not deliver them (its topic or channel is paused, they are
held up, or lost), or let a node consume and not publish (its disk is full, or its secret
is for consuming only). Nothing breaks then, but each task is a second late.

An nsqd is degraded after `SIGNS` signs without a timely message in between. A timely
message, whichever node published it, takes all signs away: the missing ones may be in
flight to a node that hangs or has died. A degraded nsqd works again after `QUIET_S`
without a sign, once messages come again.
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
"""A message that was under way for longer came too late: sweeps find its task by then."""

SIGNS = 3
QUIET_S = 10.0
"""An nsqd works again after this long without a sign, once messages come again."""

REST_S = 5.0
"""For this long after a refusal, nothing is published to an nsqd: each refusal costs the
connection, and messages in flight on it come again only after their timeout."""

PROBE_S = 10.0
"""How often something is published to a degraded nsqd while others work."""

FORGOTTEN_S = 600.0
"""An nsqd counts as working after this long without a sign even if no message came."""

_UNCONFIRMED = 2
"""Publishes in a row that an nsqd has to leave unconfirmed before it counts as refusing."""

_REMEMBERED = 2_000
_REMEMBERED_S = 5.0
"""How many confirmed wake-ups are remembered, and for how long: a sweep finds the task of
a lost one much sooner."""

_MS_PER_S = 1000


@dataclass(slots=True)
class _Silence:
    """The signs that an nsqd takes wake-ups and does not deliver them."""

    signs: int = 0
    last: float = 0.0
    """When the last sign was, in Trio's time."""
    told: bool = False
    """Whether it is degraded, and the log says so."""
    came: bool = False
    """Whether messages came since the last sign."""


@dataclass(slots=True)
class _Refusal:
    """Why an nsqd does not take wake-ups."""

    reason: str
    times: int = 0
    last: float = 0.0
    """When the last refusal was, in Trio's time."""
    confirmed: bool = False
    """Whether it has taken wake-ups since."""

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
        """Whether there are no signs and no refusals of any nsqd."""
        return not self._silent and not self._refusals

    def confirmed(self, address: Address, tasks: Sequence[DueTask], *, began: float) -> None:
        """Note that an nsqd has confirmed wake-ups. Remembers `_REMEMBERED` at most.

        Args:
            address: the nsqd's.
            tasks: those of the wake-ups.
            began: when their publishing began.
        """
        for task in tasks[: _REMEMBERED - len(self._sent)]:
            self._sent[task.task_id, task.due_at] = (address, began)
        refusal = self._refusals.get(address)
        if refusal is not None and not refusal.told:
            del self._refusals[address]
        elif refusal is not None:
            refusal.confirmed = True

    def refused(self, address: Address, reason: str, *, answered: bool, now: float) -> None:
        """Note that an nsqd did not take a publish.

        Args:
            address: the nsqd's.
            reason: why, as far as is known.
            answered: whether nsqd answered an error; without an answer, it may only have
                ended or lost its connection.
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
        """Note that a message has come."""
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
        """Note that a sweep found due tasks in the Store.

        Args:
            tasks: these.
            now: the time.
            ready: returns whether an nsqd could have delivered messages to this node at
                any moment since the given time.
            elsewhere: returns whether an app's messages go to other nodes, since it is at
                its limit here.
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
        """Forget what is old, and note which nsqd work again. To be called now and then."""
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
        """Whether an nsqd is degraded: its confirmations can't be relied on."""
        silence, refusal = self._silent.get(address), self._refusals.get(address)
        return (silence is not None and silence.told) or (refusal is not None and refusal.told)

    def rests(self, address: Address, *, now: float) -> bool:
        """Whether to publish nothing to an nsqd for now: see `REST_S`."""
        refusal = self._refusals.get(address)
        if refusal is None or not refusal.told or refusal.confirmed:
            return False
        return now - refusal.last < REST_S

    def probes(self, *, now: float) -> bool:
        """Whether to publish to a degraded nsqd now, although others work. True once in
        `PROBE_S`."""
        if now - self._probed_at < PROBE_S:
            return False
        self._probed_at = now
        return True

    def degraded(self) -> list[str]:
        """A sentence for each degraded nsqd, with what to look at."""
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
        """Drop an nsqd's signs, since its connection has ended: that is why messages did
        not come. A degraded nsqd stays so."""
        if address in self._silent and not self._silent[address].told:
            del self._silent[address]

    def gone(self, address: Address) -> None:
        """Drop all that is known of an nsqd: it is not used any more."""
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

"""Messages that a node has received and not answered yet. No I/O, no waiting.

::

    message ─┬─ no wake-up ─────────────────────────────► FIN
             ├─ its wake-up is done, or here already ───► FIN
             ├─ not due yet ── kept until it is, or REQ until then
             ├─ its app may begin nothing here now ─────► FIN, its wake-up stays
             ├─ its lane is full ───────────────────────► REQ
             └─ lane ─┬─ taken ─┬─ the Store answered ──► FIN
                      │         ├─ it can't be asked ───► REQ
                      │         └─ it takes long ───────► TOUCH
                      └─ not taken for long ────────────► REQ, its wake-up stays

A message that is sent back leaves its wake-up in the lane: this node may still be the
first to have room. The Store decides which node gets the task.

Messages of an app that may begin nothing here are finished, not sent back: they would
come again and again, ahead of other apps' messages. Another node, where the app may begin
tasks, finds them by its sweep, as soon as it would get a message that was sent back.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import count
from typing import Protocol

from taskd.domain.model import DueTask
from taskd.queues.local import LocalQueue

HELD_S = 0.25
"""How long a message may wait in its lane before it is sent back to nsqd."""

RECENT_S = 60.0
RECENT_BOUND = 50_000
"""For how long, and how many, wake-ups that are done are remembered, to tell doubles."""

_KEPT_EARLY = 1000
_KEPT_EARLY_MS = 5000
_LONGEST_DELAY_MS = 60_000
_BACK_MS = 2000
_BACK_LONGEST_MS = 30_000
_RELEASED_MS = 1000
_TENDED_S = 0.5
_GLANCE_S = 0.02
_MS_PER_S = 1000


class Source(Protocol):
    """The connection that a message came on, and the answers to a message."""

    @property
    def message_timeout_s(self) -> float:
        """After this long without an answer, nsqd gives the message to another node."""
        ...

    def finish(self, message_id: bytes) -> None:
        """The message is done with."""
        ...

    def requeue(self, message_id: bytes, delay_ms: int) -> None:
        """The message may go elsewhere, after a delay."""
        ...

    def touch(self, message_id: bytes) -> None:
        """The message's timeout begins anew."""
        ...


@dataclass(slots=True, eq=False, kw_only=True)
class Received:
    """A message in flight."""

    source: Source
    message_id: bytes
    attempts: int
    task: DueTask
    since: float
    """When it came or was touched, in Trio's time."""


@dataclass(slots=True, kw_only=True)
class InboxCounts:
    """What an `Inbox` has done since the start, in messages."""

    received: int = 0
    finished: int = 0
    doubled: int = 0
    """Messages finished because their wake-up was done, or here, already."""
    sent_back: int = 0
    let_go: int = 0
    """Messages finished because their app may begin nothing here."""
    early: int = 0
    """Messages that came before their task was due."""
    touched: int = 0


class Inbox:
    """See the module. Times are Trio's; ``now_ms`` is the Store's, for due times."""

    def __init__(self, lanes: LocalQueue) -> None:
        self.counts = InboxCounts()
        self._lanes = lanes
        self._waiting: dict[int, Received] = {}
        self._taken: dict[int, Received] = {}
        self._taking: dict[int, int] = {}
        self._arrivals: deque[tuple[float, Received]] = deque()
        self._early: list[tuple[int, int, Received]] = []
        self._numbers = count()
        self._recent: OrderedDict[tuple[int, int], float] = OrderedDict()
        self._occupied: Counter[Source] = Counter()
        self._waits: Counter[Source] = Counter()

    def occupied(self, source: Source) -> int:
        """Messages in flight on a connection that need no room: taken, or early."""
        return self._occupied[source]

    def in_flight_on(self, source: Source) -> int:
        """Messages of a connection that have not been answered."""
        return self._waits[source] + self._occupied[source]

    def refuses(self, app_id: int) -> bool:
        """Whether an app may begin nothing here now."""
        return self._lanes.is_parked(app_id)

    def waiting_without_message(self) -> int:
        """Wake-ups that this node's sweep found, of apps that are not parked."""
        return max(self._lanes.ready - len(self._waiting), 0)

    def in_flight(self) -> int:
        """Messages that have not been answered."""
        return len(self._waiting) + len(self._taken) + len(self._early)

    def arrive(self, message: Received, *, now_ms: int) -> None:
        """Take in a message whose body is a wake-up."""
        self.counts.received += 1
        if message.task.due_at > now_ms:
            self._keep(message, now_ms)
        else:
            self._offer(message)

    def take(self, limit: int, admit: Callable[[int], bool], *, now: float) -> list[DueTask]:
        """See `Queue.take`."""
        tasks = self._lanes.take(limit, admit)
        for task in tasks:
            self._taking[task.task_id] = task.due_at
            message = self._waiting.pop(task.task_id, None)
            if message is not None:
                message.since = now
                self._taken[task.task_id] = message
                self._waits[message.source] -= 1
                self._occupied[message.source] += 1
        return tasks

    def finish(self, tasks: Iterable[DueTask], *, now: float) -> list[Received]:
        """Note the tasks that the Store has answered for; returns their messages, for the
        caller to finish."""
        done = []
        for task in tasks:
            self._taking.pop(task.task_id, None)
            self._remember(task, now)
            message = self._taken.pop(task.task_id, None)
            if message is not None:
                self._remember(message.task, now)
                self._leave(message)
                done.append(message)
        self.counts.finished += len(done)
        return done

    def release(self, tasks: Iterable[DueTask]) -> None:
        """Send back the messages of tasks that the Store could not be asked about."""
        for task in tasks:
            self._taking.pop(task.task_id, None)
            message = self._taken.pop(task.task_id, None)
            if message is not None:
                self._leave(message)
                self._send_back(message, _jittered(_RELEASED_MS))

    def give_back(self, source: Source) -> None:
        """Send back a connection's unanswered messages, since this node ends. Otherwise
        nsqd would wait for their timeout, even after the connection has ended."""
        early = (message for _, _, message in self._early)
        for message in (*self._waiting.values(), *self._taken.values(), *early):
            if message.source is source:
                self._send_back(message, 0)

    def lose(self, source: Source) -> None:
        """Forget the messages of a connection that has ended; nsqd gives them to other
        nodes after their timeout. Their wake-ups stay here."""
        for held in (self._waiting, self._taken):
            for task_id in [key for key, message in held.items() if message.source is source]:
                del held[task_id]
        self._early = [entry for entry in self._early if entry[2].source is not source]
        heapq.heapify(self._early)
        self._arrivals = deque(entry for entry in self._arrivals if entry[1].source is not source)
        del self._occupied[source], self._waits[source]

    def tend(self, *, now: float, now_ms: int, room: bool) -> float:
        """Do all that is due: offer early messages, send back, touch and forget old ones.
        Returns the seconds until it has to be called again.

        Args:
            now: Trio's time.
            now_ms: the Store's time.
            room: whether this node could work on more tasks.
        """
        self._offer_due(now, now_ms)
        self._send_back_old(now, room=room)
        self._touch_old(now)
        self._forget_old(now)
        pause = _TENDED_S
        if self._arrivals:
            pause = max(min(pause, self._arrivals[0][0] + HELD_S - now), _GLANCE_S)
        if self._early:
            pause = min(pause, (self._early[0][0] - now_ms) / _MS_PER_S)
        return max(pause, 1 / _MS_PER_S)

    def _offer(self, message: Received) -> None:
        task = message.task
        if self._is_double(task):
            self.counts.doubled += 1
            message.source.finish(message.message_id)
            return
        offered = self._lanes.offer(task)
        if self._lanes.is_parked(task.app_id):
            self._let_go(message)
            return
        if not offered:
            self._send_back(message, _back_off(message.attempts))
            return
        self._waiting[task.task_id] = message
        self._waits[message.source] += 1
        self._arrivals.append((message.since, message))

    def _is_double(self, task: DueTask) -> bool:
        return (
            (task.task_id, task.due_at) in self._recent
            or self._taking.get(task.task_id) == task.due_at
            or task.task_id in self._waiting
        )

    def _keep(self, message: Received, now_ms: int) -> None:
        self.counts.early += 1
        left = message.task.due_at - now_ms
        if left > _KEPT_EARLY_MS or len(self._early) >= _KEPT_EARLY:
            self._send_back(message, min(left, _LONGEST_DELAY_MS))
            return
        self._occupied[message.source] += 1
        heapq.heappush(self._early, (message.task.due_at, next(self._numbers), message))

    def _offer_due(self, now: float, now_ms: int) -> None:
        while self._early and self._early[0][0] <= now_ms:
            message = heapq.heappop(self._early)[2]
            message.since = now
            self._leave(message)
            self._offer(message)

    def _send_back_old(self, now: float, *, room: bool) -> None:
        while self._arrivals and self._arrivals[0][0] + HELD_S <= now:
            _, message = self._arrivals.popleft()
            if self._waiting.get(message.task.task_id) is message:
                del self._waiting[message.task.task_id]
                self._waits[message.source] -= 1
                if self._lanes.is_parked(message.task.app_id):
                    self._let_go(message)
                else:
                    self._send_back(message, _back_off(message.attempts) if room else 0)

    def _touch_old(self, now: float) -> None:
        for message in self._taken.values():
            if now - message.since > message.source.message_timeout_s / 2:
                message.since = now
                message.source.touch(message.message_id)
                self.counts.touched += 1

    def _remember(self, task: DueTask, now: float) -> None:
        key = (task.task_id, task.due_at)
        self._recent[key] = now
        self._recent.move_to_end(key)
        if len(self._recent) > RECENT_BOUND:
            self._recent.popitem(last=False)

    def _forget_old(self, now: float) -> None:
        while self._recent:
            key, since = next(iter(self._recent.items()))
            if now - since < RECENT_S:
                return
            del self._recent[key]

    def _leave(self, message: Received) -> None:
        self._occupied[message.source] -= 1

    def _let_go(self, message: Received) -> None:
        self.counts.let_go += 1
        message.source.finish(message.message_id)

    def _send_back(self, message: Received, delay_ms: int) -> None:
        self.counts.sent_back += 1
        message.source.requeue(message.message_id, delay_ms)


def _back_off(attempts: int) -> int:
    """Milliseconds before a message may come again: more with each time that it came."""
    return _jittered(min(_BACK_MS * max(attempts, 1), _BACK_LONGEST_MS))


def _jittered(ms: int) -> int:
    return int(ms * random.uniform(0.8, 1.2))  # noqa: S311 - no secret

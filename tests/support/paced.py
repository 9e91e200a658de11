"""A burst of tasks at a receiver, in simulated time: the pace, the retry rule, and a model
of the receiver. No daemon, no clock."""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

from taskd.domain import retry
from taskd.domain.model import Outcome, Phase, TaskState
from taskd.engine.pace import Pace, sign_of

PER_ORIGIN = 125
_OK = 200


@dataclass
class Answer:
    """What becomes of a request: after how long, and what status; None for a refused
    connection."""

    after_s: float
    status: int | None = 200


class Receiver:
    """Answers each request at once, in a time of its own."""

    def __init__(self, answer: Callable[[float, int], Answer]) -> None:
        self._answer = answer
        self.inside = 0

    def ask(self, now: float) -> Answer:
        """The answer to a request that comes now."""
        return self._answer(now, self.inside)


class Workers(Receiver):
    """So many workers that serve one request after another, in the order in which they came;
    what has been given up is served as well."""

    def __init__(self, workers: int, each_s: float) -> None:
        super().__init__(lambda _now, _inside: Answer(each_s))
        self._free_at = [0.0] * workers
        self._each_s = each_s

    def ask(self, now: float) -> Answer:
        free_at = max(heapq.heappop(self._free_at), now)
        heapq.heappush(self._free_at, free_at + self._each_s)
        return Answer(free_at + self._each_s - now)


@dataclass
class Told:
    """How a burst went."""

    succeeded: int = 0
    failed: int = 0
    executions: int = 0
    most_at_once: int = 0
    ended_at: float = 0.0
    last_success_at: float = 0.0
    begins: list[float] = field(default_factory=list)


@dataclass(eq=False)
class _Task:
    failures: int = 0


class _Burst:
    """Tasks that are due, what is under way, and what is to happen when."""

    def __init__(self, receiver: Receiver, pace: Pace, *, timeout_s: float, at: float) -> None:
        self.now = at
        self.told = Told()
        self.due: deque[_Task] = deque()
        self._receiver = receiver
        self._pace = pace
        self._timeout_s = timeout_s
        self._rng = random.Random(1)
        self._held = 0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()

    def go_on(self) -> bool:
        """Begin what may begin, and let the next thing happen; False if there is none."""
        while self.due and self._room() > 0:
            self._begin(self.due.popleft())
        if self.due and self._held < PER_ORIGIN:
            self._pace.bind(self.now)
            self._plan(max(self._pace.opens_at(self._held), self.now + 0.001), lambda: None)
        if not self._events:
            return False
        self.now, _, act = heapq.heappop(self._events)
        act()
        return True

    def _room(self) -> int:
        return min(PER_ORIGIN - self._held, self._pace.room(self._held, self.now))

    def _plan(self, moment: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (moment, next(self._order), act))

    def _begin(self, task: _Task) -> None:
        self._pace.take(self.now)
        self._held += 1
        self.told.executions += 1
        self.told.begins.append(self.now)
        self.told.most_at_once = max(self.told.most_at_once, self._held)
        answer = self._receiver.ask(self.now)
        if answer.status is not None:
            self._receiver.inside += 1
            self._plan(self.now + answer.after_s, self._leave)
        began = self.now, self._pace.answers
        end = self.now + min(answer.after_s, self._timeout_s)
        self._plan(end, lambda: self._end(task, began, answer))

    def _leave(self) -> None:
        self._receiver.inside -= 1

    def _end(self, task: _Task, began: tuple[float, int], answer: Answer) -> None:
        self._held -= 1
        status = answer.status
        if status is None:
            outcome, phase = Outcome.UNREACHABLE, Phase.CONNECTING
        elif answer.after_s >= self._timeout_s:
            outcome, phase, status = Outcome.TIMED_OUT, Phase.AWAITING_RESPONSE, None
        else:
            outcome = Outcome.SUCCEEDED if status == _OK else Outcome.REJECTED
            phase = Phase.READING
        self._pace.end(*began, self.now, sign_of(outcome, status, phase), self._timeout_s)
        decision = retry.after_attempt(
            outcome=outcome,
            http_status=status,
            retry_after_s=None,
            failures=task.failures,
            step=5,
            retry_total=3,
            crowd=0.0 if outcome is Outcome.SUCCEEDED else self._pace.fail(self.now),
            chance=self._rng.random,
        )
        task.failures = decision.failures
        if decision.delay_ms is not None:
            self._plan(self.now + decision.delay_ms / 1000, lambda: self.due.append(task))
            return
        self.told.ended_at = self.now
        if decision.state is TaskState.SUCCEEDED:
            self.told.succeeded += 1
            self.told.last_success_at = self.now
        else:
            self.told.failed += 1


def burst(
    receiver: Receiver,
    tasks: int,
    *,
    timeout_s: float = 5.0,
    pace: Pace | None = None,
    at: float = 0.0,
) -> Told:
    """Have so many tasks that are due at once delivered, by the default retry rule."""
    run = _Burst(receiver, Pace() if pace is None else pace, timeout_s=timeout_s, at=at)
    run.due.extend(_Task() for _ in range(tasks))
    told = run.told
    while told.succeeded + told.failed < tasks and run.go_on():
        pass
    return told

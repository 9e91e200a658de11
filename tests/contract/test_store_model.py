"""SQLite and the in-memory store give the same answers to the same calls."""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taskd.domain.model import App, CancelCertainty, Lease, LeasedTask, Outcome
from taskd.errors import StoreError
from taskd.ports.store import Store
from tests.support.stores import (
    T0,
    cancelled,
    failed,
    given_back,
    new_app,
    new_task,
    nonce,
    opened,
    retrying,
    succeeded,
)

TASKS = 6
APPS = 2

Step = tuple[str, int, int, int]


class Player:
    """Plays steps on one store. What a step acts on is drawn from what earlier
    steps answered, so two stores that answer alike are asked alike."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.apps: list[App] = []
        self.leased: list[LeasedTask] = []
        self.now = T0

    async def play(self, step: Step) -> object:
        """One step's answer, and what is due then."""
        name, a, b, c = step
        self.now += c
        moves: dict[str, Callable[[int, int, int], Awaitable[object]]] = {
            "create": self.create,
            "batch": self.batch,
            "lease": self.lease,
            "settle": self.settle,
            "extend": self.extend,
            "cancel": self.cancel,
            "reap": self.reap,
            "suspects": self.suspects,
            "stopping": self.stopping,
            "purge": self.purge,
            "nonce": self.nonce,
        }
        try:
            answer = await moves[name](a, b, c)
        except StoreError as error:
            existing = getattr(error, "existing", None)
            answer = type(error), existing and existing.state
        due = await self.store.find_due(until=self.now, after=T0 - 1, limit_per_app=3)
        # Which app comes first is the store's own business.
        return answer, sorted(due, key=lambda task: (task.app_id, task.due_at, task.task_id))

    async def look(self) -> list[object]:
        """All tasks there are."""
        return [
            await self.store.task_detail(app.id, task_id=task_id)
            for app in self.apps
            for task_id in range(1, 3 * TASKS)
        ]

    async def create(self, a: int, b: int, c: int) -> object:
        new = new_task(self.apps[b % APPS], f"no-{a}", due_at=self.now + c, content=b"x" * 999 * c)
        return await self.store.create_task(new, nonce(f"n-{a * c}") if c else None)

    async def batch(self, a: int, b: int, c: int) -> object:
        numbers = [a, a + c, b, TASKS - a]
        tasks = [
            new_task(self.apps[number % APPS], f"no-{number}", due_at=self.now + number)
            for number in numbers[: 1 + b]
        ]
        use = nonce(f"n-{b * c}") if c else None
        return await self.store.create_tasks(tasks, use, atomic=b % 2 == 0)

    async def lease(self, a: int, b: int, c: int) -> object:
        ids = [a, b, c, a]
        taken = await self.store.lease(
            ids, node=f"n-{b}", now=self.now, expires_at=self.now + b, suspects=c % 2 == 0
        )
        self.leased += taken
        return taken

    async def settle(self, a: int, b: int, c: int) -> object:
        if not self.leased:
            return None
        leased = self.leased[-1 - a % len(self.leased)]
        due_at = self.now + c
        ends = [
            succeeded(leased),
            failed(leased),
            given_back(leased),
            cancelled(leased, CancelCertainty.ABORTED_DURING_RESPONSE),
            retrying(leased, due_at=due_at),
            retrying(leased, due_at=due_at, outcome=Outcome.UNREACHABLE, sent=False),
            retrying(leased, due_at=due_at, outcome=Outcome.ABANDONED),
        ]
        return await self.store.settle(ends[b % len(ends)])

    async def extend(self, a: int, b: int, c: int) -> object:
        stale = Lease(task_id=a, token=b, node="n", expires_at=0)
        leases = [stale, *(task.lease for task in self.leased[-3:])]
        return await self.store.extend(leases, expires_at=self.now + c)

    async def cancel(self, a: int, b: int, c: int) -> object:
        app = self.apps[b % APPS]
        if c % 2:
            return await self.store.request_cancel(app.id, task_no=f"no-{a}", now=self.now)
        return await self.store.request_cancel(app.id, a, now=self.now)

    async def reap(self, a: int, b: int, c: int) -> object:
        expired_at = None if b == 0 else self.now - b
        return await self.store.reap(now=self.now, expired_at=expired_at, exclude=[a], limit=1 + c)

    async def suspects(self, a: int, b: int, c: int) -> object:
        return await self.store.find_suspects(now=self.now, after=0, limit=1 + c)

    async def stopping(self, a: int, b: int, c: int) -> object:
        await self.store.note_stopping(f"n-{b}", now=self.now)
        return None

    async def purge(self, a: int, b: int, c: int) -> object:
        return await self.store.purge(finished_before=self.now - a, limit=1 + b)

    async def nonce(self, a: int, b: int, c: int) -> object:
        await self.store.use_nonce(nonce(f"n-{a * b}", expires_at=T0 + c * 10**5))
        return None


steps = st.lists(
    st.tuples(
        st.sampled_from(
            ["create"] * 3
            + ["batch"] * 2
            + ["lease"] * 4
            + ["settle"] * 4
            + ["reap"] * 2
            + ["extend", "cancel", "purge", "nonce", "suspects", "stopping"]
        ),
        st.integers(0, TASKS),
        st.integers(0, 6),
        st.integers(0, 5),
    ),
    min_size=15,
    max_size=60,
)


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(steps)
def test_both_stores_answer_alike(plan: list[Step]) -> None:
    async def compare(folder: Path) -> None:
        async with opened("memory", folder) as model, opened("sqlite", folder) as store:
            players = [Player(model), Player(store)]
            for player in players:
                player.apps = [
                    await player.store.create_app(new_app(f"key-{number}"))
                    for number in range(APPS)
                ]
            for number, step in enumerate(plan):
                expected, answer = [await player.play(step) for player in players]
                assert answer == expected, f"step {number}: {step}"
            assert await players[1].look() == await players[0].look()

    with tempfile.TemporaryDirectory() as folder:
        trio.run(compare, Path(folder))

"""A SQLite session does the same whether it runs a statement for each row or one for all."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taskd.domain.model import App, FirstLease, Lease, LeasedTask
from taskd.stores.operations.leases import extend, lease
from taskd.stores.operations.session import at_once
from taskd.stores.operations.settlement import settle
from taskd.stores.operations.submission import submit
from taskd.stores.sqlite import rows, session
from taskd.stores.sqlite.session import SQLiteSession
from taskd.stores.sqlite.statements import EPOCH_MS
from taskd.stores.sqlite.store import SQLiteStore
from taskd.stores.write_requests import ExtendRequest, LeaseRequest, Submission
from tests.support.stores import T0, failed, new_app, new_task, nonce, retrying, succeeded

Plan = Sequence[tuple[str, Sequence[tuple[int, int, int]]]]

_EPOCHS = (0, 1, 3, 40)
"""The last is too far away to look through all between."""

plans = st.lists(
    st.tuples(
        st.sampled_from(["submit", "submit", "lease", "settle", "extend"]),
        st.lists(
            st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 3)),
            min_size=1,
            max_size=5,
        ),
    ),
    min_size=5,
    max_size=25,
)


def _submission(app: App, a: int, b: int, c: int) -> Submission:
    first = None if b % 3 else FirstLease("n-1", T0, T0 + 10**6)
    tasks = [
        replace(
            new_task(app, f"no-{number % 7}-{a}"),
            lease=first,
            content=b"\0" if c == 0 else b"{}",
        )
        for number in range(b, b + c)
    ]
    used = nonce(f"n-{a}-{b % 2}", expires_at=T0 + _EPOCHS[c] * EPOCH_MS)
    return Submission(tuple(tasks), used if a % 2 else None, atomic=b % 2 == 0)


def _play(connection: sqlite3.Connection, using: SQLiteSession, app: App, plan: Plan) -> object:
    answers: list[object] = []
    leased: list[LeasedTask] = []
    for kind, numbers in plan:
        connection.execute("BEGIN IMMEDIATE")
        if kind == "submit":
            answer: object = at_once(submit(using, [_submission(app, *each) for each in numbers]))
        elif kind == "lease":
            ids = [a + b for a, b, _ in numbers]
            request = LeaseRequest(
                task_ids=ids, node="n-1", now=T0 + 10, expires_at=T0 + 99, suspects=ids[0] % 2 == 0
            )
            answer = at_once(lease(using, [request]))
            (found,) = answer
            assert isinstance(found, list)
            leased += found
        elif kind == "extend":
            leases = [Lease(task_id=a, token=1, node="n-1", expires_at=T0) for a, _, _ in numbers]
            answer = at_once(extend(using, [ExtendRequest(leases=leases, expires_at=T0 + 500)]))
        else:
            ends = [
                end(leased[-1 - a % len(leased)])
                for a, b, _ in numbers
                if leased
                for end in [(succeeded, failed, lambda t: retrying(t, due_at=T0))[b % 3]]
            ]
            answer = at_once(settle(using, ends))
        connection.execute("COMMIT")
        answers.append(repr(answer))
    tables = ("tasks", "attempts", "contents", "nonces")
    return answers, [connection.execute(f"SELECT * FROM {each}").fetchall() for each in tables]


async def _outcome(plan: Plan, few: int) -> object:
    with tempfile.TemporaryDirectory() as folder:
        store = await SQLiteStore.open(Path(folder) / "tasks.db")
        app = await store.create_app(new_app())
        connection = store._guard.connect("rw")
        connection.execute("PRAGMA synchronous = OFF")
        using = store._session(connection)
        assert isinstance(using, SQLiteSession)
        with patch.object(rows, "FEW", few), patch.object(session, "FEW", few):
            try:
                return _play(connection, using, app, plan)
            finally:
                connection.close()
                await store.aclose()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(plans)
def test_few_and_many_rows_are_written_alike(plan: Plan) -> None:
    one_each = trio.run(_outcome, plan, 1_000)
    all_at_once = trio.run(_outcome, plan, 0)
    assert one_each == all_at_once


def test_a_plan_in_which_all_happens_is_written_alike() -> None:
    plan = [
        ("submit", [(1, 1, 3), (1, 2, 2), (3, 4, 1)]),  # shares a taskNo, and is refused whole
        ("submit", [(1, 1, 3), (5, 1, 2)]),  # the first one's nonce was used
        ("lease", [(1, 0, 0), (1, 1, 0), (2, 1, 0)]),
        ("settle", [(0, 0, 0), (0, 0, 0), (1, 2, 0)]),  # the second one's lease is over
    ]
    one_each = trio.run(_outcome, plan, 1_000)
    assert one_each == trio.run(_outcome, plan, 0)
    told = repr(one_each)
    for what in ("NonceUsed", "BatchRefused", "LeaseLost", "SUCCEEDED", "RETRYING"):
        assert what in told, what

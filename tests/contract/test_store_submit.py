"""The Store's contract: apps, nonces, creating tasks and looking at them."""

from __future__ import annotations

import dataclasses

import pytest

from taskd.domain.model import App, FirstLease, SuccessRule, TaskState
from taskd.errors import DuplicateTaskNo, NonceUsed, StoreUnavailable
from taskd.ports.store import Store
from taskd.runtime.coalesced_reads import MAX_KEYS
from tests.support.stores import (
    T0,
    add,
    detail,
    lease_one,
    new_app,
    new_task,
    nonce,
    succeeded,
)

CONTENTS = [
    b'{"order":1001}',
    '{"名":"值 \U0001f600"}'.encode(),
    b'"\\ud800 \\u0000 \\" \\\\"',
    b'"\x7f\t"',
    b'"' + b"x" * 100_000 + b'"',
    b'"' + "é".encode() * 1_001 + b'"',
    b"\xff\xfe\x00 no text at all",
    b"",
]


@pytest.mark.parametrize("success", SuccessRule)
async def test_an_app_comes_back_as_it_was_given_with_an_id(
    store: Store, success: SuccessRule
) -> None:
    app = await store.create_app(new_app(success=success))
    assert app == dataclasses.replace(new_app(success=success), id=app.id)
    assert app.id > 0
    assert await store.app_by_key("key-1") == app
    assert await store.app_by_id(app.id) == app


async def test_a_lease_carries_its_apps_rule_of_success(store: Store) -> None:
    for rule in SuccessRule:
        app = await store.create_app(new_app(f"key-{rule}", success=rule))
        (task_id,) = await add(store, app, 1)
        assert (await lease_one(store, task_id)).app.success is rule


async def test_an_unknown_app_is_none_and_can_be_added_later(store: Store) -> None:
    assert await store.app_by_key("key-2") is None
    assert await store.app_by_id(1) is None
    app = await store.create_app(new_app("key-2"))
    other = await store.create_app(new_app("key-3"))
    assert other.id != app.id
    assert await store.app_by_key("key-2") == app
    assert await store.app_by_id(app.id) == app


async def test_apps_are_read_anew_by_their_keys(store: Store) -> None:
    """On a file or a database that several use, each call is another one's."""
    keys = ["key-1", "KEY-1", "key-2", "it's", "名", "%", ""]
    assert await store.apps_by_key(keys) == {}
    apps: dict[str, App] = {}
    for key in keys[1:5]:
        apps[key] = await store.create_app(new_app(key))
        for _ in range(3):
            assert await store.apps_by_key(keys) == apps
    assert await store.apps_by_key([]) == {}
    many = [f"no-{number}" for number in range(MAX_KEYS - 1)]
    assert await store.apps_by_key([*many, "key-2"]) == {"key-2": apps["key-2"]}
    assert await store.apps_by_key({"key-2"}) == {"key-2": apps["key-2"]}


async def test_an_app_that_was_read_is_known(store: Store) -> None:
    assert store.known_app("key-1") is None
    app = await store.create_app(new_app())
    await store.apps_by_key(["key-1", "key-2"])
    # Where several stores take turns, this may be another's, which knows nothing yet.
    assert store.known_app("key-1") in {app, None}
    assert store.known_app("key-2") is None
    for _ in range(3):
        await store.apps_by_key(["key-1"])
    assert store.known_app("key-1") == app


async def test_a_used_nonce_keeps_an_app_from_being_added(store: Store) -> None:
    await store.create_app(new_app("key-1"), nonce("n-1"))
    with pytest.raises(NonceUsed):
        await store.create_app(new_app("key-2"), nonce("n-1"))
    assert await store.app_by_key("key-2") is None
    with pytest.raises(NonceUsed):
        await store.use_nonce(nonce("n-1"))


async def test_a_new_task_is_scheduled_and_kept_to_the_last_field(store: Store) -> None:
    app = await store.create_app(new_app(retry_total=3))
    task_id = await store.create_task(new_task(app, due_at=T0 + 98_765, retry_total=9))
    found = await detail(store, app, task_id)
    assert found.id == task_id
    assert found.state is TaskState.SCHEDULED
    assert (found.app_id, found.task_no, found.name) == (app.id, "order-1", "close order")
    assert (found.runtime, found.due_at) == (T0 + 98_765, T0 + 98_765)
    assert (found.timeout_ms, found.retry_total, found.created_at) == (5000, 9, T0)
    assert (found.attempt, found.attempts, found.finished_at, found.node) == (0, (), None, None)
    assert (found.cancel_requested, found.cancel_certainty) == (False, None)


async def test_a_task_takes_the_apps_retry_rule_unless_it_has_its_own(store: Store) -> None:
    app = await store.create_app(new_app(step=5, retry_total=3))
    plain = await store.create_task(new_task(app, "plain"))
    own = await store.create_task(new_task(app, "own", step=0, retry_total=0))
    assert (await detail(store, app, plain)).retry_total == 3
    assert (await detail(store, app, own)).retry_total == 0
    leased = [await lease_one(store, task_id) for task_id in (plain, own)]
    assert [(task.step, task.retry_total) for task in leased] == [(5, 3), (0, 0)]


@pytest.mark.parametrize("content", CONTENTS, ids=range(len(CONTENTS)))
async def test_content_comes_back_byte_for_byte(store: Store, content: bytes) -> None:
    app = await store.create_app(new_app())
    task_id = await store.create_task(new_task(app, content=content))
    assert (await lease_one(store, task_id)).content == content


@pytest.mark.parametrize("time", [0, 1, 999, T0, 4_102_444_800_001, 253_402_300_799_999])
async def test_times_round_trip_to_the_millisecond(store: Store, time: int) -> None:
    app = await store.create_app(dataclasses.replace(new_app(), created_at=time))
    assert app.created_at == time
    new = dataclasses.replace(new_task(app, due_at=time), created_at=time)
    task_id = await store.create_task(new)
    found = await detail(store, app, task_id)
    assert (found.runtime, found.due_at, found.created_at) == (time, time, time)
    (due,) = await store.find_due(until=time, limit_per_app=1)
    assert due.due_at == time
    leased = await lease_one(store, task_id, now=time)
    assert (leased.due_at, leased.leased_at) == (time, time)
    await store.settle(succeeded(leased))
    ended = await detail(store, app, task_id)
    assert ended.finished_at == time + 7
    assert (ended.attempts[0].started_at, ended.attempts[0].ended_at) == (time, time + 7)


async def test_a_time_that_had_passed_is_kept_beside_when_it_counts(store: Store) -> None:
    app = await store.create_app(new_app())
    past = dataclasses.replace(new_task(app, "past"), runtime=T0 - 10**9)
    ids = [await store.create_task(past), await store.create_task(new_task(app, "plain"))]
    batch = [dataclasses.replace(past, task_no="again"), new_task(app, "later", due_at=T0 + 5)]
    ids += [told for told in await store.create_tasks(batch) if isinstance(told, int)]
    leased = dataclasses.replace(past, task_no="leased", lease=FirstLease("n", T0, T0 + 9))
    ids.append(await store.create_task(leased))
    found = [await detail(store, app, task_id) for task_id in ids]
    assert [(each.runtime, each.due_at) for each in found] == [
        (T0 - 10**9, T0),
        (T0, T0),
        (T0 - 10**9, T0),
        (T0 + 5, T0 + 5),
        (T0 - 10**9, None),
    ]
    assert (await lease_one(store, ids[0])).due_at == T0


async def test_a_task_no_is_unique_in_its_app_only(store: Store) -> None:
    app = await store.create_app(new_app("key-1"))
    other = await store.create_app(new_app("key-2"))
    first = await store.create_task(new_task(app, due_at=T0))
    with pytest.raises(DuplicateTaskNo):
        await store.create_task(new_task(app, due_at=T0 + 1))
    assert (await detail(store, app, first)).due_at == T0
    assert await store.create_task(new_task(other)) != first


async def test_task_nos_are_compared_byte_by_byte(store: Store) -> None:
    # Upper and lower case, composed and decomposed, white space, full width.
    task_nos = ["a", "A", "é", "e\u0301", "ß", "ss", "a ", " a", "１", "1", "订单", "a\u200b"]
    app = await store.create_app(new_app())
    ids = {no: await store.create_task(new_task(app, no)) for no in task_nos}
    assert len(set(ids.values())) == len(task_nos)
    for no, task_id in ids.items():
        found = await store.task_detail(app.id, task_no=no)
        assert found is not None
        assert (found.id, found.task_no) == (task_id, no)


async def test_another_apps_task_is_as_one_that_does_not_exist(store: Store) -> None:
    app = await store.create_app(new_app("key-1"))
    other = await store.create_app(new_app("key-2"))
    task_id = await store.create_task(new_task(app))
    assert await store.task_detail(other.id, task_id=task_id) is None
    assert await store.task_detail(other.id, task_no="order-1") is None
    assert await store.task_detail(app.id, task_id=task_id + 1) is None
    assert await store.task_detail(app.id, task_no="order-2") is None
    assert (await store.request_cancel(other.id, task_id, now=T0)).state is None
    assert (await detail(store, app, task_id)).state is TaskState.SCHEDULED


async def test_a_nonce_is_used_up_once_per_key(store: Store) -> None:
    await store.use_nonce(nonce("n-1", key="key-1"))
    await store.use_nonce(nonce("n-1", key="key-2"))
    await store.use_nonce(nonce("N-1", key="key-1"))
    with pytest.raises(NonceUsed):
        await store.use_nonce(nonce("n-1", key="key-1"))


async def test_a_nonce_stays_used_whenever_its_second_use_would_expire(store: Store) -> None:
    await store.use_nonce(nonce("n-1", expires_at=T0))
    for later in (1, 60_000, 119_999, 120_000, 600_000):
        await store.use_nonce(nonce(f"other-{later}", expires_at=T0 + later))
        with pytest.raises(NonceUsed):
            await store.use_nonce(nonce("n-1", expires_at=T0 + later))


async def test_key_and_nonce_are_told_apart(store: Store) -> None:
    await store.use_nonce(nonce("bc", key="a"))
    await store.use_nonce(nonce("c", key="ab"))
    await store.use_nonce(nonce("", key="abc"))


async def test_a_task_with_a_used_nonce_is_not_added(store: Store) -> None:
    app = await store.create_app(new_app())
    await store.use_nonce(nonce("n-1"))
    with pytest.raises(NonceUsed):
        await store.create_task(new_task(app), nonce("n-1"))
    assert await store.task_detail(app.id, task_no="order-1") is None
    assert await store.find_due(until=T0, limit_per_app=10) == []
    await store.create_task(new_task(app), nonce("n-2"))


async def test_a_duplicate_uses_its_nonce_up(store: Store) -> None:
    app = await store.create_app(new_app())
    await store.create_task(new_task(app), nonce("n-1"))
    with pytest.raises(DuplicateTaskNo):
        await store.create_task(new_task(app), nonce("n-2"))
    with pytest.raises(NonceUsed):
        await store.use_nonce(nonce("n-2"))


async def test_nonces_are_forgotten_after_they_expired_and_not_before(store: Store) -> None:
    minutes = 60_000
    for number in range(5):
        await store.use_nonce(nonce(f"old-{number}", expires_at=T0))
    await store.use_nonce(nonce("young", expires_at=T0 + 60 * minutes))
    assert await store.purge_nonces(now=T0 - 1, limit=100) == 0
    # An adapter may keep what has expired for some minutes more.
    now = T0 + 10 * minutes
    assert await store.purge_nonces(now=now, limit=3) == 3
    assert await store.purge_nonces(now=now, limit=3) == 2
    assert await store.purge_nonces(now=now, limit=3) == 0
    for number in range(5):
        await store.use_nonce(nonce(f"old-{number}", expires_at=T0 + 60 * minutes))
    with pytest.raises(NonceUsed):
        await store.use_nonce(nonce("young", expires_at=T0 + 60 * minutes))


async def test_one_purge_forgets_nonces_that_expired_at_different_times(store: Store) -> None:
    for number in range(10):
        await store.use_nonce(nonce(f"n-{number}", expires_at=T0 + number * 100_000))
    assert await store.purge_nonces(now=T0 + 5_000_000, limit=100) == 10


async def test_a_probe_succeeds_and_changes_nothing_to_be_seen(store: Store) -> None:
    app = await store.create_app(new_app())
    (task_id,) = await add(store, app, 1)
    before = await detail(store, app, task_id)
    await store.probe()
    await store.probe()
    assert await detail(store, app, task_id) == before


async def test_every_call_after_the_close_is_refused(store: Store) -> None:
    app = await store.create_app(new_app())
    leased = await lease_one(store, (await add(store, app, 1))[0])
    await store.aclose()
    calls = [
        lambda: store.create_app(new_app("key-2")),
        lambda: store.app_by_key("key-1"),
        lambda: store.apps_by_key(["key-1"]),
        lambda: store.app_by_id(app.id),
        lambda: store.create_task(new_task(app, "late")),
        lambda: store.create_tasks([new_task(app, "late")]),
        lambda: store.use_nonce(nonce("late")),
        lambda: store.task_detail(app.id, task_id=1),
        lambda: store.find_due(until=T0, limit_per_app=1),
        lambda: store.lease([1], node="node-1", now=T0, expires_at=T0),
        lambda: store.extend([leased.lease], expires_at=T0),
        lambda: store.settle(succeeded(leased)),
        lambda: store.request_cancel(app.id, 1, now=T0),
        lambda: store.reap(now=T0, expired_at=None, exclude=(), limit=1),
        lambda: store.purge(finished_before=T0, limit=1),
        lambda: store.purge_nonces(now=T0, limit=1),
        store.probe,
    ]
    for call in calls:
        with pytest.raises(StoreUnavailable, match="closed"):
            await call()
    await store.aclose()  # to close twice is no error

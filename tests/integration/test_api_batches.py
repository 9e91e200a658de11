"""``/task/batch``: many tasks at once, each judged as a single create would be."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Sequence
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taskd.api.endpoints.batches import MAX_BATCH
from taskd.api.http import body_reader
from taskd.clock import iso_utc
from taskd.domain.model import ExistingTask, NewTask, NonceUse
from taskd.errors import StoreUnavailable
from taskd.runtime.json_depth import MAX_READ_DEPTH
from taskd.service.service import BATCHED_AT_ONCE
from taskd.stores.memory import MemoryStore
from tests.support.api import NOW_S, TASK, Api, Reply, config_of, encode, running_api, until

pytestmark = pytest.mark.deadline(30)

DUPLICATE = {"code": 1, "msg": "请勿重复提交!"}
ROOMY = config_of(max_body=1_048_576)


def duplicate(task_id: int, state: str = "scheduled") -> dict[str, object]:
    """The result of a task whose taskNo this one has."""
    return DUPLICATE | {"existing": {"taskId": task_id, "state": state}}


def task(number: int, **changes: object) -> dict[str, object]:
    return TASK | {"taskNo": f"no-{number}"} | changes


async def submit(api: Api, tasks: object, **fields: object) -> Reply:
    return await api.post("/task/batch", {"tasks": tasks} | fields)


def text_of(*tasks: str) -> bytes:
    """A batch whose tasks are given as JSON text."""
    return f'{{"tasks":[{",".join(tasks)}]}}'.encode()


@pytest.mark.parametrize("count", [1, 2, 100, MAX_BATCH])
@pytest.mark.parametrize("atomic", [None, False, True])
async def test_tasks_are_kept_and_named_in_their_order(count: int, *, atomic: bool | None) -> None:
    async with running_api(ROOMY) as api:
        fields = {} if atomic is None else {"atomic": atomic}
        reply = await submit(api, [task(number) for number in range(count)], **fields)
        assert (reply.status, reply.code, reply.msg) == (200, 0, "ok!")
        assert list(reply.data) == ["results"]
        results = reply.data["results"]
        assert len(results) == count
        for number, result in enumerate(results):
            assert list(result) == ["taskId", "coroutine_id", "dueAt"]
            assert result["dueAt"] == iso_utc(NOW_S * 1000)
            kept = await api.task(f"no-{number}")
            assert kept is not None
            assert result["taskId"] == result["coroutine_id"] == kept.id
            assert (kept.name, kept.timeout_ms, kept.due_at) == (TASK["name"], 5000, NOW_S * 1000)
        assert api.kept() == (1, count)


async def test_each_task_has_its_own_runtime_step_and_retry_total(api: Api) -> None:
    tasks = [
        task(0, runtime=NOW_S + 60),
        task(1, retryTotal=9),
        task(2, runtime=0),
        task(3, delay="1h30m"),
        task(4, delay=1, runtime=1),
    ]
    *results, both = (await submit(api, tasks)).data["results"]
    kept = [await api.task(f"no-{number}") for number in range(4)]
    times = [each and (each.runtime, each.due_at) for each in kept]
    now = NOW_S * 1000
    assert times == [
        (now + 60_000, now + 60_000),
        (now, now),
        (0, now),
        (now + 5_400_000, now + 5_400_000),
    ]
    assert [result["dueAt"] for result in results] == [
        iso_utc(each.due_at or 0) for each in kept if each
    ]
    assert [each and each.retry_total for each in kept] == [3, 9, 3, 3]
    assert both == {"code": 422, "msg": "delay: must not be given together with runtime"}


async def test_what_is_due_is_handed_on_at_once_and_the_rest_is_scheduled(api: Api) -> None:
    offered: list[int] = []
    published: list[list[int]] = []
    api.node.service._schedule = lambda task: offered.append(task.task_id)
    publish = api.node.queue.publish

    def noted(tasks: Any) -> None:  # noqa: ANN401 - as the queue takes it
        tasks = list(tasks)
        published.append([due.task_id for due in tasks])
        publish(tasks)

    api.node.queue.publish = noted  # type: ignore[method-assign] # a look at what passes
    await api.post("/task/create", task(3))
    published.clear()
    tasks = [task(0), task(1, runtime=NOW_S + 1), task(2), task(3), task(4, name="")]
    results = (await submit(api, tasks)).data["results"]
    assert published == [[results[0]["taskId"], results[2]["taskId"]]]
    assert offered == [results[1]["taskId"]]


async def test_a_task_no_that_is_taken_is_refused_alone(api: Api) -> None:
    there = (await api.post("/task/create", task(1))).data["taskId"]
    reply = await submit(api, [task(0), task(1), task(0), task(2)])
    results = reply.data["results"]
    first, last = results[0]["taskId"], results[3]["taskId"]
    assert results[1:3] == [duplicate(there), duplicate(first)]
    again = await submit(api, [task(0), task(1), task(2)])
    assert again.code == 0
    assert again.data["results"] == [duplicate(first), duplicate(there), duplicate(last)]
    assert api.kept() == (1, 3)


BAD = [
    (json.dumps(task(1, timeout="abc")), "timeout"),
    (json.dumps(task(1, timeout=0, name="")), "name"),
    (json.dumps({"taskNo": "no-1"}), "name"),
    (json.dumps(task(1, colour=1)), "colour"),
    (json.dumps(task(1, runtime="tomorrow")), "runtime"),
    (json.dumps(task(1, content="{")), "content"),
    (json.dumps(task(1, content=None)), "content"),
    (json.dumps(task(1))[:-1] + ',"content":1e400}', "content"),
    (json.dumps(task(1))[:-1] + ',"name":"x"}', "name"),
    (json.dumps(task(1))[:-1] + ',"step":NaN}', "step"),
    (json.dumps(task(1))[:-1] + ',"step":99999999999999999999}', "step"),
    (json.dumps(task(1, name="a\0b")), "name"),
    (json.dumps(task(1, taskNo="\ud800")), "taskNo"),
    (json.dumps(task(1, content={"a": "\udc00"})), "content"),
    (json.dumps(task(1))[:-1] + ',"a\\u0000":1}', "a key"),
    (json.dumps(task(1))[:-1] + ',"content":{"a":1,"a":2}}', "content"),
    (json.dumps(task(1, content="@")).replace('"@"', "[" * 64 + "]" * 64), "content"),
    ("{}", "taskNo"),
]


@pytest.mark.parametrize(("bad", "field"), BAD, ids=range(len(BAD)))
async def test_a_task_that_breaks_a_rule_is_refused_alone_as_a_single_create_is(
    api: Api, bad: str, field: str
) -> None:
    single = await api.post("/task/create", bad)
    assert single.status == 422
    assert single.msg.startswith(field)
    good = [json.dumps(task(number)) for number in (0, 2)]
    reply = await api.post("/task/batch", text_of(good[0], bad, good[1]))
    first, refused, last = reply.data["results"]
    assert refused == {"code": 422, "msg": single.msg}
    assert (reply.code, first["taskId"], last["taskId"]) == (0, 1, 2)
    assert api.kept() == (1, 2)


@pytest.mark.parametrize(
    ("item", "got"),
    [("[]", "an array"), ("1", "another value"), ('"a"', "another value"), ("null", "another")],
)
@pytest.mark.parametrize("beside", ["{}", '{"name":"\\u0000"}'], ids=["quick", "close"])
async def test_an_item_that_is_no_object_is_refused_alone(
    api: Api, item: str, got: str, beside: str
) -> None:
    reply = await api.post("/task/batch", text_of(item, json.dumps(task(0)), beside))
    refused, kept, _ = reply.data["results"]
    assert refused["code"] == 422
    assert refused["msg"].startswith(f"the task must be a JSON object, got {got}")
    assert kept["taskId"] == 1


async def test_a_task_may_be_nested_as_deep_as_in_a_create(api: Api) -> None:
    deep = json.dumps(task(0, content="@")).replace('"@"', "[" * 63 + "]" * 63)
    other = json.dumps(task(1, content="@")).replace('"@"', "[" * 64 + "]" * 64)
    for beside in (other, other.replace("close order", "\\u0000")):
        reply = await api.post("/task/batch", text_of(deep, beside))
        assert reply.data["results"][1]["code"] == 422
    assert api.kept() == (1, 1)


async def test_a_task_that_is_too_deep_is_refused_alone_up_to_a_depth_and_then_the_whole() -> None:
    """The same on every Python, whatever its own parser can do."""

    def batch(depth: int) -> bytes:
        deep = json.dumps(task(depth, content="@")).replace('"@"', "[" * depth + "]" * depth)
        return text_of(deep, json.dumps(task(depth + 10_000)))

    async with running_api(ROOMY) as api:
        most = MAX_READ_DEPTH - 3  # the body, the array and the task are levels too
        for depth in (65, 200, most):
            refused, kept = (await api.post("/task/batch", batch(depth))).data["results"]
            assert refused == {"code": 422, "msg": "content: is nested more than 64 deep"}
            assert "taskId" in kept
        kept_so_far = api.kept()
        for depth in (most + 1, 900, 5000):
            reply = await api.post("/task/batch", batch(depth))
            assert (reply.status, reply.msg) == (422, "the body is nested more than 64 deep")
        assert api.kept() == kept_so_far


_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(["{}", "2021-07-17 08:00:00", "\0", "\ud800", 5000, "1e400"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
_ITEMS = st.lists(
    st.dictionaries(
        st.sampled_from([*TASK, "runtime", "step", "retryTotal", "task_no"]), _VALUES, max_size=4
    ).map(lambda values: TASK | values)
    | _VALUES,
    min_size=1,
    max_size=5,
)


@pytest.mark.deadline(100)
async def test_a_batch_refuses_what_single_creates_refuse_in_the_same_words() -> None:
    async with running_api() as batched, running_api() as single:
        with trio.fail_after(100):

            async def compare(items: list[object]) -> None:
                body = json.dumps({"tasks": items}).encode()
                results = (await batched.post("/task/batch", body)).data["results"]
                for item, result in zip(items, results, strict=True):
                    reply = await single.post("/task/create", json.dumps(item))
                    if reply.code == 0:
                        assert result == reply.data
                    else:
                        msg = reply.msg.replace("the body must be", "the task must be")
                        told = {"code": reply.code, "msg": msg}
                        if reply.code == 1:
                            task_id, state = reply.headers["taskd-existing"].split()
                            told |= {"existing": {"taskId": int(task_id), "state": state}}
                        assert result == told

            @settings(
                max_examples=150,
                deadline=None,
                suppress_health_check=[HealthCheck.too_slow],
            )
            @given(_ITEMS)
            def play(items: list[object]) -> None:
                trio.from_thread.run(compare, items)

            await trio.to_thread.run_sync(play)


@pytest.mark.parametrize(
    ("body", "field", "problem"),
    [
        ({}, "tasks", "is required"),
        ({"tasks": []}, "tasks", "must be an array of 1 to 1000 elements, got 0 of them"),
        ({"tasks": [1] * 1001}, "tasks", "must be an array of 1 to 1000 elements, got 1001"),
        ({"tasks": {}}, "tasks", "must be an array of 1 to 1000 elements, got an object"),
        ({"tasks": None}, "tasks", "got null"),
        ({"tasks": [TASK], "atomic": 1}, "atomic", "must be true or false, got 1"),
        ({"tasks": [TASK], "atomic": "true"}, "atomic", 'must be true or false, got "true"'),
        ({"tasks": [TASK], "atomic": None}, "atomic", "must be true or false, got null"),
        ({"tasks": [TASK], "tusks": []}, "tusks", "the nearest one is tasks"),
        ({"tasks": [TASK], "id": 1}, "id", "is not a field of this endpoint"),
        (b'{"tasks":[1],"tasks":[1]}', "tasks", "is given twice"),
        (b'{"tasks":[1],"atomic":' + b"[" * 64 + b"]" * 64 + b"}", "atomic", "64 deep"),
        (b'{"tasks":' + b"[" * 2000 + b"]" * 2000 + b"}", "", "the body is nested more than 64"),
    ],
)
async def test_a_batch_that_is_none_is_refused_whole(
    body: object, field: str, problem: str
) -> None:
    async with running_api(ROOMY) as api:
        reply = await api.post("/task/batch", body)
        assert (reply.status, reply.code) == (422, 422)
        first = reply.data["errors"][0]
        assert first["field"] == field
        assert problem in first["problem"]
        assert api.kept() == (1, 0)


async def test_an_atomic_batch_with_a_bad_task_keeps_none(api: Api) -> None:
    tasks = [task(0), task(0), task(2, timeout=0), task(3, timeout=0)]
    reply = await submit(api, tasks, atomic=True)
    assert (reply.status, reply.code) == (409, 409)
    single = await api.post("/task/create", tasks[2])
    assert reply.data == {"index": 2, "code": 422, "msg": single.msg}
    assert reply.msg == f"tasks[2]: {single.msg}"
    assert api.kept() == (1, 0)


async def test_an_atomic_batch_with_a_taken_task_no_keeps_none(api: Api) -> None:
    there = (await api.post("/task/create", task(1))).data["taskId"]
    reply = await submit(api, [task(0), task(1), task(2)], atomic=True)
    assert (reply.status, reply.code) == (409, 409)
    assert reply.data == {"index": 1} | duplicate(there)
    assert reply.msg == f"tasks[1]: {DUPLICATE['msg']}"
    twice = await submit(api, [task(0), task(2), task(2)], atomic=True)
    # The one that has its taskNo was not kept either, so there is none to name.
    assert twice.data == {"index": 2} | DUPLICATE
    assert api.kept() == (1, 1)
    assert (await submit(api, [task(0), task(2)], atomic=True)).code == 0


@pytest.mark.parametrize(
    "body",
    [
        {"tasks": [task(0)]},
        {"tasks": [task(0, name="")]},
        {"tasks": [task(0), task(0)], "atomic": True},
        {"tasks": [task(0, name="")], "atomic": True},
        {"tasks": []},
        b"no JSON",
    ],
    ids=range(6),
)
async def test_a_batchs_nonce_is_used_up_whatever_the_answer(api: Api, body: object) -> None:
    headers = api.signed(encode(body))
    first = await api.post("/task/batch", body, headers=headers)
    assert first.status != 401
    again = await api.post("/task/batch", body, headers=headers)
    assert (again.status, again.msg.partition(":")[0]) == (401, "nonce")


async def test_the_administrator_may_submit_no_batch(api: Api) -> None:
    body = encode({"tasks": [task(0)]})
    reply = await api.post("/task/batch", body, headers=api.admin(body))
    assert reply.status == 403
    assert api.kept() == (1, 0)


async def test_a_batch_over_max_body_is_refused_with_413(api: Api) -> None:
    reply = await submit(api, [task(number) for number in range(100)])
    assert reply.status == 413
    assert api.kept() == (1, 0)


@pytest.fixture
def in_threads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Gets an element for every body that is read in a thread."""
    found: list[int] = []
    run_sync = trio.to_thread.run_sync

    async def noted(function: Any, *args: Any, **how: Any) -> Any:  # noqa: ANN401 - as trio has it
        if how.get("limiter") is not None:
            found.append(1)
        return await run_sync(function, *args, **how)

    monkeypatch.setattr(trio.to_thread, "run_sync", noted)
    return found


async def test_a_long_batch_is_read_beside_the_event_loop(in_threads: list[int]) -> None:
    async with running_api(ROOMY) as api:
        assert (await submit(api, [task(0)])).code == 0
        assert not in_threads
        long = [task(number, content=json.dumps("x" * 1000)) for number in range(1, 60)]
        assert (await submit(api, long)).code == 0
        assert in_threads == [1]


async def test_a_batch_that_takes_long_is_read_beside_the_event_loop(
    in_threads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body_reader, "AT_ONCE_S", -1.0)
    async with running_api() as api:
        reply = await submit(api, [task(0), task(1, name=""), task(2)])
        assert [result.get("taskId") for result in reply.data["results"]] == [1, None, 2]
        assert in_threads == [1]
        assert (await api.post("/task/create", task(3))).code == 0
        assert in_threads == [1]


async def test_an_array_of_far_too_many_is_refused_in_little_time_and_memory() -> None:
    async with running_api(ROOMY) as api:
        body = b'{"tasks":[' + b"[]," * 300_000 + b"[]]}"
        tracemalloc.start()
        reply = await api.post("/task/batch", body)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert reply.status == 422
        assert "got 300001 of them" in reply.msg
        assert peak < 64 * 1_048_576


class CrowdedStore(MemoryStore):
    """A store that counts how many tasks of batches it has in hand, and keeps them
    waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.in_hand = self.most = 0
        self.may_go_on = trio.Event()

    async def create_tasks(
        self,
        tasks: Sequence[NewTask],
        nonce: NonceUse | None = None,
        *,
        atomic: bool = False,
        within_s: float | None = None,
    ) -> list[int | ExistingTask]:
        self.in_hand += len(tasks)
        self.most = max(self.most, self.in_hand)
        await self.may_go_on.wait()
        self.in_hand -= len(tasks)
        return await super().create_tasks(tasks, nonce, atomic=atomic, within_s=within_s)


async def test_single_creates_do_not_wait_for_many_batches() -> None:
    store = CrowdedStore()
    size = BATCHED_AT_ONCE // 4

    async def test(api: Api) -> None:
        async with trio.open_nursery() as nursery:
            for number in range(10):
                tasks = [task(number * size + each) for each in range(size)]
                nursery.start_soon(submit, api, tasks)
            await until(lambda: store.in_hand == BATCHED_AT_ONCE)
            assert (await api.post("/task/create", task(-1))).code == 0
            store.may_go_on.set()
        assert store.most == BATCHED_AT_ONCE
        assert api.kept() == (1, 10 * size + 1)

    with trio.fail_after(30):
        async with running_api(ROOMY, store=store) as api:
            await test(api)


class FullStore(MemoryStore):
    """A store that can't keep a batch."""

    async def create_tasks(
        self,
        tasks: Sequence[NewTask],
        nonce: NonceUse | None = None,
        *,
        atomic: bool = False,
        within_s: float | None = None,
    ) -> list[int | ExistingTask]:
        raise StoreUnavailable("the disk is full")


async def test_a_store_that_fails_is_told_with_503() -> None:
    async with running_api(store=FullStore()) as api:
        reply = await submit(api, [task(0)])
        assert (reply.status, reply.code) == (503, 503)
        assert "the disk is full" in reply.msg

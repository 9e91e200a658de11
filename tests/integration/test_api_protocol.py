"""What the four endpoints answer, over real sockets."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from taskd.clock import iso_utc
from taskd.delivery.attempt import AttemptResult
from taskd.delivery.progress import Progress
from taskd.domain.model import LeasedTask, Outcome, Phase, SuccessRule
from taskd.domain.signing import payload_digest, sign, verify
from tests.support.api import (
    ADMIN_KEY,
    ADMIN_SECRET,
    LINK_URL,
    NOW_S,
    TASK,
    Api,
    config_of,
    encode,
    request_bytes,
    running_api,
)
from tests.support.clocks import SteppableClock
from tests.support.node import Node, Script

pytestmark = pytest.mark.deadline(30)

_EMPTY_DETAIL = {
    "state": None,
    "trace_list": "null",
    "executed_file_name": None,
    "executed_function_name": None,
    "executed_function_line": None,
    "vars": None,
    "round": None,
    "elapsed": None,
}


@asynccontextmanager
async def api_at_work(script: Script) -> AsyncIterator[Api]:
    """An API whose node is at work, with scripted attempts."""
    node = Node(clock=SteppableClock(NOW_S * 1000))
    node.delivery.script = script
    async with node.running(), running_api(node=node) as api:
        yield api


async def test_create_answers_ids_once_the_task_is_kept(api: Api) -> None:
    reply = await api.post("/task/create", TASK)
    assert (reply.status, reply.code, reply.msg) == (200, 0, "ok!")
    task = await api.task()
    assert task is not None
    assert reply.data == {
        "taskId": task.id,
        "coroutine_id": task.id,
        "dueAt": "2021-07-16T06:59:39.000Z",
    }
    assert task.runtime == NOW_S * 1000
    assert task.timeout_ms == 5000
    assert reply.headers["content-type"] == "application/json"


async def test_a_repeated_task_no_is_refused_with_code_1_and_changes_nothing(api: Api) -> None:
    await api.post("/task/create", TASK)
    reply = await api.post("/task/create", TASK | {"name": "another", "timeout": 1})
    assert (reply.status, reply.code, reply.msg, reply.data) == (200, 1, "请勿重复提交!", [])
    assert "请勿重复提交!".encode() in reply.body
    task = await api.task()
    assert task is not None
    assert reply.headers["taskd-existing"] == f"{task.id} scheduled"
    assert task.name == "close order"
    assert api.kept() == (1, 1)
    await api.post("/task/cancel", {"taskNo": TASK["taskNo"]})
    again = await api.post("/task/create", TASK)
    assert again.headers["taskd-existing"] == f"{task.id} cancelled"


@pytest.mark.parametrize("how", [{}, {"User-Agent": "x" * 9000}], ids=["short", "long"])
async def test_the_task_that_is_there_is_named_however_long_the_head_is(
    api: Api, how: dict[str, str]
) -> None:
    created = await api.post("/task/create", TASK)
    body = encode(TASK)
    headers = {"Content-Type": "application/json"} | api.signed(body) | how
    reply = await api.raw(request_bytes("POST", "/task/create", headers, body))
    assert reply.code == 1
    assert reply.headers["taskd-existing"] == f"{created.data['taskId']} scheduled"


async def test_a_due_task_that_is_asked_for_again_is_running() -> None:
    started = trio.Event()

    async def script(_: LeasedTask, progress: Progress) -> AttemptResult:
        started.set()
        await trio.sleep_forever()
        raise AssertionError

    async with api_at_work(script) as api:
        number = (await api.post("/task/create", TASK)).data["taskId"]
        await started.wait()
        reply = await api.post("/task/create", TASK)
        assert reply.headers["taskd-existing"] == f"{number} running"
        (result,) = (await api.post("/task/batch", {"tasks": [TASK]})).data["results"]
        assert result["existing"] == {"taskId": number, "state": "running"}


async def test_task_nos_are_compared_byte_by_byte(api: Api) -> None:
    for number, task_no in enumerate(["a", "A", "a ", "ä", "a\u0308"], 1):
        reply = await api.post("/task/create", TASK | {"taskNo": task_no})
        assert reply.code == 0
        assert api.kept() == (1, number)


async def test_a_task_keeps_its_own_runtime_step_and_retry_total(api: Api) -> None:
    runtime = NOW_S + 3600
    values = TASK | {"runtime": runtime, "step": 0, "retryTotal": 10}
    assert (await api.post("/task/create", values)).code == 0
    task = await api.task()
    assert task is not None
    assert task.runtime == task.due_at == runtime * 1000
    assert task.retry_total == 10


async def test_a_runtime_in_the_past_means_now(api: Api) -> None:
    created = await api.post("/task/create", TASK | {"runtime": 0})
    assert created.code == 0
    assert created.data["dueAt"] == "2021-07-16T06:59:39.000Z"
    task = await api.task()
    assert task is not None
    assert (task.runtime, task.due_at) == (0, NOW_S * 1000)


async def test_what_was_asked_and_when_it_counts_are_told_apart(api: Api) -> None:
    """Eight hours behind: a client that takes its own clock for the server's."""
    wrong = "2021-07-15 22:59:39"
    created = await api.post("/task/create", TASK | {"runtime": wrong})
    (batched,) = (
        await api.post("/task/batch", {"tasks": [TASK | {"taskNo": "2", "runtime": wrong}]})
    ).data["results"]
    for task_no, told in (("order-1001", created.data), ("2", batched)):
        for _ in range(2):
            task = (await api.post("/task/detail", {"taskNo": task_no})).data["task"]
            assert task["runtime"] == "2021-07-15T22:59:39.000Z"
            assert task["dueAt"] == told["dueAt"] == "2021-07-16T06:59:39.000Z"
            # It has ended by the second look.
            await api.post("/task/cancel", {"taskNo": task_no})


async def test_between_attempts_a_task_is_due_at_the_next() -> None:
    async def script(_: LeasedTask, progress: Progress) -> AttemptResult:
        await trio.lowlevel.checkpoint()
        return AttemptResult(outcome=Outcome.REJECTED, http_status=500, error="no")

    async with api_at_work(script) as api:
        await api.post("/task/create", TASK | {"step": 60, "runtime": 5})

        async def detail() -> Any:  # noqa: ANN401 - JSON's
            return (await api.post("/task/detail", {"taskNo": "order-1001"})).data["task"]

        with trio.fail_after(10):
            while (task := await detail())["state"] != "retrying":
                await trio.sleep(0.01)
        assert task["dueAt"] > task["attempts"][0]["endedAt"]
        kept = await api.task()
        assert kept is not None
        assert kept.due_at is not None
        assert task["dueAt"] == iso_utc(kept.due_at)
        assert task["runtime"] == "1970-01-01T00:00:05.000Z"


@pytest.mark.parametrize(
    ("delay", "due_in_ms"),
    [(90, 90_000), (0, 0), (0.25, 250), ("90s", 90_000), ("30m", 1_800_000), ("2h", 7_200_000)],
)
async def test_a_delay_counts_from_the_servers_clock(
    api: Api, delay: object, due_in_ms: int
) -> None:
    created = await api.post("/task/create", TASK | {"delay": delay})
    due_at = NOW_S * 1000 + due_in_ms
    assert created.data["dueAt"] == iso_utc(due_at)
    task = await api.task()
    assert task is not None
    assert task.runtime == due_at
    refused = await api.post("/task/create", TASK | {"delay": delay, "runtime": NOW_S})
    assert (refused.status, refused.msg) == (
        422,
        "delay: must not be given together with runtime",
    )


async def test_wall_times_are_read_in_the_servers_timezone() -> None:
    async with running_api(config_of(timezone="Asia/Shanghai")) as api:
        values = TASK | {"runtime": "2021-07-17 08:00:00.250"}
        assert (await api.post("/task/create", values)).code == 0
        task = await api.task()
        assert task is not None
        assert task.due_at == 1_626_480_000_250


async def test_an_application_is_created_with_its_defaults() -> None:
    async with running_api(config_of(timezone="Asia/Shanghai")) as api:
        reply = await api.create_app({"appName": "帅的应用", "linkUrl": LINK_URL})
        assert (reply.status, reply.code, reply.msg) == (200, 0, "Ok!")
        app = await api.node.store.app_by_key(reply.data["appKey"])
        assert app is not None
        assert (app.name, app.link_url, app.step, app.retry_total) == ("帅的应用", LINK_URL, 5, 3)
        assert app.remark == "2021-07-16 14:59:39"
        assert app.success is SuccessRule.BODY


async def test_an_application_keeps_what_it_was_given(api: Api) -> None:
    values = {"appName": "a", "linkUrl": LINK_URL, "step": 3600, "retryTotal": 0, "remark": ""}
    values["success"] = "status"
    reply = await api.create_app(values)
    app = await api.node.store.app_by_key(reply.data["appKey"])
    assert app is not None
    assert (app.step, app.retry_total, app.remark) == (3600, 0, "")
    assert app.success is SuccessRule.STATUS


async def test_the_answer_of_application_create_is_a_worked_example_of_signing(api: Api) -> None:
    data = (await api.create_app({"appName": "a", "linkUrl": LINK_URL})).data
    assert list(data) == [
        "nonce",
        "timestamps",
        "signature",
        "appKey",
        "payload",
        "secretKey",
    ]
    assert len(data["appKey"]) == 16
    assert len(data["secretKey"]) == 32
    assert data["payload"] == payload_digest(b"")
    assert verify(
        data["secretKey"],
        data["timestamps"],
        data["nonce"],
        data["payload"],
        data["signature"],
    )
    headers = {name: data[name] for name in ("nonce", "timestamps", "signature", "payload")}
    reply = await api.get("/task/detail", headers=headers | {"app_key": data["appKey"]})
    # It is let in: what is missing is a query.
    assert reply.status == 422


async def test_the_protocols_vector_of_a_create_verifies(api: Api) -> None:
    body = (
        b'{"taskNo":"order-1001","content":"{\\"order\\":1001}","name":"close order",'
        b'"timeout":5000}'
    )
    headers = api.admin(body, timestamps="1626418779", nonce="S5D7zmW5HNnSiqf0")
    assert headers["signature"] == (
        "ZGE5ZjM1MGE1NzEzZWQ3YWU0MjA2MjE5YjNhODFhNmZmYTdkYjBmZmNlMmE0MGU3ZTAyNDYwODZiZDlmMmQ5Ng=="
    )
    # The vector's secret is the administrator's here, who may not create tasks.
    reply = await api.post("/task/create", body, headers=headers)
    assert reply.status == 403


async def test_the_protocols_vector_of_an_application_is_accepted(api: Api) -> None:
    body = '{"appName":"帅的应用","linkUrl":"http://127.0.0.1:9000/cb"}'.encode()
    headers = {
        "app-key": ADMIN_KEY,
        "nonce": "abcdefgh01234567",
        "timestamps": "1626418779",
        "payload": "1fe05b34ca180f1ffb8ee62e83ad49589025e14104eca5756c4115fcf9c9e86c",
        "signature": "MDA1ZTg1ZDRkZDdkNTQxZWM4NGRhN2FmOGNlZGNiOThlN2RjN2EyOGJkMWI4MWU5OGNlMTc5"
        "ZDEyODU4ZjNkOA==",
    }
    reply = await api.post("/application/create", body, headers=headers)
    assert (reply.status, reply.code) == (200, 0)


async def test_the_protocols_vector_of_a_get_is_accepted(api: Api) -> None:
    query = "coroutine_id=42"
    payload = payload_digest(query.encode())
    assert payload == "8f63a7027b98d7afac15c84b0f22d237485fce75cac1d5f3309d348485e493e6"
    timestamps, nonce = "2021-07-16 06:59:39", "nm33An1FX22SAjZK"
    assert sign(ADMIN_SECRET, timestamps, nonce, payload) == (
        "NGJkMTAzMTlkYjMzMWJhOGVmOWZjNGFkNzFhOTRkYmFmMzk2ZjhjZWU5YmU5OGY2MDk2YTZjNTIyZTI5MmQ2Yw=="
    )
    headers = api.signed(query.encode(), timestamps=timestamps, nonce=nonce)
    reply = await api.get("/task/detail", query, headers=headers)
    assert (reply.code, reply.data) == (0, _EMPTY_DETAIL)


async def test_a_waiting_task_is_cancelled_once_and_for_all(api: Api) -> None:
    created = await api.post("/task/create", TASK | {"runtime": NOW_S + 60})
    number = created.data["coroutine_id"]
    reply = await api.post("/task/cancel", {"coroutine_id": number})
    assert (reply.code, reply.msg) == (0, "ok!")
    assert reply.data == {
        "coroutine_id": number,
        "state": "cancelled",
        "delivery": "never_sent",
    }
    again = await api.post("/task/cancel", {"coroutine_id": number})
    assert (again.status, again.code, again.msg, again.data) == (200, 1, "Unknown!", [])


@pytest.mark.parametrize("name", ["coroutine_id", "taskId", "taskNo"])
async def test_a_task_is_cancelled_by_any_of_its_names(api: Api, name: str) -> None:
    number = (await api.post("/task/create", TASK | {"runtime": NOW_S + 60})).data["taskId"]
    wanted = {name: TASK["taskNo"] if name == "taskNo" else number}
    reply = await api.post("/task/cancel", wanted | {"id": 7})
    assert (reply.code, reply.data["coroutine_id"]) == (0, number)
    assert (await api.post("/task/cancel", wanted)).msg == "Unknown!"


@pytest.mark.parametrize("endpoint", ["/task/cancel", "/task/detail"])
@pytest.mark.parametrize(
    ("named", "field", "problem"),
    [
        ({}, "coroutine_id", "is required, or taskId or taskNo in its place"),
        ({"taskId": 1, "taskNo": "a"}, "taskNo", "must not be given together with taskId"),
        ({"coroutine_id": 1, "taskId": 1}, "taskId", "must not be given together with coroutine_"),
        ({"taskNo": 7}, "taskNo", "must be a string of 1 to 64 characters, got 7"),
        ({"taskNo": ""}, "taskNo", "must be a string of 1 to 64 characters"),
        ({"taskNo": "x" * 65}, "taskNo", "must be a string of 1 to 64 characters"),
        ({"taskNo": "a\nb"}, "taskNo", "must not contain control characters"),
        ({"taskId": "7"}, "taskId", 'must be an integer from 1 to 9007199254740991, got "7"'),
    ],
)
async def test_a_task_that_is_not_named_in_one_way_is_refused(
    api: Api, endpoint: str, named: dict[str, object], field: str, problem: str
) -> None:
    reply = await api.post(endpoint, named)
    assert (reply.status, reply.code) == (422, 422)
    assert reply.data["errors"][0]["field"] == field
    assert reply.msg.startswith(f"{field}: {problem}")


async def test_a_running_task_is_cancelled_with_the_word_of_its_phase() -> None:
    started = trio.Event()

    async def script(_: LeasedTask, progress: Progress) -> AttemptResult:
        progress.enter(Phase.SENDING)
        progress.enter(Phase.AWAITING_RESPONSE)
        started.set()
        await trio.sleep_forever()
        raise AssertionError

    async with api_at_work(script) as api:
        number = (await api.post("/task/create", TASK)).data["coroutine_id"]
        await started.wait()
        reply = await api.post("/task/cancel", {"coroutine_id": number})
        assert reply.data["delivery"] == "aborted_before_response"
        assert reply.data["state"] == "cancelled"


@pytest.mark.parametrize("ignored", [{}, {"id": 7, "service_id": "x"}])
async def test_a_cancel_of_no_task_is_unknown(api: Api, ignored: dict[str, object]) -> None:
    reply = await api.post("/task/cancel", {"coroutine_id": 42} | ignored)
    assert (reply.code, reply.msg) == (1, "Unknown!")


async def test_another_applications_task_is_answered_like_one_that_does_not_exist(api: Api) -> None:
    number = (await api.post("/task/create", TASK | {"runtime": NOW_S + 60})).data["taskId"]
    other = (await api.create_app({"appName": "b", "linkUrl": LINK_URL})).data
    keys = {"key": other["appKey"], "secret": other["secretKey"]}
    cancelled = await api.post("/task/cancel", {"coroutine_id": number}, **keys)
    assert (cancelled.code, cancelled.msg, cancelled.data) == (1, "Unknown!", [])
    for values in ({"coroutine_id": number}, {"taskId": number}, {"taskNo": "order-1001"}):
        seen = await api.post("/task/detail", values, **keys)
        assert (seen.code, seen.data) == (0, _EMPTY_DETAIL)
    assert (await api.post("/task/detail", {"coroutine_id": number})).data["task"] is not None


async def test_detail_of_a_waiting_task_shows_its_record_and_no_coroutine(api: Api) -> None:
    created = await api.post("/task/create", TASK | {"runtime": NOW_S + 60, "retryTotal": 1})
    number = created.data["taskId"]
    replies = [
        await api.get("/task/detail", f"coroutine_id={number}"),
        await api.get("/task/detail", f"taskId={number}&id=3&service_id=x"),
        await api.get("/task/detail", "taskNo=order%2D1001"),
        await api.post("/task/detail", {"coroutine_id": number, "service_id": 1}),
        await api.post("/task/detail", {"taskId": number}),
        await api.post("/task/detail", {"taskNo": "order-1001"}),
    ]
    for reply in replies:
        assert (reply.status, reply.code, reply.msg) == (200, 0, "ok!")
        assert reply.data == _EMPTY_DETAIL | {
            "state": "scheduled",
            "task": {
                "taskId": number,
                "taskNo": "order-1001",
                "name": "close order",
                "state": "scheduled",
                "phase": None,
                "node": None,
                "runtime": "2021-07-16T07:00:39.000Z",
                "dueAt": "2021-07-16T07:00:39.000Z",
                "timeout": 5000,
                "attempt": 0,
                "retryTotal": 1,
                "createdAt": "2021-07-16T06:59:39.000Z",
                "finishedAt": None,
                "linkUrl": LINK_URL,
                "delivery": None,
                "attempts": [],
            },
        }


async def test_detail_of_a_running_task_shows_its_coroutine() -> None:
    started = trio.Event()

    async def script(_: LeasedTask, progress: Progress) -> AttemptResult:
        progress.enter(Phase.CONNECTING)
        started.set()
        await trio.sleep_forever()
        raise AssertionError

    async with api_at_work(script) as api:
        number = (await api.post("/task/create", TASK)).data["taskId"]
        await started.wait()
        data = (await api.post("/task/detail", {"coroutine_id": number})).data
        assert data["state"] == "waiting"
        assert data["executed_file_name"].startswith("taskd/")
        assert data["executed_function_line"] > 0
        assert data["round"] >= 1
        assert data["elapsed"] >= 0
        frames = json.loads(data["trace_list"])
        assert all(frame.keys() == {"file", "line", "function"} for frame in frames)
        assert any(frame["function"] == "script" for frame in frames)
        assert data["task"]["state"] == "running"
        assert data["task"]["phase"] == "connecting"
        assert data["task"]["node"]
        assert data["task"]["attempt"] == 1


async def test_detail_of_an_ended_task_lists_its_attempts() -> None:
    async def script(task: LeasedTask, _: Progress) -> AttemptResult:
        await trio.lowlevel.checkpoint()
        if task.attempt == 1:
            return AttemptResult(outcome=Outcome.REJECTED, http_status=500, response="坏")
        return AttemptResult(outcome=Outcome.SUCCEEDED, http_status=200, response="success")

    async with api_at_work(script) as api:
        number = (await api.post("/task/create", TASK | {"step": 0})).data["taskId"]
        await api.node.ended(api.app, number)
        data = (await api.post("/task/detail", {"coroutine_id": number})).data
        assert data["state"] == "succeeded"
        assert data["trace_list"] == "null"
        first, second = data["task"]["attempts"]
        assert (first["attempt"], first["outcome"], first["httpStatus"]) == (1, "rejected", 500)
        assert first["response"] == "坏"
        assert first["endedAt"].endswith("Z")
        assert (second["attempt"], second["outcome"], second["error"]) == (2, "succeeded", None)
        assert data["task"]["finishedAt"] is not None


async def test_healthz_answers_whatever_the_scheduler_does(api: Api) -> None:
    reply = await api.get("/healthz", headers={})
    assert (reply.status, reply.code, reply.msg) == (200, 0, "ok!")
    assert reply.headers["content-type"] == "application/json"


async def test_readyz_says_why_it_is_not_ready(api: Api) -> None:
    reply = await api.get("/readyz", headers={})
    assert (reply.status, reply.code) == (503, 503)
    assert reply.msg.startswith("not ready: ")


async def test_readyz_is_ready_while_the_scheduler_runs() -> None:
    async def script(_: LeasedTask, __: Progress) -> AttemptResult:
        raise AssertionError

    async with api_at_work(script) as api:
        reply = await api.get("/readyz", headers={})
        assert (reply.status, reply.code, reply.msg) == (200, 0, "ok!")

"""What an operator sees of the API: request ids, logs, failures, readiness."""

from __future__ import annotations

import logging

import pytest
import trio

from taskd.api.endpoints import health
from taskd.domain.model import CancelDecision, NonceUse, TaskDetail, TaskState
from taskd.errors import StoreUnavailable
from taskd.service.service import CancelNotConfirmed
from taskd.stores.memory import MemoryStore
from tests.support.api import TASK, Api, running_api, until

pytestmark = pytest.mark.deadline(30)


async def test_every_answer_carries_a_request_id(api: Api) -> None:
    given = {"X-Request-Id": "abc-123_x.Y"}
    for path in ("/healthz", "/nowhere", "/task/create"):
        reply = await api.get(path, headers=given)
        assert reply.headers["x-request-id"] == "abc-123_x.Y"
        fresh = {(await api.get(path, headers={})).headers["x-request-id"] for _ in range(5)}
        assert len(fresh) == 5
    for bad in ("a b", "", "x" * 65, "<script>"):
        reply = await api.get("/task/create", headers={"X-Request-Id": bad})
        assert reply.headers["x-request-id"] not in {bad, ""}


async def test_each_request_is_logged_once_without_query_body_or_signature(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "taskd.api")
    async with running_api() as api:
        await api.post("/task/create", TASK)
        await api.get("/task/detail", "coroutine_id=7654321", headers={})
        await api.get("/healthz", headers={})
        await api.get("/nowhere?secret=1", headers={})

        def lines() -> list[logging.LogRecord]:
            return [record for record in caplog.records if record.message == "request"]

        await until(lambda: len(lines()) == 4)
        fields = [record.__dict__["fields"] for record in lines()]
        assert [(f["method"], f["path"], f["status"], f["code"]) for f in fields] == [
            ("POST", "/task/create", 200, 0),
            ("GET", "/task/detail", 401, 401),
            ("GET", "/healthz", 200, 0),
            ("GET", "/nowhere", 404, 404),
        ]
        assert [record.levelname for record in lines()] == ["DEBUG", "INFO", "DEBUG", "INFO"]
        assert fields[0]["app_key"] == api.app.app_key
        assert fields[0]["ms"] >= 0
        assert all(f["request_id"] for f in fields)
        for record in caplog.records:
            told = f"{record.message} {record.__dict__.get('fields')}"
            assert "7654321" not in told
            assert "order" not in told
            assert api.app.secret_key not in told


class BrokenStore(MemoryStore):
    """A store in which something is wrong."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    async def use_nonce(self, nonce: NonceUse) -> None:
        await trio.lowlevel.checkpoint()
        raise self.error


async def test_an_unexpected_error_is_logged_once_and_not_shown(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running_api(store=BrokenStore(RuntimeError("boom"))) as api:
        reply = await api.post("/task/cancel", {"coroutine_id": 1})
        assert (reply.status, reply.code, reply.data) == (500, 500, [])
        assert reply.headers["x-request-id"] in reply.msg
        assert b"boom" not in reply.body
        assert b"Traceback" not in reply.body
        assert (await api.get("/healthz", headers={})).status == 200
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 1
    assert errors[0].exc_info is not None
    assert errors[0].exc_info[1].args == ("boom",)  # type: ignore[union-attr]


async def test_an_unexpected_error_of_a_probe_is_answered_alike(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(_: health.Health) -> str | None:
        await trio.lowlevel.checkpoint()
        raise RuntimeError("boom")

    monkeypatch.setattr(health.Health, "_probe", broken)
    async with running_api() as api:
        reply = await api.get("/readyz", headers={})
        assert (reply.status, reply.code) == (500, 500)
        assert reply.headers["x-request-id"] in reply.msg
    assert len([record for record in caplog.records if record.levelno >= logging.ERROR]) == 1


async def test_a_store_that_is_not_available_is_503() -> None:
    async with running_api(store=BrokenStore(StoreUnavailable("database or disk is full"))) as api:
        reply = await api.post("/task/cancel", {"coroutine_id": 1})
        assert (reply.status, reply.code, reply.data) == (503, 503, [])
        assert reply.msg == "the store is not available: database or disk is full"


async def test_a_cancel_that_is_not_confirmed_is_503(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stuck(MemoryStore):
        async def request_cancel(
            self,
            app_id: int,
            task_id: int | None = None,
            *,
            task_no: str | None = None,
            now: int,
            within_s: float | None = None,
        ) -> CancelDecision:
            await trio.lowlevel.checkpoint()
            return CancelDecision(state=TaskState.RUNNING, task_id=task_id)

        async def task_detail(
            self, app_id: int, *, task_id: int | None = None, task_no: str | None = None
        ) -> TaskDetail | None:
            raise CancelNotConfirmed("the running attempt could not be confirmed as ended")

    async with running_api(store=Stuck()) as api:
        reply = await api.post("/task/cancel", {"coroutine_id": 1})
        assert (reply.status, reply.code) == (503, 503)
        assert reply.msg == "the running attempt could not be confirmed as ended"


async def test_the_store_is_probed_at_most_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    probes: list[float] = []

    async def probe(_: health.Health) -> str | None:
        probes.append(trio.current_time())
        await trio.sleep(0.05)
        return "no room"

    monkeypatch.setattr(health.Health, "_probe", probe)

    monkeypatch.setattr(health, "PROBE_EVERY_S", 600.0)  # the machine may pause
    async with running_api() as api:
        api.node.service._unready = lambda: None

        async def ask() -> None:
            reply = await api.get("/readyz", headers={})
            assert (reply.status, reply.msg) == (503, "not ready: no room")

        async with trio.open_nursery() as nursery:
            for _ in range(30):
                nursery.start_soon(ask)
        assert len(probes) == 1


async def test_what_costs_no_probe_is_told_at_once(api: Api) -> None:
    reason: str | None = None
    api.node.service._unready = lambda: reason
    assert (await api.get("/readyz", headers={})).status == 200
    reason = "the daemon is draining"
    reply = await api.get("/readyz", headers={})
    assert (reply.status, reply.msg) == (503, "not ready: the daemon is draining")


async def test_a_probe_that_hangs_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "PROBE_DEADLINE_S", 0.1)

    class Hanging(MemoryStore):
        async def probe(self) -> None:
            await trio.sleep_forever()

    async with running_api(store=Hanging()) as api:
        api.node.service._unready = lambda: None
        reply = await api.get("/readyz", headers={})
        assert reply.msg == "not ready: the store has not answered for 0.1 s"

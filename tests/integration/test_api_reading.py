"""Bodies are read without holding up everybody else, whoever sends how many of them."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import trio

from taskd.api.http import body_reader
from taskd.api.http.body_intake import MAX_BUFFERED, Buffered, TooMuchInHand
from taskd.api.wire import body
from taskd.api.wire.strict_json import parse_object
from taskd.config import Config
from taskd.domain.signing import payload_digest
from taskd.service.service import NewApp
from tests.support.api import TASK, Api, Headers, Reply, config_of, encode, running_api, until

pytestmark = pytest.mark.deadline(30)

OPEN = config_of(max_body=4 * 1024 * 1024, open_registration=True)
NEW_APP = {"appName": "an app", "linkUrl": "http://8.8.8.8/"}
LONG = body_reader.READ_AT_ONCE + 1


def padded(values: Mapping[str, object], size: int) -> bytes:
    """A body of so many bytes."""
    return encode(values).ljust(size)


@pytest.fixture
def api_config() -> Config:
    return OPEN


class Readers:
    """Stands in the way of bodies that are read in a thread, until they may go on."""

    def __init__(self) -> None:
        self.main = threading.get_ident()
        self.threads: list[int] = []
        self.begun: list[str] = []
        """The names in the bodies that are being read, or were."""
        self.blocks = False
        self._may_go = threading.Semaphore(0)

    def read(self, data: bytes, items: str | None = None) -> dict[str, object]:
        """In place of `parse_object`."""
        self.threads.append(threading.get_ident())
        values = parse_object(data, items)
        if self.threads[-1] != self.main and self.blocks:
            self.begun.append(str(values.get("appName") or values.get("taskNo")))
            assert self._may_go.acquire(timeout=60)
        return values

    def let_go(self, number: int = 1) -> None:
        self._may_go.release(number)

    @property
    def last_was_beside(self) -> bool:
        """Whether the last body was read in a thread."""
        return self.threads[-1] != self.main


@pytest.fixture
def readers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Readers]:
    found = Readers()
    monkeypatch.setattr(body, "parse_object", found.read)
    monkeypatch.setattr(body_reader, "AT_ONCE_S", 60.0)  # however busy this machine is
    yield found
    found.let_go(100)


ENDPOINTS: dict[str, dict[str, object]] = {
    "/application/create": {"appName": "a", "linkUrl": "http://8.8.8.8/"},
    "/task/create": TASK,
    "/task/batch": {"tasks": [TASK]},
    "/task/cancel": {"coroutine_id": 1},
    "/task/detail": {"coroutine_id": 1},
}


async def test_no_endpoint_is_missing_here(api: Api) -> None:
    assert api.server._router.routes.keys() == ENDPOINTS.keys()


def signed(api: Api, path: str, data: bytes) -> Headers:
    return api.admin(data) if path == "/application/create" else api.signed(data)


@pytest.mark.parametrize("path", ENDPOINTS)
async def test_every_endpoint_reads_a_long_body_beside_the_event_loop(
    api: Api, readers: Readers, path: str
) -> None:
    for size, beside in ((0, False), (LONG - 1, False), (LONG, True), (2_000_000, True)):
        data = padded(ENDPOINTS[path], size)
        reply = await api.post(path, data, headers=signed(api, path, data))
        assert reply.status == 200
        assert readers.last_was_beside is beside


@pytest.mark.parametrize("path", ENDPOINTS)
async def test_every_endpoint_refuses_a_long_body_as_it_does_a_short_one(
    api: Api, path: str
) -> None:
    for size in (10, LONG, 1_000_000):
        data = b"[" * 65 + b'"' + b'\\"' * (size // 2)
        reply = await api.post(path, data, headers=signed(api, path, data))
        assert (reply.status, reply.msg) == (
            400,
            "the body is not JSON: Unterminated string starting at character 65",
        )
        data = encode({"a" * 10: [1.5] * (size // 5)})
        headers = signed(api, path, data)
        assert (await api.post(path, data, headers=headers)).status == 422
        again = await api.post(path, data, headers=headers)
        assert again.msg.startswith("nonce: has been used already")


async def test_of_who_has_not_signed_less_is_read_on_the_event_loop(
    api: Api, readers: Readers
) -> None:
    for size, beside in ((body_reader.STRANGERS_AT_ONCE, False), (5000, True)):
        reply = await api.post("/application/create", padded(NEW_APP, size), headers={})
        assert reply.status == 200
        assert readers.last_was_beside is beside
    data = padded(NEW_APP, 5000)
    await api.post("/application/create", data, headers=api.admin(data))
    assert not readers.last_was_beside


class Crowd:
    """Requests under way, by the name in their body."""

    def __init__(self, api: Api, nursery: trio.Nursery) -> None:
        self.api = api
        self.replies: dict[str, Reply] = {}
        self._nursery = nursery

    def stranger(self, name: str, size: int = LONG) -> None:
        data = padded(NEW_APP | {"appName": name}, size)
        self._nursery.start_soon(self._post, name, "/application/create", data, {})

    def task(self, name: str, size: int = LONG, *, key: str = "", secret: str = "") -> None:
        data = padded(TASK | {"taskNo": name}, size)
        keys: dict[str, Any] = {"key": key, "secret": secret} if key else {}
        headers = self.api.signed(data, **keys)
        self._nursery.start_soon(self._post, name, "/task/create", data, headers)

    async def _post(self, name: str, path: str, data: bytes, headers: Headers) -> None:
        self.replies[name] = await self.api.post(path, data, headers=headers)


async def test_while_a_body_is_read_others_are_answered(api: Api, readers: Readers) -> None:
    readers.blocks = True
    async with trio.open_nursery() as nursery:
        crowd = Crowd(api, nursery)
        crowd.task("long")
        await until(lambda: bool(readers.begun))
        assert (await api.get("/healthz", headers={})).status == 200
        assert (await api.post("/task/create", TASK)).code == 0
        assert not crowd.replies
        readers.let_go()
    assert crowd.replies["long"].code == 0


async def test_strangers_with_much_to_read_keep_no_signer_waiting(
    api: Api, readers: Readers
) -> None:
    other = await api.node.service.create_app(
        NewApp(name="other", link_url="http://8.8.8.8/", step=0, retry_total=0, remark=""), None
    )
    readers.blocks = True
    async with trio.open_nursery() as nursery:
        crowd = Crowd(api, nursery)
        crowd.stranger("s0")
        await until(lambda: readers.begun == ["s0"])
        for number in range(1, 9):
            crowd.stranger(f"s{number}")
        await until(lambda: _waiting(api, None) == 8)
        crowd.task("a0", LONG + 1)
        crowd.task("a1", LONG + 1)
        await until(lambda: _waiting(api, api.app.id) == 2)
        crowd.task("b0", LONG, key=other.app_key, secret=other.secret_key)
        await until(lambda: _waiting(api, other.id) == 1)
        for count in range(1, 13):
            await until(lambda count=count: len(readers.begun) == count)  # type: ignore[misc]
            readers.let_go()
    # A stranger's second one comes after everyone's first.
    order = "".join(name[0] for name in readers.begun)
    assert set(order[1:4]) >= {"a", "b"}
    assert order[:6].count("a") == 2
    assert all(reply.code == 0 for reply in crowd.replies.values())


def _waiting(api: Api, whose: int | None) -> int:
    applications: Any = api.server._router.routes["/application/create"].methods["POST"]
    waiting: int = applications.__self__._reader._ordinary.turns.waiting(whose)
    return waiting


async def test_only_so_many_strangers_wait(
    readers: Readers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body_reader, "MAX_STRANGERS", 2)
    async with running_api(OPEN) as api:
        readers.blocks = True
        async with trio.open_nursery() as nursery:
            crowd = Crowd(api, nursery)
            for number in range(3):
                crowd.stranger(f"s{number}")
                await until(lambda: bool(readers.begun))
            await until(lambda: _waiting(api, None) == 2)
            refused = await api.post("/application/create", padded(NEW_APP, LONG), headers={})
            assert (refused.status, refused.headers["retry-after"]) == (503, "1")
            assert refused.msg == "too many large unsigned requests are in hand; try again"
            crowd.task("a0")
            await until(lambda: _waiting(api, api.app.id) == 1)
            short = await api.post("/application/create", NEW_APP, headers={})
            assert short.code == 0
            readers.let_go(4)
        assert all(reply.code == 0 for reply in crowd.replies.values())


async def test_longer_bodies_than_usual_keep_no_other_waiting(
    readers: Readers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body_reader, "LONG", LONG)
    async with running_api(OPEN) as api:
        readers.blocks = True
        async with trio.open_nursery() as nursery:
            crowd = Crowd(api, nursery)
            crowd.task("longer", LONG + 1)
            await until(lambda: readers.begun == ["longer"])
            crowd.task("long", LONG)
            await until(lambda: readers.begun == ["longer", "long"])
            readers.let_go(2)


async def test_the_end_does_not_wait_for_a_body_that_is_being_read(
    api: Api, readers: Readers
) -> None:
    readers.blocks = True
    async with trio.open_nursery() as nursery:

        async def forsaken(name: str) -> None:
            with pytest.raises((EOFError, trio.BrokenResourceError)):
                await api.post("/task/create", padded(TASK | {"taskNo": name}, LONG))

        for number in range(3):
            nursery.start_soon(forsaken, f"t{number}")
        await until(lambda: bool(readers.begun) and _waiting(api, api.app.id) == 2)
        with trio.fail_after(10):
            await api.server.close(0.05)
        assert not api.server.connections
    readers.let_go()
    assert api.kept() == (1, 0)


async def test_the_digest_of_a_long_body_is_made_beside_the_event_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads: list[int] = []

    def noted(data: bytes) -> str:
        threads.append(threading.get_ident())
        return payload_digest(data)

    monkeypatch.setattr(body_reader, "payload_digest", noted)
    async with running_api(OPEN) as api:
        for number, size in enumerate(
            (10, body_reader.HASHED_AT_ONCE, body_reader.HASHED_AT_ONCE + 1)
        ):
            data = padded(TASK | {"taskNo": str(number)}, size)
            assert (await api.post("/task/create", data)).code == 0
        data = padded(TASK, body_reader.HASHED_AT_ONCE + 1)
        reply = await api.post("/task/create", data + b" ", headers=api.signed(data))
        assert (reply.status, reply.msg.partition(":")[0]) == (401, "payload")
        main = threading.get_ident()
        assert [thread == main for thread in threads] == [True, True, False, False]


def test_one_sender_leaves_room_to_others_whoever_holds_how_much() -> None:
    buffered = Buffered()
    piece = MAX_BUFFERED // 1000
    held = []
    for whose in ("a", None, "b", "c", "d"):
        before = buffered.held
        with contextlib.suppress(TooMuchInHand):
            while True:
                buffered.take(piece, whose)
        held.append((buffered.held - before) // piece)
    assert held == [800, 160, 32, 7, 1]
    buffered.give(800 * piece, "a")
    for _ in range(300):
        buffered.take(piece, "c")


def test_what_was_given_back_is_not_remembered() -> None:
    buffered = Buffered()
    for whose in range(100):
        buffered.take(10, whose)
        buffered.give(10, whose)
    assert buffered.held == 0
    assert not buffered._held_of


async def test_more_values_than_can_be_read_in_a_moment_are_refused(api: Api) -> None:
    many = b"[" + b"[]," * 700_000 + b"[]]"
    data = b'{"taskNo":"a","name":"a","timeout":1,"content":' + many + b"}"
    reply = await api.post("/task/create", data)
    assert (reply.status, reply.msg) == (422, "the body holds more than 1000000 values")
    data = encode(TASK | {"content": many.decode()})
    reply = await api.post("/task/create", data)
    assert reply.status == 422
    assert reply.msg.endswith("JSON value but null: it holds more than 1000000 values")
    data = encode(TASK | {"content": json.dumps("[," * 1_000_000)})
    assert (await api.post("/task/create", data)).code == 0

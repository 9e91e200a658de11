"""No signed request is answered while its nonce may be used again."""

from __future__ import annotations

import itertools
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from taskd.api.app import Api, create_api
from taskd.api.authentication import Authenticator
from taskd.api.entrances import Creating, SpentByWrite, SpentFirst
from taskd.api.http.request import Request
from taskd.api.http.router import Entrance, Route, Router
from taskd.api.wire.envelope import Answer, Refusal, done
from taskd.domain import signing
from taskd.domain.model import App
from taskd.service.service import NewApp
from tests.support.api import (
    ADMIN_KEY,
    ADMIN_SECRET,
    LINK_URL,
    NOW_S,
    TASK,
    StoppedClock,
    config_of,
    encode,
)
from tests.support.node import Node

_PATH = "/task/made-up"
_NUMBERS = itertools.count()
_BODIES = {
    "/application/create": encode({"appName": "a", "linkUrl": LINK_URL}),
    "/task/create": encode(TASK),
    "/task/batch": encode({"tasks": [TASK]}),
}


class Forgetful:
    """An entrance that finds out who has signed, and leaves it at that."""

    def __init__(self, auth: Authenticator) -> None:
        self._auth = auth

    async def identify(self, request: Request) -> None:
        await self._auth.identify(request)

    async def answer(
        self, request: Request, endpoint: Callable[[Request, None], Awaitable[Answer]]
    ) -> Answer:
        await self._auth.authenticate(request)
        return await endpoint(request, None)


class House:
    """A node's API without a server, and an application."""

    def __init__(self) -> None:
        self.node = Node(clock=StoppedClock(NOW_S * 1000))
        config = config_of()
        self.api: Api = create_api(
            self.node.service, config, self.node.clock, check_link_url=lambda _: None
        )
        self.auth = Authenticator(self.node.service, config, self.node.clock)
        self.service = self.node.service
        self.calls = 0
        self.app: App | None = None

    async def sign(
        self, path: str, body: bytes, *, method: str = "POST", query: bytes = b""
    ) -> Callable[[], Request]:
        """The same signed request, each time it is called."""
        self.app = self.app or await self.service.create_app(
            NewApp(name="a", link_url=LINK_URL, step=5, retry_total=3, remark=""), None
        )
        key, secret = self.app.app_key, self.app.secret_key
        if path == "/application/create":
            key, secret = ADMIN_KEY, ADMIN_SECRET
        headers = signing.sign_headers(
            key,
            secret,
            query or body,
            now_ms=NOW_S * 1000,
            nonce=f"nonce-{next(_NUMBERS):012d}",
        )
        pairs = {name.encode(): value.encode() for name, value in headers.items()}

        def request() -> Request:
            return Request(
                method=method,
                path=path,
                query=query,
                headers=pairs | {b"content-type": b"application/json"},
                conflicts=frozenset(),
                body=body,
                id="r",
            )

        return request

    def router(self, entrance: Entrance[Any], endpoint: Callable[..., Awaitable[Answer]]) -> Router:
        """The API's router, with one more path."""
        made = self.api.router
        route = Route({"POST": endpoint}, entrance)
        return Router(
            routes={**made.routes, _PATH: route},
            pages=made.pages,
            draining=made.draining,
            max_body=made.max_body,
            log=made.log,
        )

    async def act(self, _request: Request, _what: object) -> Answer:
        """An endpoint that does something, and asks nothing about nonces."""
        self.calls += 1
        return done({"calls": self.calls})


async def statuses(router: Router, request: Callable[[], Request]) -> list[int]:
    """The same request twice."""
    return [int((await router.answer(request()))[0].status) for _ in range(2)]


async def test_an_answer_is_a_500_where_nothing_has_used_the_nonce_up() -> None:
    house = House()
    router = house.router(Forgetful(house.auth), house.act)
    answer, body = await router.answer((await house.sign(_PATH, b"{}"))())
    assert (answer.status, json.loads(body)["data"]) == (500, [])


async def test_an_endpoint_is_not_entered_again_with_a_used_nonce() -> None:
    house = House()
    router = house.router(SpentFirst(house.auth, house.service), house.act)
    assert await statuses(router, await house.sign(_PATH, b"{}")) == [200, 401]
    assert house.calls == 1


async def test_a_nonce_that_no_write_took_is_used_up_before_the_answer() -> None:
    house = House()
    router = house.router(SpentByWrite(house.auth, house.service), house.act)
    assert await statuses(router, await house.sign(_PATH, b"{}")) == [200, 401]


@pytest.mark.parametrize("kind", [SpentFirst, SpentByWrite])
async def test_a_refusal_uses_the_nonce_up(kind: type[SpentFirst | SpentByWrite]) -> None:
    async def refuse(_request: Request, _what: object) -> Answer:
        raise Refusal(422, "no")

    house = House()
    router = house.router(kind(house.auth, house.service), refuse)
    assert await statuses(router, await house.sign(_PATH, b"{}")) == [422, 401]


async def test_a_nonce_is_taken_once() -> None:
    async def twice(_request: Request, creating: Creating) -> Answer:
        await house.service.use_nonce(creating.nonce.take())
        with pytest.raises(RuntimeError, match="used up once"):
            creating.nonce.take()
        return done([])

    house = House()
    router = house.router(SpentByWrite(house.auth, house.service), twice)
    assert await statuses(router, await house.sign(_PATH, b"{}")) == [200, 401]


async def test_each_signed_path_refuses_what_comes_again() -> None:
    house = House()
    for path, route in house.api.router.routes.items():
        for method in route.methods:
            body, query = _BODIES.get(path, b'{"coroutine_id":1}'), b""
            if method == "GET":
                body, query = b"", b"coroutine_id=1"
            request = await house.sign(path, body, method=method, query=query)
            assert await statuses(house.api.router, request) == [200, 401], (method, path)

"""The signing headers, without a server."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

import pytest
import trio
from hypothesis import example, given
from hypothesis import strategies as st

from taskd.api.authentication import Authenticator
from taskd.api.http.request import Caller, Request
from taskd.api.wire.envelope import Unauthorized
from taskd.config import Config
from taskd.domain import signing
from taskd.domain.model import App, NonceUse
from taskd.service.service import NewApp
from taskd.stores.memory import MemoryStore
from tests.support.api import ADMIN_KEY, ADMIN_SECRET, NOW_S, StoppedClock, config_of
from tests.support.node import Node

_NAMES = ["app_key", "app-key", "nonce", "timestamps", "signature", "payload"]
_VALUES = st.binary(max_size=90) | st.sampled_from(
    [
        b"admin",
        b"0123456789abcdef",
        b"cb-0123456789abcdef",
        b"1626418779",
        b"2021-07-16 06:59:39",
        b"A" * 86 + b"==",
        b"0" * 64,
    ]
)


def request_of(pairs: list[tuple[bytes, bytes]], body: bytes = b"") -> Request:
    headers = dict(pairs)
    conflicts = frozenset(name for name, value in pairs if headers[name] != value)
    return Request(
        method="POST",
        path="/task/create",
        query=b"",
        headers=headers,
        conflicts=conflicts,
        body=body,
        id="r",
    )


def signed_request(key: str, secret: str, body: bytes = b"", **overrides: str) -> Request:
    headers = signing.sign_headers(key, secret, body, now_ms=NOW_S * 1000, nonce="0123456789abcdef")
    return request_of([(n.encode(), v.encode()) for n, v in (headers | overrides).items()], body)


async def authenticate(request: Request, config: Config | None = None) -> Caller:
    """What an authenticator over an empty store makes of a request."""
    node = Node(clock=StoppedClock(NOW_S * 1000))
    auth = Authenticator(node.service, config or config_of(), node.clock)
    return await auth.authenticate(request)


@given(
    st.lists(st.tuples(st.sampled_from(_NAMES).map(str.encode), _VALUES), max_size=8),
    st.sampled_from(["digest", "opaque"]),
)
@example([(name.encode(), b"\xff") for name in _NAMES], "digest")
def test_headers_of_any_kind_are_refused_in_one_sentence(
    pairs: list[tuple[bytes, bytes]], payload: str
) -> None:
    with pytest.raises(Unauthorized) as caught:
        trio.run(authenticate, request_of(pairs), config_of(payload=payload))
    assert caught.value.answer.status == 401
    assert "\n" not in caught.value.answer.msg
    assert len(caught.value.answer.msg) < 200


async def test_the_administrators_signature_makes_the_administrator() -> None:
    caller = await authenticate(signed_request(ADMIN_KEY, ADMIN_SECRET, b"body"))
    assert caller == Caller(
        None,
        NonceUse(
            app_key=ADMIN_KEY,
            nonce="0123456789abcdef",
            expires_at=NOW_S * 1000 + 600_000,
            signed_at=NOW_S * 1000,
            signed_latest=NOW_S * 1000,
        ),
        signing.payload_digest(b"body"),
    )


async def test_a_nonce_is_refused_for_twice_the_window() -> None:
    caller = await authenticate(signed_request(ADMIN_KEY, ADMIN_SECRET), config_of(window=10))
    assert caller.nonce.expires_at == NOW_S * 1000 + 20_000


@pytest.mark.parametrize(
    "change",
    [
        {"timestamps": "1626418780"},
        {"nonce": "0123456789abcdee"},
        {"payload": "0" * 64},
        {"signature": "A" * 86 + "=="},
        {"app_key": "Admin"},
    ],
)
async def test_every_header_but_the_signature_is_signed(change: dict[str, str]) -> None:
    with pytest.raises(Unauthorized, match="app_key or signature: "):
        await authenticate(signed_request(ADMIN_KEY, ADMIN_SECRET, b"", **change))


async def test_an_unknown_key_costs_the_hmac_that_a_known_one_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    verified: list[str] = []
    verify = signing.verify

    def counting(secret: str, *signed: str) -> bool:
        verified.append(secret)
        return verify(secret, *signed)

    monkeypatch.setattr(signing, "verify", counting)

    node = Node(clock=StoppedClock(NOW_S * 1000))
    auth = Authenticator(node.service, config_of(admin_secret=None), node.clock)
    new = NewApp(name="a", link_url="http://x/", step=0, retry_total=0, remark="")
    app = await node.service.create_app(new, None)
    for key in (app.app_key, "nobody", ADMIN_KEY):
        with pytest.raises(Unauthorized):
            await auth.authenticate(signed_request(key, "wrong"))
    assert len(verified) == 3
    assert all(len(secret) == 32 for secret in verified)


class CountingStore(MemoryStore):
    """Says how often apps were read, and knows none before it was read."""

    def __init__(self) -> None:
        super().__init__()
        self.known: set[str] = set()
        self.asked: list[set[str]] = []

    def known_app(self, app_key: str) -> App | None:
        return super().known_app(app_key) if app_key in self.known else None

    async def apps_by_key(self, app_keys: Collection[str]) -> Mapping[str, App]:
        self.asked.append(set(app_keys))
        await trio.sleep(0.01)
        found = await super().apps_by_key(app_keys)
        self.known.update(found)
        return found


async def on_counting_store() -> tuple[Authenticator, CountingStore, App]:
    store = CountingStore()
    node = Node(store=store, clock=StoppedClock(NOW_S * 1000))
    new = NewApp(name="a", link_url="http://x/", step=0, retry_total=0, remark="")
    app = await node.service.create_app(new, None)
    return Authenticator(node.service, config_of(), node.clock), store, app


async def test_every_refusal_reads_the_store_once_and_what_is_right_does_not() -> None:
    auth, store, app = await on_counting_store()
    right = signed_request(app.app_key, app.secret_key)
    assert (await auth.identify(right)).app == app  # created elsewhere, or long ago
    assert len(store.asked) == 1
    assert (await auth.identify(right)).app == app
    assert len(store.asked) == 1
    for key in (app.app_key, "nobody", ADMIN_KEY, "nobody", app.app_key):
        store.asked.clear()
        with pytest.raises(Unauthorized, match=r"^app_key or signature: "):
            await auth.identify(signed_request(key, "wrong"))
        assert store.asked == [{key}]
    admin = await auth.identify(signed_request(ADMIN_KEY, ADMIN_SECRET))
    assert admin.app is None
    assert len(store.asked) == 1


async def test_an_app_is_accepted_the_moment_after_its_key_was_unknown() -> None:
    auth, store, app = await on_counting_store()
    await store.create_app(dataclasses.replace(app, app_key="taken"))
    request = signed_request("fresh", app.secret_key)
    for _ in range(3):
        with pytest.raises(Unauthorized):
            await auth.identify(request)
    created = await store.create_app(dataclasses.replace(app, app_key="fresh"))
    assert (await auth.identify(request)).app == created


async def test_many_strangers_read_the_store_no_more_often_than_a_few() -> None:
    auth, store, _ = await on_counting_store()
    refused: list[str] = []

    async def ask(key: str) -> None:
        with pytest.raises(Unauthorized):
            await auth.identify(signed_request(key, "wrong"))
        refused.append(key)

    async with trio.open_nursery() as nursery:
        for number in range(300):
            nursery.start_soon(ask, f"nobody-{number}")
    assert len(refused) == 300
    assert len(store.asked) <= 3


async def test_a_secret_shows_in_no_representation() -> None:
    caller = await authenticate(signed_request(ADMIN_KEY, ADMIN_SECRET))
    assert ADMIN_SECRET not in repr(caller)
    assert b"content" not in repr(request_of([], b"content")).encode()

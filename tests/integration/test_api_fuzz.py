"""Whatever comes, the API answers with an envelope, and never with a 500."""

from __future__ import annotations

import itertools
import json

import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.api import TASK, Api, Reply, encode, request_bytes, running_api

Sent = tuple[str, str, str, dict[str, str], bytes, bool]
"""Method, path, query, headers, body, and whether it is to be signed."""

_PATHS = st.sampled_from(
    [
        *("/application/create", "/task/create", "/task/batch", "/task/cancel", "/task/detail"),
        *("/healthz", "/x"),
    ]
)
_METHODS = st.sampled_from(["GET", "POST", "PUT", "DELETE", "FOO"])
_FIELDS = st.sampled_from(
    [*TASK, "coroutine_id", "taskId", "runtime", "appName", "linkUrl", "step", "remark", "id"]
)
_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["2021-03-05 12:00:00", "http://127.0.0.1/", "{}", "[1]"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
_BODIES = (
    st.binary(max_size=300)
    | st.dictionaries(_FIELDS, _JSON, max_size=5).map(lambda values: json.dumps(values).encode())
    | st.dictionaries(_FIELDS, _JSON, max_size=3).map(lambda values: encode(TASK | values))
    | st.lists(_JSON | st.dictionaries(_FIELDS, _JSON).map(lambda v: TASK | v), max_size=3).map(
        lambda tasks: json.dumps({"tasks": tasks}).encode()
    )
)
_HEADER_TEXT = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF), max_size=90).map(
    str.strip
)
_HEADERS = st.dictionaries(
    st.sampled_from(
        [
            "app_key",
            "app-key",
            "nonce",
            "timestamps",
            "signature",
            "payload",
            "X-Request-Id",
            "Content-Type",
            "Content-Encoding",
            "Accept",
        ]
    ),
    _HEADER_TEXT,
    max_size=6,
)
_QUERIES = st.text(
    st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="#"), max_size=60
) | st.sampled_from(["coroutine_id=1", "taskNo=a", "taskId=%31", "id=1&taskNo=%F0%9F%98%80"])

_ALLOWED = {200, 400, 401, 403, 404, 405, 413, 415, 422}
_settings = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def ask(requests: list[Sent]) -> None:
    """Send requests on one connection; each must get its answer."""

    async def main() -> None:
        with trio.fail_after(30):
            async with running_api() as api:
                for request in requests:
                    check(await one(api, request))

    trio.run(main)


async def one(api: Api, request: Sent) -> Reply:
    method, path, query, headers, body, sign = request
    target = f"{path}?{query}" if query else path
    signed: dict[str, str] = {}
    if sign:
        data = query.encode() if method == "GET" else body
        admin = path.startswith("/application")
        signed = api.admin(data) if admin else api.signed(data)
        signed["Content-Type"] = "application/json"
        headers = {name: value for name, value in headers.items() if name not in signed}
    return await api.raw(request_bytes(method, target, signed | headers, body))


def check(reply: Reply) -> None:
    assert reply.status in _ALLOWED, reply
    assert reply.code == (reply.status if reply.status != 200 else reply.code)
    assert reply.code in _ALLOWED | {0, 1}
    assert "\n" not in reply.msg
    assert reply.headers["x-request-id"]
    if reply.status == 422:
        assert reply.data["errors"]


@_settings
@given(
    st.lists(
        st.tuples(_METHODS, _PATHS, _QUERIES | st.just(""), _HEADERS, _BODIES, st.booleans()),
        min_size=1,
        max_size=4,
    )
)
def test_any_request_is_answered_in_the_envelope(
    requests: list[Sent],
) -> None:
    ask(requests)


@_settings
@given(st.lists(st.tuples(_PATHS, _BODIES), min_size=1, max_size=6))
def test_any_signed_body_is_answered_in_the_envelope(
    requests: list[tuple[str, bytes]],
) -> None:
    ask([("POST", path, "", {}, body, True) for path, body in requests])


@_settings
@given(st.lists(_QUERIES, min_size=1, max_size=6))
def test_any_signed_query_is_answered_in_the_envelope(queries: list[str]) -> None:
    ask([("GET", "/task/detail", query, {}, b"", True) for query in queries])


@_settings
@given(st.lists(st.binary(min_size=1, max_size=400), min_size=1, max_size=5))
def test_any_bytes_leave_the_server_as_it_was(chunks: list[bytes]) -> None:
    async def main() -> None:
        with trio.fail_after(30):
            async with running_api() as api:
                for begins_well in (False, True):
                    wire = await api.connect()
                    start = [b"POST /task/create HTTP/1.1\r\nHost: x\r\n"] if begins_well else []
                    try:
                        for chunk in itertools.chain(start, chunks):
                            await wire.send(chunk)
                    except trio.BrokenResourceError:
                        pass
                    await trio.aclose_forcefully(wire.stream)
                check(await api.get("/healthz", headers={}))

    trio.run(main)

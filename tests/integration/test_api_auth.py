"""Who is let in, over real sockets."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
import trio

from taskd.stores.sqlite.store import SQLiteStore
from tests.support.api import (
    ADMIN_KEY,
    LINK_URL,
    NOW_S,
    TASK,
    Api,
    config_of,
    encode,
    request_bytes,
    running_api,
)

pytestmark = pytest.mark.deadline(30)

_NAMES = ("app_key", "nonce", "timestamps", "signature", "payload")
_BODY = encode(TASK)
_APPLICATION = {"appName": "a", "linkUrl": LINK_URL}


@pytest.mark.parametrize("name", _NAMES)
async def test_every_signing_header_is_required(api: Api, name: str) -> None:
    headers = api.signed(_BODY)
    del headers[name]
    reply = await api.post("/task/create", _BODY, headers=headers)
    assert (reply.status, reply.code) == (401, 401)
    # What has become of the only name with an underscore is well known.
    dropped = name == "app_key"
    assert reply.msg.startswith(f"the header {name} is missing")
    assert ("drop names with an underscore: send app-key" in reply.msg) == dropped
    assert api.kept() == (1, 0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("app_key", "with space"),
        ("app_key", "x" * 65),
        ("nonce", "short"),
        ("nonce", "x" * 65),
        ("nonce", "cb-0123456789abcdef"),
        ("nonce", "0123456789abcde!"),
        ("nonce", "０１２３４５６７８９abcdef"),
        ("timestamps", "162641877"),
        ("timestamps", "16264187790"),
        ("timestamps", "1626418779.0"),
        ("timestamps", "+626418779"),
        ("timestamps", "2021-07-16T06:59:39"),
        ("timestamps", "2021-07-16 06:59:39.000"),
        ("timestamps", "2021-7-16 06:59:39"),
        ("timestamps", "2021-02-30 06:59:39"),
        ("signature", "x" * 88),
        ("signature", "MDE="),
        ("payload", "A" * 64),
        ("payload", "0" * 63),
    ],
)
async def test_a_malformed_header_is_refused_by_name(api: Api, name: str, value: str) -> None:
    headers = api.signed(_BODY) | {name: value.encode().decode("latin-1")}
    reply = await api.post("/task/create", _BODY, headers=headers)
    assert reply.status == 401
    assert reply.msg.startswith(f"the header {name} is malformed: ")


@pytest.mark.parametrize("name", _NAMES)
async def test_a_header_given_twice_with_different_values_is_refused(api: Api, name: str) -> None:
    for order in (1, -1):
        headers = api.signed(_BODY)
        lines = [(name, headers[name]), (name, "0" * 64)][::order]
        rest = {"Content-Type": "application/json"} | headers
        del rest[name]
        twice = "".join(f"{key}: {value}\r\n" for key, value in lines)
        head, end, body = request_bytes("POST", "/task/create", rest, _BODY).partition(b"\r\n\r\n")
        reply = await api.raw(head + b"\r\n" + twice.encode() + end[2:] + body)
        assert reply.status == 401
        assert reply.msg == (
            f"the header {name} is malformed: it is given twice, with different values"
        )


async def test_both_spellings_of_app_key_must_agree(api: Api) -> None:
    headers = api.signed(_BODY)
    hyphened = {"app-key": headers.pop("app_key")} | headers
    accepted = await api.post(
        "/task/create", _BODY, headers={"Content-Type": "application/json"} | hyphened
    )
    assert accepted.code == 0
    headers = api.signed(_BODY)
    same = headers | {"app-key": headers["app_key"]}
    assert (await api.post("/task/create", _BODY, headers=same)).code == 1
    headers = api.signed(_BODY)
    other = headers | {"app-key": "another"}
    reply = await api.post("/task/create", _BODY, headers=other)
    assert reply.status == 401
    assert "app_key is malformed: it is given twice" in reply.msg


@pytest.mark.parametrize("off_s", [-301, 301, -86_400])
async def test_a_timestamp_outside_the_window_is_refused(off_s: int) -> None:
    async with running_api(config_of(timezone="Asia/Shanghai")) as api:
        reply = await api.post("/task/create", TASK, timestamps=str(NOW_S + off_s))
        assert reply.status == 401
        assert reply.msg == (
            "timestamps: is more than 300 s from the server's clock; wall times are those of the "
            "server's timezone, Asia/Shanghai, where it is 2021-07-16 14:59:39 now, which is "
            "1626418779 in Unix seconds"
        )


@pytest.mark.parametrize(
    ("timestamps", "hint"),
    [
        ("1626418779123", "(thirteen digits are milliseconds)"),
        ("2021-07-16T06:59:39Z", "where it is 2021-07-16 06:59:39 now"),
        ("now", "which is 1626418779 in Unix seconds"),
    ],
)
async def test_a_malformed_timestamp_is_told_what_it_should_be(
    api: Api, timestamps: str, hint: str
) -> None:
    reply = await api.post("/task/create", TASK, timestamps=timestamps)
    assert reply.status == 401
    assert reply.msg.startswith("the header timestamps is malformed: it must be ten digits")
    assert hint in reply.msg


@pytest.mark.parametrize(
    ("signature", "hint"),
    [
        (base64.b64encode(b"x" * 32).decode(), "write these as hexadecimal digits first"),
        ("0f" * 32, "their base64 is what counts"),
        ("x", "hexadecimal digits"),
    ],
)
async def test_half_a_signature_is_told_what_it_lacks(api: Api, signature: str, hint: str) -> None:
    reply = await api.post("/task/create", TASK, signature=signature)
    assert reply.status == 401
    assert hint in reply.msg


@pytest.mark.parametrize("off_s", [-300, 300])
async def test_a_timestamp_at_the_windows_edge_is_accepted(api: Api, off_s: int) -> None:
    assert (await api.post("/task/create", TASK, timestamps=str(NOW_S + off_s))).code == 0


async def test_a_wall_timestamp_is_read_in_the_servers_timezone() -> None:
    async with running_api(config_of(timezone="Asia/Shanghai")) as api:
        assert (await api.post("/task/create", TASK, timestamps="2021-07-16 14:59:39")).code == 0
        reply = await api.post("/task/create", TASK, timestamps="2021-07-16 06:59:39")
        assert reply.status == 401


async def test_either_reading_of_an_ambiguous_timestamp_counts() -> None:
    with trio.fail_after(30):
        async with running_api(config_of(timezone="Europe/Berlin")) as api:
            # 02:30 on 2021-10-31 came twice: at 00:30 and at 01:30 UTC.
            for step_s in (1_635_640_200 - NOW_S, 3600):
                api.clock.step(step_s * 1000)
                reply = await api.post("/task/create", TASK, timestamps="2021-10-31 02:30:00")
                assert reply.status == 200


async def test_a_request_of_an_ambiguous_time_is_not_taken_again_an_hour_later() -> None:
    with trio.fail_after(30):
        async with running_api(config_of(timezone="Europe/Berlin")) as api:
            api.clock.step((1_635_640_200 - NOW_S) * 1000)
            headers = api.signed(_BODY, timestamps="2021-10-31 02:30:00")
            assert (await api.post("/task/create", _BODY, headers=headers)).status == 200
            api.clock.step(3_600_000)
            await api.node.engine.retention.purge_nonces()
            reply = await api.post("/task/create", _BODY, headers=headers)
            assert (reply.status, reply.msg[:6]) == (401, "nonce:")


async def test_an_unknown_key_and_a_wrong_signature_are_one_answer(api: Api) -> None:
    unknown = await api.post("/task/create", TASK, key="nobody")
    wrong = await api.post("/task/create", TASK, secret="x" * 32)
    assert unknown.status == wrong.status == 401
    assert unknown.body == wrong.body
    assert api.kept() == (1, 0)


async def test_a_changed_body_is_refused(api: Api) -> None:
    headers = api.signed(_BODY)
    reply = await api.post("/task/create", _BODY + b" ", headers=headers)
    assert reply.status == 401
    assert reply.msg == "payload: is not the SHA-256 of the body that arrived"
    assert api.kept() == (1, 0)


async def test_a_changed_body_stays_refused_for_what_it_is(api: Api) -> None:
    headers = api.signed(_BODY)
    for _ in range(2):
        reply = await api.post("/task/create", _BODY + b" ", headers=headers)
        assert reply.msg == "payload: is not the SHA-256 of the body that arrived"


async def test_a_changed_query_is_refused(api: Api) -> None:
    headers = api.signed(b"coroutine_id=1")
    reply = await api.get("/task/detail", "coroutine_id=2", headers=headers)
    assert reply.status == 401
    assert reply.msg == "payload: is not the SHA-256 of the query string that arrived"


_BODIES = {
    "/task/create": [_BODY, b'{"taskNo":1}', b"not JSON", b"[]"],
    "/task/cancel": [b'{"coroutine_id":42}', b'{"coroutine_id":0}', b"{"],
    "/task/detail": [b'{"coroutine_id":42}', b"{}", b"\xff"],
}


@pytest.mark.parametrize(("path", "body"), [(p, b) for p, bs in _BODIES.items() for b in bs])
async def test_a_nonce_is_used_up_whatever_the_answer_was(api: Api, path: str, body: bytes) -> None:
    headers = api.signed(body)
    first = await api.post(path, body, headers=headers)
    assert first.status in {200, 400, 422}
    again = await api.post(path, body, headers=headers)
    assert (again.status, again.code) == (401, 401)
    assert again.msg == "nonce: has been used already; sign every request anew"
    assert again.data == []


async def test_the_nonce_of_a_refused_create_is_used_up(api: Api) -> None:
    for body in (encode(_APPLICATION), b"{}"):
        headers = api.admin(body)
        assert (await api.post("/application/create", body, headers=headers)).status != 401
        assert (await api.post("/application/create", body, headers=headers)).status == 401
    headers = api.signed(_BODY)
    assert (await api.post("/task/create", b"changed", headers=headers)).status == 401
    assert "nonce" in (await api.post("/task/create", _BODY, headers=headers)).msg


async def test_a_duplicate_task_uses_its_nonce_up(api: Api) -> None:
    await api.post("/task/create", TASK)
    headers = api.signed(_BODY)
    assert (await api.post("/task/create", _BODY, headers=headers)).code == 1
    assert (await api.post("/task/create", _BODY, headers=headers)).code == 401


async def test_a_nonce_belongs_to_its_key_and_is_refused_on_every_path(api: Api) -> None:
    body = b'{"coroutine_id":42}'
    nonce = "0123456789abcdef"
    assert (await api.post("/task/cancel", body, nonce=nonce)).code == 1
    assert (await api.post("/task/detail", body, nonce=nonce)).code == 401
    other = await api.create_app(_APPLICATION, nonce=nonce)
    assert other.code == 0


async def test_of_fifty_equal_requests_at_once_one_is_carried_out(api: Api) -> None:
    headers = api.signed(_BODY)
    codes: list[int] = []

    async def send() -> None:
        codes.append((await api.post("/task/create", _BODY, headers=headers)).code)

    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(send)
    assert sorted(codes) == [0] + [401] * 49


async def test_an_apps_key_may_not_create_applications(api: Api) -> None:
    reply = await api.post("/application/create", _APPLICATION)
    assert (reply.status, reply.code) == (403, 403)
    assert "administrator's key" in reply.msg
    assert api.kept() == (1, 0)


@pytest.mark.parametrize("path", ["/task/create", "/task/batch", "/task/cancel", "/task/detail"])
async def test_the_administrators_key_does_not_reach_tasks(api: Api, path: str) -> None:
    headers = api.admin(_BODY)
    reply = await api.post(path, _BODY, headers=headers)
    assert reply.status == 403
    assert (await api.post(path, _BODY, headers=headers)).status == 401


async def test_without_an_admin_secret_the_administrators_endpoint_says_how_to_open_it() -> None:
    async with running_api(config_of(admin_secret=None)) as api:
        for headers in ({}, api.admin(encode(_APPLICATION)), api.signed(encode(_APPLICATION))):
            reply = await api.post("/application/create", _APPLICATION, headers=headers)
            assert reply.status == 403
            assert "[auth] admin_secret" in reply.msg


async def test_without_an_admin_secret_the_admin_key_is_an_unknown_key() -> None:
    async with running_api(config_of(admin_secret=None)) as api:
        reply = await api.post("/task/create", TASK, key=ADMIN_KEY, secret="")
        assert reply.status == 401


async def test_open_registration_takes_unsigned_and_signed_requests() -> None:
    async with running_api(config_of(open_registration=True)) as api:
        public = {"appName": "a", "linkUrl": "https://example.com/cb"}
        unsigned = await api.post("/application/create", public, headers={})
        assert unsigned.code == 0
        assert (await api.create_app(public)).code == 0
        wrong = await api.post("/application/create", public, headers={"app_key": ADMIN_KEY})
        assert wrong.status == 401
        private = await api.post("/application/create", _APPLICATION, headers={})
        assert private.status == 422
        assert private.data["errors"][0]["field"] == "linkUrl"
        assert api.kept() == (3, 0)


async def test_a_stranger_is_not_told_why_an_address_is_denied() -> None:
    async with running_api(config_of(open_registration=True)) as api:
        problems = set()
        for host in ("127.0.0.1", "10.1.2.3", "169.254.169.254", "[fe80::1]", "[::ffff:10.0.0.1]"):
            values = {"appName": "a", "linkUrl": f"http://{host}/"}
            reply = await api.post("/application/create", values, headers={})
            assert reply.status == 422
            problems.add(reply.data["errors"][0]["problem"])
            signed = await api.create_app(values)
            assert "[delivery] allowed_networks" in signed.msg
        assert problems == {"leads to an address that callbacks don't go to"}


async def test_opaque_payloads_are_not_compared_but_signed() -> None:
    async with running_api(config_of(payload="opaque")) as api:
        payload, nonce = "帅的应用".encode().decode("latin-1"), "0123456789abcdef"
        # The client signs the bytes that it sends; the helper's text is their latin-1 reading.
        headers = api.signed(_BODY, nonce=nonce, payload="帅的应用")
        headers["payload"] = payload
        assert (await api.post("/task/create", _BODY, headers=headers)).code == 0
        again = await api.post("/task/cancel", {"coroutine_id": 1}, headers=headers)
        assert again.status == 401


async def test_opaque_payloads_want_nonces_of_sixteen_characters() -> None:
    async with running_api(config_of(payload="opaque")) as api:
        reply = await api.post("/task/create", TASK, payload="any", nonce="0123456789abcdef0")
        assert reply.status == 401
        assert "exactly 16 characters" in reply.msg


async def test_the_administrators_payload_is_never_opaque() -> None:
    async with running_api(config_of(payload="opaque")) as api:
        assert "payload" in (await api.create_app(_APPLICATION, payload="any")).msg
        assert (await api.create_app(_APPLICATION, payload="0" * 64)).status == 401
        assert (await api.create_app(_APPLICATION)).code == 0


@pytest.mark.deadline(60)
async def test_a_used_nonce_is_refused_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "taskd.db"
    requests = []
    store = await SQLiteStore.open(path)
    async with running_api(store=store) as api:
        created, cancelled, refused = _BODY, b'{"coroutine_id":42}', b"{}"
        requests = [
            ("/task/create", created, api.signed(created)),
            ("/task/cancel", cancelled, api.signed(cancelled)),
            ("/task/create", refused, api.signed(refused)),
        ]
        for path_, body, headers in requests:
            assert (await api.post(path_, body, headers=headers)).status != 401
    await store.aclose()
    store = await SQLiteStore.open(path)
    async with running_api(store=store) as api:
        for path_, body, headers in requests:
            reply = await api.post(path_, body, headers=headers)
            assert (reply.status, reply.msg.split(":")[0]) == (401, "nonce")
    await store.aclose()

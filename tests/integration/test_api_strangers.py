"""Whatever a stranger sends: no 500, no traceback, and few lines in the log."""

from __future__ import annotations

import logging

import pytest
import trio
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from taskd.api.http import access_log
from tests.support.api import TASK, Api, Reply, config_of, encode, request_bytes, running_api, until

pytestmark = pytest.mark.deadline(30)

_HOSTS = [
    *(b".", b"..", b"a..b", b".a", b"a.", b"x" * 64, b"x" * 64 + b".y", b"a" * 5000, b"-", b"_"),
    *(b"", b":", b":0", b":99999", b"a:99999", b"a:b", b"[", b"]", b"[]", b"[::1", b"[::1]:1"),
    *(b"[v1.x]", b"1.2.3.4.5", b"0x7f.1", b"xn--", b"xn--a", b"xn--" + b"z" * 60, b"%", b"%zz"),
    *(
        b"%00",
        b"a b",
        b"a\tb",
        b"a,b",
        b"a/b",
        b"a?b",
        b"a#b",
        b"a@b",
        b"a\\b",
        b"\xff",
        b"\xc3\xa4",
    ),
    *("ä".encode() * 40, b"localhost:9502", b"{{7*7}}", b"'", b'"', b"<script>"),
]
_TARGETS = [
    *(b"/", b"//", b"///", b"/%", b"/%zz", b"/%00", b"/%ff", b"/%2e%2e/", b"/..", b"/../..", b"/."),
    *(b"//healthz", b"/healthz/", b"/healthz//", b"/healthz;a", b"/healthz%00", b"/%68ealthz"),
    *(b"/healthz?", b"/healthz??", b"/healthz?%", b"/healthz?a=%ff", b"/healthz?" + b"a=b&" * 2000),
    *(
        b"*",
        b"**",
        b"*/",
        b"a",
        b"?",
        b"#",
        b"/#",
        b"/\\",
        b"\\",
        b"/{",
        b"/<a>",
        b"/'",
        b"/|",
        b"/^",
    ),
    *(b"http://test/healthz", b"http://./", b"http://a..b/", b"http://" + b"x" * 64, b"http://"),
    *(b"http:///healthz", b"http:/healthz", b"HTTP://test/healthz", b"ftp://test/", b"test:443"),
    *(b"http://test:99999/healthz", b"http://[::1/healthz", b"http://test?x", b"/" + b"a" * 15_000),
    *(b"/\xff", b"/\xc3\xa4", b"/\x00", b"/\x7f", b"/a b", b"/static/x", b"/favicon.ico"),
    *(b"/application/create", b"/task/create?", b"/task/detail?" + b"&" * 5000, b"/task/detail?=%"),
]
_METHODS = [
    b"GET",
    b"POST",
    b"HEAD",
    b"OPTIONS",
    b"CONNECT",
    b"TRACE",
    b"PUT",
    b"get",
    b"A" * 33,
    b"",
]
_LINES = [
    *(
        b"Cookie: a=b; " + b"c" * 3000,
        b"Cookie: \xff",
        b"Authorization: Basic \xff",
        b"Range: bytes=0-",
    ),
    *(
        b"Content-Type: multipart/form-data; boundary=",
        b"Content-Type: \xff",
        b"Accept: */*;q=\xff",
    ),
    *(b"X-Forwarded-For: ;", b"X-Forwarded-Host: a..b", b"Forwarded: for=", b"X-Request-Id: \xff"),
    *(
        b"Upgrade: websocket\r\nConnection: Upgrade",
        b"Upgrade: h2c",
        b"Content-Length: 99999999999999999999",
    ),
    *(
        b"Transfer-Encoding: chunked",
        b"Expect: 100-continue",
        b"If-None-Match: \xff",
        b"Date: \xff",
    ),
    *(
        b"If-Modified-Since: Fri, 99 Foo 99999",
        b"TE: trailers",
        b"Accept-Charset: \xff",
        b"a: " + b"b" * 9000,
    ),
    *(b"\xff: a", b"a\x00: b", b"a: \x00", b": a", b"a", b" a: b", b"\r", b"Host: other"),
    *(
        b"nonce: \xff",
        b"app_key: \xf0\x9f",
        b"timestamps: 9999-99-99 99:99:99",
        b"signature: =" + b"A" * 90,
    ),
]


def request_of(method: bytes, target: bytes, host: bytes | None, lines: list[bytes]) -> bytes:
    first = b"%s %s HTTP/1.1\r\n" % (method, target)
    hosts = [] if host is None else [b"Host: " + host]
    return first + b"".join(line + b"\r\n" for line in [*hosts, *lines]) + b"\r\n"


async def answers_to(api: Api, requests: list[bytes]) -> list[Reply]:
    """The first answer to each, on a connection of its own."""
    replies = []
    for request in requests:
        wire = await api.connect()
        assert isinstance(wire.stream, trio.SocketStream)
        async with wire.stream:
            await wire.send(request)
            await wire.stream.send_eof()
            reply = await wire.reply(head_only=request.startswith(b"HEAD "))
            if reply.status == 100:
                reply = await wire.reply()
            replies.append(reply)
    return replies


async def check(requests: list[bytes]) -> None:
    """Send requests; each has to be answered as one that is bad."""
    heard = _Heard()
    logger = logging.getLogger("taskd")
    root = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.INFO)
    root.addHandler(heard)
    try:
        async with running_api() as api:
            replies = await answers_to(api, requests)
            for request, reply in zip(requests, replies, strict=True):
                assert reply.status < 500, request
                assert reply.headers["content-type"] == "application/json"
                if not request.startswith(b"HEAD "):
                    assert reply.code in {0, reply.status}, request
                    assert len(reply.msg) < 400
            assert api.kept() == (1, 0)
    finally:
        root.removeHandler(heard)
        logger.setLevel(level)
    for record in heard.records:
        assert record.levelno == logging.INFO, record.__dict__
        assert record.exc_info is None
        assert len(str(record.__dict__.get("fields"))) < 1000


class _Heard(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.mark.deadline(120)
@pytest.mark.parametrize("target", [b"/healthz", b"/nowhere", b"/task/detail"])
async def test_no_host_makes_a_500(target: bytes) -> None:
    await check([request_of(b"GET", target, host, []) for host in [*_HOSTS, None]])
    await check([request_of(b"GET", b"http://" + host + target, host, []) for host in _HOSTS])


@pytest.mark.deadline(60)
async def test_no_target_makes_a_500() -> None:
    await check(
        [request_of(method, target, b"test", []) for target in _TARGETS for method in _METHODS]
    )


@pytest.mark.deadline(60)
async def test_no_header_makes_a_500() -> None:
    paths = [b"/healthz", b"/nowhere", b"/application/create", b"/task/create"]
    await check(
        [
            request_of(method, path, b"test", [line])
            for path in paths
            for line in _LINES
            for method in (b"GET", b"POST")
        ]
    )


@given(
    st.lists(
        st.tuples(
            st.sampled_from(_METHODS) | st.binary(max_size=5),
            st.sampled_from(_TARGETS) | st.binary(max_size=20),
            st.sampled_from(_HOSTS) | st.binary(max_size=10),
            st.lists(st.sampled_from(_LINES) | st.binary(max_size=20), max_size=4),
        ),
        min_size=1,
        max_size=8,
    )
)
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
@example([(b"GET", b"/healthz", b".", [])])
def test_nothing_that_a_stranger_sends_makes_a_500(
    requests: list[tuple[bytes, bytes, bytes, list[bytes]]],
) -> None:
    # Empty lines before a request are no request, and are not answered.
    made = [
        b"X" + request_of(*request) if not request[0].strip() else request_of(*request)
        for request in requests
    ]

    async def main() -> None:
        with trio.fail_after(60):
            await check([request for request in made if request.strip(b"\r\n")])

    trio.run(main)


def lines_of(caplog: pytest.LogCaptureFixture) -> list[dict[str, object]]:
    return [
        {"message": record.message} | record.__dict__["fields"]
        for record in caplog.records
        if record.levelno >= logging.INFO and record.name == "taskd.api"
    ]


async def test_a_stranger_causes_few_lines_of_each_kind(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "taskd.api")
    times = 3 * access_log.LINES
    async with running_api() as api:
        for data in (
            request_bytes("GET", "/nowhere", {}, b""),
            request_bytes("GET", "/task/detail", {}, b""),
            b"nonsense\r\n\r\n",
        ):
            await answers_to(api, [data] * times)
        lines = lines_of(caplog)
        assert len(lines) == 3 * access_log.LINES
        # Another kind has lines of its own.
        await answers_to(api, [request_bytes("PUT", "/task/create", {}, b"")])
        assert [line["status"] for line in lines_of(caplog)[len(lines) :]] == [405]
    held_back = [line for line in lines_of(caplog) if "number" in line]
    assert [(line["like"], line["number"], line["client"]) for line in held_back] == [
        ("request 404", times - access_log.LINES, "127.0.0.1"),
        ("request 401", times - access_log.LINES, "127.0.0.1"),
        ("unreadable request", times - access_log.LINES, "127.0.0.1"),
    ]


async def test_who_has_signed_is_counted_apart_from_strangers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "taskd.api")
    async with running_api() as api:
        for _ in range(access_log.LINES + 1):
            await api.post("/task/create", {}, headers={})
        await api.post("/task/create", {"taskNo": 1}, signature="A" * 86 + "==")
        assert len(lines_of(caplog)) == access_log.LINES
        await api.post("/task/create", {}, nonce="0123456789abcdef")
        await api.post("/task/create", {}, nonce="0123456789abcdef")
        assert [line["status"] for line in lines_of(caplog)[access_log.LINES :]] == [422, 401]


async def test_what_is_refused_is_logged_with_its_reason_and_its_clients_address(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "taskd.api")
    async with running_api(config_of(max_body=20000)) as api:
        await api.post("/task/create", TASK | {"timeout": "private"})
        await api.post("/task/create", TASK | {"content": {"a": 7}} | {"x": 1, "taskNo": "a\tb"})
        await api.post("/task/create", encode(TASK).replace(b'"{\\"order\\":1001}"', b"1e400"))
        await api.post("/task/create", b"{private")
        await api.post("/task/batch", {"tasks": [{"taskNo": "private" * 10}], "atomic": True})
        await api.post("/task/create", TASK, headers={})
        await api.get("/private", "secret=1", headers={})
        await api.raw(b"nonsense private\r\n\r\n")
        await until(lambda: len(lines_of(caplog)) == 8)
    lines = lines_of(caplog)
    assert {line["client"] for line in lines} == {"127.0.0.1"}
    told = [(line["status"], line["reason"]) for line in lines]
    assert told[0] == (422, "timeout: must be an integer number of milliseconds from 1 to 3600000")
    assert told[1][0] == 422
    assert told[2][0] == 422
    assert told[3][0] == 400
    assert told[4][0] == 409
    assert told[5][0] == 401
    assert str(told[5][1]).startswith("the header app_key is missing")
    assert told[6][0] == 404
    assert str(told[6][1]).startswith("there is no such path")
    assert told[7][0] == 400
    for line in lines:
        reason = str(line["reason"])
        assert reason
        assert "private" not in reason
        assert "1e400" not in reason

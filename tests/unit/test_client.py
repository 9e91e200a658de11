"""The API client against a real server of the standard library, that answers
whatever a test tells it to."""

from __future__ import annotations

import email.utils
import json
import socket
import threading
import traceback
from collections.abc import Iterator

import pytest

from taskd.client import MAX_ANSWER, Client, normalise_url
from taskd.domain import signing
from taskd.errors import DaemonUnreachable, InvalidInput, RequestRefused, TaskNoTaken
from tests.support.scripted_api import Script, answering

_SECRET = "0123456789abcdef0123456789abcdef"
_NOW_S = 1_700_000_000


class FixedClock:
    """A wall clock that stands still."""

    def __init__(self, seconds: int = _NOW_S) -> None:
        self._ms = seconds * 1000

    def now_ms(self) -> int:
        return self._ms


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def url(script: Script) -> Iterator[str]:
    with answering(script) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url, "an-app", _SECRET, clock=FixedClock()) as client:
        yield client


def test_a_request_is_signed_as_the_protocol_says(client: Client, script: Script) -> None:
    client.create_task(task_no="订单-1", name="n", content='{"a":1}', timeout=5000)
    client.cancel(7)
    for request in script.seen:
        headers = request.headers
        assert headers["app-key"] == "an-app"
        assert headers["timestamps"] == str(_NOW_S)
        assert headers["payload"] == signing.payload_digest(request.body)
        signed = (headers["timestamps"], headers["nonce"], headers["payload"])
        assert headers["signature"] == signing.sign(_SECRET, *signed)
        assert headers["content-type"] == "application/json"
        assert _SECRET not in repr(request)
    first, second = script.seen
    assert first.headers["nonce"] != second.headers["nonce"]
    assert (first.path, second.path) == ("/task/create", "/task/cancel")
    assert json.loads(first.body) == {
        "taskNo": "订单-1",
        "name": "n",
        "content": '{"a":1}',
        "timeout": 5000,
    }


def test_optional_fields_are_sent_where_they_are_given(client: Client, script: Script) -> None:
    client.create_app(name="a", link_url="http://h/", step=0, retry_total=0, remark="")
    client.create_app(name="a", link_url="http://h/", success="status")
    client.create_task(
        task_no="1", name="n", content=[1], timeout=1, runtime=1.5, step=0, retry_total=0
    )
    client.create_task(task_no="1", name="n", content=[1], timeout=1, delay="30m")
    client.detail(task_no="1")
    bodies = [json.loads(request.body) for request in script.seen]
    assert bodies == [
        {"appName": "a", "linkUrl": "http://h/", "step": 0, "retryTotal": 0, "remark": ""},
        {"appName": "a", "linkUrl": "http://h/", "success": "status"},
        {
            "taskNo": "1",
            "name": "n",
            "content": [1],
            "timeout": 1,
            "runtime": 1.5,
            "step": 0,
            "retryTotal": 0,
        },
        {"taskNo": "1", "name": "n", "content": [1], "timeout": 1, "delay": "30m"},
        {"taskNo": "1"},
    ]


def test_a_limit_has_its_unit_in_its_name_and_the_former_name_is_taken(
    url: str, script: Script
) -> None:
    with Client(url, "an-app", _SECRET, clock=FixedClock()) as client:
        client.create_task(task_no="1", name="n", content=1, timeout_ms=700)
        client.create_task(task_no="1", name="n", content=1, timeout=700)
    present, former = (json.loads(request.body) for request in script.seen)
    assert present == former
    assert present["timeout"] == 700


def test_a_limit_is_given_once(client: Client, script: Script) -> None:
    with pytest.raises(TypeError, match="timeout_ms must not be given together with timeout"):
        client.create_task(task_no="1", name="n", content=1, timeout_ms=1, timeout=1)  # type: ignore[call-overload]  # what is tested
    with pytest.raises(TypeError, match="needs timeout_ms"):
        client.create_task(task_no="1", name="n", content=1)  # type: ignore[call-overload]  # what is tested
    with pytest.raises(TypeError, match="timeout_s must not be given together with timeout"):
        Client("http://127.0.0.1:1", timeout_s=1, timeout=1)
    assert not script.seen


@pytest.mark.parametrize(
    ("given", "seconds"),
    [({}, 30), ({"timeout_s": 0.25}, 0.25), ({"timeout": 0.25}, 0.25), ({"timeout_s": 0}, 0)],
)
def test_a_clients_limit_is_in_seconds_by_either_name(
    given: dict[str, float], seconds: float
) -> None:
    client = Client("http://127.0.0.1:1", **given)  # type: ignore[arg-type]  # the names are of that type
    assert client._timeout_s == client.copy()._timeout_s == seconds


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        (1_700_000_000.1234567, b"1700000000.124"),
        (1_700_000_000.5, b"1700000000.5"),
        (0.1 + 0.2, b"0.3"),
        (90, b"90"),
        (1e-9, b"0.0"),
        (-0.0004, b"0.0"),
    ],
)
def test_seconds_are_sent_with_the_decimals_that_the_daemon_takes(
    client: Client, script: Script, given: float, sent: bytes
) -> None:
    """What `time.time()` gives has more; and nothing may come too early."""
    client.create_task(task_no="1", name="n", content=1, timeout=1, runtime=given)
    client.create_task(task_no="1", name="n", content=1, timeout=1, delay=given)
    assert b'"runtime": ' + sent + b"}" in script.seen[0].body
    assert b'"delay": ' + sent + b"}" in script.seen[1].body


def test_a_batch_is_sent_as_it_is_given(client: Client, script: Script) -> None:
    results = [{"taskId": 1, "coroutine_id": 1}, {"code": 1, "msg": "taken"}]
    script.envelope(0, "ok!", {"results": results})
    tasks: list[dict[str, object]] = [{"taskNo": "1", "runtime": 1.5}, {"taskNo": "订单"}]
    assert client.create_tasks(tasks) == results
    assert client.create_tasks(tasks, atomic=True) == results
    assert [request.path for request in script.seen] == ["/task/batch"] * 2
    bodies = [json.loads(request.body) for request in script.seen]
    assert bodies == [{"tasks": tasks}, {"tasks": tasks, "atomic": True}]


@pytest.mark.parametrize(
    ("header", "task_id", "state"),
    [
        ("42 succeeded", 42, "succeeded"),
        (None, None, None),
        ("", None, None),
        ("succeeded", None, None),
        ("42 " + "x" * 999, None, None),
        ("9" * 99 + " failed", None, None),
    ],
)
def test_a_task_no_that_is_taken_is_an_error_that_names_the_task_that_has_it(
    client: Client, script: Script, header: str | None, task_id: int | None, state: str | None
) -> None:
    if header is not None:
        script.headers["Taskd-Existing"] = header
    script.envelope(1, "请勿重复提交!", [])
    with pytest.raises(TaskNoTaken) as refusal:
        client.create_task(task_no="1", name="n", content=1, timeout=1)
    error = refusal.value
    assert (error.code, error.msg, error.data) == (1, "请勿重复提交!", [])
    assert (error.task_id, error.state) == (task_id, state)
    script.envelope(422, "name: too long", [])
    with pytest.raises(RequestRefused) as other:
        client.create_task(task_no="1", name="n", content=1, timeout=1)
    assert not isinstance(other.value, TaskNoTaken)


def test_a_task_is_cancelled_by_any_of_its_names(client: Client, script: Script) -> None:
    client.cancel(1)
    client.cancel(task_id=2)
    client.cancel(task_no="订单")
    bodies = [json.loads(request.body) for request in script.seen]
    assert bodies == [{"coroutine_id": 1}, {"taskId": 2}, {"taskNo": "订单"}]


@pytest.mark.parametrize("data", [{}, {"results": {}}, {"results": [{}]}, {"results": [1, 2]}])
def test_an_answer_to_a_batch_that_is_none_is_told(
    client: Client, script: Script, data: object
) -> None:
    script.envelope(0, "ok!", data)
    with pytest.raises(DaemonUnreachable, match="malformed"):
        client.create_tasks([{"taskNo": "1"}, {"taskNo": "2"}])


def test_without_keys_nothing_is_signed(url: str, script: Script) -> None:
    with Client(url) as client:
        client.create_app(name="a", link_url="http://h/")
    assert not {"app-key", "signature", "nonce"} & script.seen[0].headers.keys()


def test_one_connection_serves_many_requests(client: Client, script: Script) -> None:
    for number in range(1, 4):
        client.cancel(number)
    assert len({request.connection for request in script.seen}) == 1


def test_a_connection_that_was_closed_meanwhile_is_replaced(client: Client, script: Script) -> None:
    script.hang_up_after_answer = True
    client.cancel(1)
    _wait_for_the_end_of(client)
    client.cancel(2)
    assert [json.loads(request.body)["coroutine_id"] for request in script.seen] == [1, 2]
    assert len({request.connection for request in script.seen}) == 2


def _wait_for_the_end_of(client: Client) -> None:
    connection = client._connection
    assert connection is not None
    connection.sock.settimeout(5)
    assert connection.sock.recv(1, socket.MSG_PEEK) == b""


def test_a_request_that_had_no_answer_is_not_sent_again() -> None:
    """The daemon may have carried it out."""
    requests = 0

    def serve(listener: socket.socket) -> None:
        nonlocal requests
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return  # closed: the test is over
            with connection:
                requests += b"POST" in connection.recv(65536)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        try:
            client = Client(f"http://127.0.0.1:{listener.getsockname()[1]}", "k", _SECRET)
            with pytest.raises(DaemonUnreachable, match="no answer from"):
                client.cancel(1)
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(5)
    assert requests == 1


def test_a_refusal_carries_code_message_and_data(client: Client, script: Script) -> None:
    script.envelope(422, "timeout: must be more", {"errors": []})
    with pytest.raises(RequestRefused, match="timeout: must be more") as raised:
        client.cancel(1)
    assert (raised.value.code, raised.value.data) == (422, {"errors": []})
    script.envelope(1, "请勿重复提交!", [])
    with pytest.raises(RequestRefused) as raised:
        client.cancel(1)
    assert (raised.value.code, raised.value.msg) == (1, "请勿重复提交!")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>It works!</html>",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"code": 0}',
        b'{"code": true, "msg": "", "data": {}}',
        b'{"code": "0", "msg": "", "data": {}}',
        b'{"code": 0, "msg": 1, "data": {}}',
        b'{"code": 0, "msg": "ok!", "data": []}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_answer_of_taskd_is_told(client: Client, script: Script, body: bytes) -> None:
    script.body = body
    with pytest.raises(DaemonUnreachable) as raised:
        client.cancel(1)
    assert client.url in str(raised.value)


@pytest.mark.parametrize(
    "greeting", [b"SSH-2.0-OpenSSH_9.2\r\n", b"\x15\x03\x01\x00\x02\x02P", b""]
)
def test_a_server_that_speaks_no_http_is_told(greeting: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_greet, args=(listener, greeting))
        thread.start()
        client = Client(f"http://127.0.0.1:{listener.getsockname()[1]}", "k", _SECRET, timeout=5)
        with pytest.raises(DaemonUnreachable, match="no answer from"):
            client.cancel(1)
        thread.join(5)
        assert not thread.is_alive()


def _greet(listener: socket.socket, greeting: bytes) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.recv(65536)
        connection.sendall(greeting)


def test_a_daemon_that_does_not_run_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with pytest.raises(DaemonUnreachable) as raised:
        Client(url, "k", _SECRET).cancel(1)
    assert str(raised.value) == f"no daemon can be reached at {url}: Connection refused"


def test_a_daemon_that_does_not_answer_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(DaemonUnreachable, match="it took too long"):
            Client(url, "k", _SECRET, timeout=0.2).cancel(1)


def test_a_redirect_is_not_followed(client: Client, script: Script) -> None:
    script.status, script.body = 307, b""
    script.headers = {"Location": f"{client.url}/elsewhere"}
    with pytest.raises(DaemonUnreachable, match="HTTP 307"):
        client.cancel(1)
    assert [request.path for request in script.seen] == ["/task/cancel"]


def test_no_proxy_is_used(client: Client, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("all_proxy", "http://127.0.0.1:1")
    client.cancel(1)
    assert len(script.seen) == 1


def test_an_endless_answer_is_cut_off(client: Client, script: Script) -> None:
    script.body = b" " * (MAX_ANSWER + 1)
    with pytest.raises(DaemonUnreachable, match=f"more than {MAX_ANSWER} bytes"):
        client.cancel(1)


@pytest.mark.parametrize(
    ("ahead_s", "told"),
    [
        (600, "10 min ahead of the daemon's"),
        (-630, "10 min 30 s behind the daemon's"),
        (7322, "2 h 2 min 2 s ahead of the daemon's"),
    ],
)
def test_clocks_that_differ_are_told_by_how_much(
    url: str, script: Script, ahead_s: int, told: str
) -> None:
    script.envelope(401, "timestamps: outside the window of 300 s", [])
    script.headers = {"Date": email.utils.formatdate(_NOW_S, usegmt=True)}
    with (
        Client(url, "k", _SECRET, clock=FixedClock(_NOW_S + ahead_s)) as client,
        pytest.raises(RequestRefused) as raised,
    ):
        client.cancel(1)
    assert f"this machine's clock is {told}" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("date", [None, "yesterday", "", "Mon, 99 Foo 99999 99:99:99 GMT"])
def test_without_a_date_the_daemons_own_words_are_told(
    client: Client, script: Script, date: str | None
) -> None:
    script.envelope(401, "timestamps: outside the window", [])
    script.headers = {} if date is None else {"Date": date}
    with pytest.raises(RequestRefused, match="outside the window"):
        client.cancel(1)


def test_another_401_is_not_put_down_to_the_clock(client: Client, script: Script) -> None:
    script.envelope(401, "unknown app_key or signature", [])
    script.headers = {"Date": email.utils.formatdate(_NOW_S - 3600, usegmt=True)}
    with pytest.raises(RequestRefused, match="unknown app_key or signature"):
        client.cancel(1)


def test_health_and_readiness_are_asked_unsigned(client: Client, script: Script) -> None:
    assert client.healthy()
    script.status = 503
    assert not client.ready()
    assert [(r.method, r.path) for r in script.seen] == [("GET", "/healthz"), ("GET", "/readyz")]
    assert all("signature" not in request.headers for request in script.seen)


def test_a_base_path_is_kept(url: str, script: Script) -> None:
    with Client(f"{url}/behind/a/proxy/", "k", _SECRET) as client:
        client.cancel(1)
    assert script.seen[0].path == "/behind/a/proxy/task/cancel"


def test_no_secret_is_in_a_repr_or_a_traceback(script: Script, url: str) -> None:
    client = Client(url, "k", _SECRET)
    assert _SECRET not in repr(client)
    script.envelope(401, "unknown app_key or signature", [])
    with client, pytest.raises(RequestRefused) as raised:
        client.cancel(1)
    assert _SECRET not in "".join(traceback.format_exception(raised.value))


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("127.0.0.1:9502", "http://HOST"),
        ("", "http://HOST"),
        ("http://", "http://HOST"),
        ("ftp://h", "http://HOST"),
        ("http://h:port", "http://HOST"),
        ("http://h:65536", "http://HOST"),
        ("http://[::1", "http://HOST"),
        ("http://h/?a=1", "query"),
        ("http://h/#a", "fragment"),
        ("http://h/a b", "white space"),
        ("http://h/\r\nX-Header: 1", "white space"),
        ("http://例.cn", "http://HOST"),
        ("http://a..b", "no name"),
        (f"http://{'a' * 64}.com", "no name"),
    ],
)
def test_a_url_that_is_none_is_refused(url: str, told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        Client(url, "k", _SECRET)


@pytest.mark.parametrize(
    "url", ["http://u:hunter2@h", "ftp://u:hunter2@h", "u:hunter2@h", "http://hunter2@h:x"]
)
def test_the_password_of_a_url_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        Client(url)
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    ("given", "normal"),
    [
        ("HTTP://LocalHost:80/", "http://localhost"),
        ("https://h:443", "https://h"),
        ("http://h:443", "http://h:443"),
        ("http://[::1]:9502/x/", "http://[::1]:9502/x"),
    ],
)
def test_a_url_has_one_spelling(given: str, normal: str) -> None:
    assert normalise_url(given) == normal
    assert normalise_url(normal) == normal


@pytest.mark.parametrize("app_key", ["", "a b", "a\r\nX: 1", "密钥", "k" * 129])
def test_a_key_that_is_no_header_is_refused(app_key: str) -> None:
    with pytest.raises(InvalidInput, match="app_key"):
        Client("http://h", app_key, _SECRET)


def test_keys_come_in_pairs() -> None:
    with pytest.raises(InvalidInput, match="together"):
        Client("http://h", "k")
    with pytest.raises(InvalidInput, match="together"):
        Client("http://h", None, _SECRET)


def test_a_secret_that_is_no_text_is_refused_and_not_shown() -> None:
    """As an environment that is not UTF-8 gives it."""
    with pytest.raises(InvalidInput, match="secret_key") as raised:
        Client("http://h", "k", "hunter2\udcff")
    assert "hunter2" not in str(raised.value)
    assert raised.value.__cause__ is None
    assert raised.value.__context__ is None


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (float("nan"), "JSON"),
        ({1, 2}, "JSON"),
        ("\ud800", "^content: must be text that UTF-8 can carry"),
        (["\ud800"], "^must be text that UTF-8 can carry"),
    ],
)
def test_what_is_no_json_is_refused_before_anything_is_sent(
    client: Client, script: Script, content: object, told: str
) -> None:
    with pytest.raises(InvalidInput, match=told):
        client.create_task(task_no="1", name="n", content=content, timeout=1)
    assert script.seen == []

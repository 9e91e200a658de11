"""Bad input gets a 4xx in one sentence that names the field, and changes nothing."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable

import pytest
import trio

from taskd.domain.model import MAX_COROUTINE_ID
from tests.support.api import (
    LINK_URL,
    TASK,
    Api,
    Reply,
    config_of,
    encode,
    request_bytes,
    running_api,
)

pytestmark = pytest.mark.deadline(30)

_APPLICATION = {"appName": "a", "linkUrl": LINK_URL}


def check(reply: Reply, status: int, msg: str) -> None:
    assert (reply.status, reply.code) == (status, status)
    assert msg in reply.msg
    assert "\n" not in reply.msg
    assert reply.data == [] if status != 422 else reply.data["errors"]


def check_field(reply: Reply, field: str, problem: str = "") -> None:
    """A 422 whose first error, which is the message, is about this field."""
    check(reply, 422, problem)
    first = reply.data["errors"][0]
    assert first["field"] == field
    assert problem in first["problem"]
    assert reply.msg == (f"{field}: " if field else "") + first["problem"]


def text(**changes: str) -> str:
    """A create's body in which some values are given as JSON text."""
    values = {name: json.dumps(value) for name, value in TASK.items()} | changes
    return "{" + ",".join(f'"{name}":{value}' for name, value in values.items()) + "}"


@pytest.mark.parametrize(
    ("body", "status", "problem"),
    [
        ("", 400, "the body is empty"),
        ("{", 400, "the body is not JSON: Expecting property name"),
        ("taskNo=1&name=x", 400, "the body is not JSON: Expecting value at character 0"),
        ('{"a":1} x', 400, "the body is not JSON: Extra data at character 8"),
        ("{'a':1}", 400, "the body is not JSON"),
        ('{"a":01}', 400, "the body is not JSON"),
        ('{"a":"\t"}', 400, "the body is not JSON: Invalid control character"),
        ('{"a":"\0"}', 400, "the body is not JSON: Invalid control character"),
        (b'{"a":"\xff"}', 400, "the body is not UTF-8 at byte 6"),
        (b'{"a":"\xed\xa0\x80"}', 400, "the body is not UTF-8 at byte 6"),
        ('{"a":1}'.encode("utf-16"), 400, "the body is not UTF-8"),
        ('\ufeff{"a":1}', 400, "byte order mark"),
        ("[" * 2000 + "]" * 2000, 422, "the body is nested more than 64 deep"),
        ('{"a":' * 300, 422, "the body is nested more than 64 deep"),
        ("[" * 100, 400, "the body is not JSON: Expecting value at character 100"),
        ("x" + "[" * 2000, 400, "the body is not JSON: Expecting value at character 0"),
        (
            '{"a":1 ' + "[" * 2000,
            400,
            "the body is not JSON: Expecting ',' delimiter at character 7",
        ),
        ('{"a":' + "[" * 65 + '"' + '\\"' * 4000, 400, "the body is not JSON: Unterminated string"),
        ('{"a":' + "[" * 99 + "]" * 99 + "}", 422, "a: is nested more than 64 deep"),
        ("[]", 422, "the body must be a JSON object, got an array"),
        ('"text"', 422, "the body must be a JSON object, got another value"),
        ("null", 422, "the body must be a JSON object, got another value"),
        ('{"a\\u0000":1}', 422, "a key of the body must not hold the character U+0000"),
        ('{"a\\ud800":1}', 422, "a key of the body must not hold half of a surrogate pair"),
    ],
)
@pytest.mark.parametrize("path", ["/task/create", "/task/batch", "/task/cancel", "/task/detail"])
async def test_a_body_that_is_no_json_object_is_refused(
    path: str, body: str | bytes, status: int, problem: str
) -> None:
    async with running_api(config_of(max_body=10000)) as api:
        check(await api.post(path, body), status, problem)
        check(await api.create_app(body), status, problem)
        assert api.kept() == (1, 0)


@pytest.mark.parametrize(
    ("body", "field", "problem"),
    [
        (text(timeout="true"), "timeout", "must be an integer number of milliseconds from 1 to"),
        (text(timeout='"5"'), "timeout", '3600000, got "5"'),
        (text(timeout="1.0"), "timeout", "got 1.0"),
        (text(timeout="1e3"), "timeout", "got 1000.0"),
        (text(timeout="null"), "timeout", "got null"),
        (text(timeout="[1]"), "timeout", "got an array"),
        (text(timeout="{}"), "timeout", "got an object"),
        (text(timeout="0"), "timeout", "got 0"),
        (text(timeout="-1"), "timeout", "got -1"),
        (text(timeout="3600001"), "timeout", "got 3600001"),
        (text(timeout="NaN"), "timeout", "must not hold NaN, which is no JSON value"),
        (text(timeout="-Infinity"), "timeout", "must not hold -Infinity"),
        (text(timeout="18446744073709551616"), "timeout", "an integer past 64 bits"),
        (text(timeout="-9223372036854775809"), "timeout", "an integer past 64 bits"),
        (text(timeout="1" * 9000), "timeout", "an integer past 64 bits"),
        (text(taskNo='""'), "taskNo", "must be a string of 1 to 64 characters, has 0 characters"),
        (text(taskNo=json.dumps("x" * 65)), "taskNo", "has 65 characters"),
        (text(taskNo="5"), "taskNo", "got 5"),
        (text(taskNo='"a\\nb"'), "taskNo", "must not contain control characters, got U+000A"),
        (text(taskNo='"a\\u0085"'), "taskNo", "U+0085"),
        (text(taskNo='"a\\u0000"'), "taskNo", "U+0000"),
        (text(taskNo='"\\ud83d"'), "taskNo", "half of a surrogate pair"),
        (text(taskNo='"\\ude00\\ud83d"'), "taskNo", "half of a surrogate pair"),
        (text(name='""'), "name", "1 to 64 characters"),
        (text(name="null"), "name", "got null"),
        (text(name=json.dumps("名" * 65)), "name", "has 65 characters"),
        (text(step="-1"), "step", "from 0 to 3600, got -1"),
        (text(step="3601"), "step", "from 0 to 3600, got 3601"),
        (text(retryTotal="11"), "retryTotal", "from 0 to 10, got 11"),
        (text(retryTotal="false"), "retryTotal", "got false"),
        (text(content="null"), "content", "must not be null"),
        (text(content='""'), "content", "JSON text"),
        (text(content='"hello"'), "content", "it is not JSON: Expecting value at character 0"),
        (text(content='"{\\"a\\":NaN}"'), "content", "NaN is no JSON value"),
        (text(content='"\\ufeff1"'), "content", "JSON"),
        (text(content=json.dumps("[" * 65 + "]" * 65)), "content", "more than 64 deep"),
        (text(content=json.dumps("[" * 1000 + "]" * 1000)), "content", "more than 64 deep"),
        (text(content="[" * 64 + "]" * 64), "content", "nested more than 64 deep"),
        (text(content='{"a":1,"a":2}'), "content", "an object that has a key twice"),
        (text(content='[{"a":{"b":0,"b":0}}]'), "content", "an object that has a key twice"),
        (text(content='{"a":"\\ud800"}'), "content", "half of a surrogate pair"),
        (text(content='{"\\udfff":1}'), "content", "half of a surrogate pair"),
        (text(content='["\\u0000"]'), "content", "U+0000"),
        (text(content='[{"x":[NaN]}]'), "content", "must not hold NaN"),
        (text(content="[18446744073709551616]"), "content", "an integer past 64 bits"),
        (text(content="1e400"), "content", "would not survive being written again; send the"),
        (text(content="[-1e400]"), "content", "the number -1e400 would not survive"),
        (text(content="1e-400"), "content", "would not survive"),
        (text(content="0.1234567890123456789"), "content", "would not survive"),
        (text(content="1.000000000000000000"), "content", "would not survive"),
        (text(runtime="true"), "runtime", "got true"),
        (text(runtime="null"), "runtime", "got null"),
        (text(runtime='"tomorrow"'), "runtime", 'got "tomorrow"'),
        (text(runtime='"1626418779"'), "runtime", "Unix seconds as a number"),
        (text(runtime="-1"), "runtime", "must not be before 1970, got -1"),
        (text(runtime="1.2345"), "runtime", "at most three decimals, got 1.2345"),
        (text(runtime="253402300800"), "runtime", "past the year 9999"),
        (text(runtime='"2021-02-30 00:00:00"'), "runtime", "no date and time that exists"),
    ],
)
async def test_a_bad_field_of_a_task_is_named(body: str, field: str, problem: str) -> None:
    async with running_api(config_of(max_body=20000)) as api:
        check_field(await api.post("/task/create", body), field, problem)
        assert api.kept() == (1, 0)


@pytest.mark.parametrize("field", ["taskNo", "name", "content", "timeout"])
async def test_a_missing_field_is_named(api: Api, field: str) -> None:
    values = {name: value for name, value in TASK.items() if name != field}
    check_field(await api.post("/task/create", values), field, "is required")


@pytest.mark.parametrize(
    ("typo", "right"),
    [
        ("retry_total", "retryTotal"),
        ("retrytotal", "retryTotal"),
        ("task_no", "taskNo"),
        ("Timeout", "timeout"),
        ("run_time", "runtime"),
        ("contents", "content"),
        ("dealy", "delay"),
    ],
)
async def test_an_unknown_field_is_told_the_nearest_name(api: Api, typo: str, right: str) -> None:
    reply = await api.post("/task/create", TASK | {typo: 1})
    problem = f"is not a field of this endpoint; the nearest one is {right}"
    check_field(reply, typo, problem)
    assert reply.msg.endswith(f" {right}")
    assert api.kept() == (1, 0)


@pytest.mark.parametrize("name", ["id", "priority", "url", "retries", "x", "", "x" * 1000])
async def test_an_unknown_field_that_is_like_none_is_told_which_there_are(
    api: Api, name: str
) -> None:
    reply = await api.post("/task/create", TASK | {name: 1})
    problem = (
        "is not a field of this endpoint; it has content, delay, name, retryTotal, "
        "runtime, step, taskNo, timeout"
    )
    assert reply.data["errors"] == [{"field": name[:64], "problem": problem}]
    assert api.kept() == (1, 0)


async def test_a_field_given_twice_is_named(api: Api) -> None:
    body = text(timeout='5000,"name":"another"')
    check_field(await api.post("/task/create", body), "name", "is given twice")


async def test_all_errors_are_listed(api: Api) -> None:
    reply = await api.post("/task/create", {"timeout": "abc", "tasNo": 1, "runtime": []})
    assert [error["field"] for error in reply.data["errors"]] == [
        "tasNo",
        "taskNo",
        "name",
        "content",
        "timeout",
        "runtime",
    ]
    assert 'timeout: must be an integer number of milliseconds from 1 to 3600000, got "abc"' in [
        f"{error['field']}: {error['problem']}" for error in reply.data["errors"]
    ]


async def test_thousands_of_unknown_fields_take_no_longer_than_a_few() -> None:
    async with running_api(config_of(max_body=2000000)) as api:
        body = encode({f"{'x' * 60}{number}": 1 for number in range(10_000)})
        with trio.fail_after(5):
            reply = await api.post("/task/create", body)
        assert reply.status == 422
        assert len(reply.data["errors"]) < 20


@pytest.mark.parametrize(
    ("changes", "field", "problem"),
    [
        ({"appName": ""}, "appName", "1 to 100 characters"),
        ({"appName": "x" * 101}, "appName", "has 101 characters"),
        ({"appName": 1}, "appName", "got 1"),
        ({"remark": "x" * 256}, "remark", "has 256 characters"),
        ({"remark": None}, "remark", "got null"),
        ({"step": 3601}, "step", "got 3601"),
        ({"step": True}, "step", "got true"),
        ({"retryTotal": 11}, "retryTotal", "got 11"),
        ({"success": "Status"}, "success", 'must be "body" or "status", got "Status"'),
        ({"success": ""}, "success", 'must be "body" or "status"'),
        ({"success": True}, "success", "got true"),
        ({"success": None}, "success", "got null"),
        ({"success": ["body"]}, "success", 'must be "body" or "status"'),
        ({"succes": "body"}, "succes", "the nearest one is success"),
        ({"retry_total": 1}, "retry_total", "the nearest one is retryTotal"),
        ({"linkUrl": 1}, "linkUrl", "must be a string, got 1"),
        ({"linkUrl": ""}, "linkUrl", "http"),
        ({"linkUrl": "ftp://127.0.0.1/"}, "linkUrl", "must begin with http:// or https://"),
        ({"linkUrl": "127.0.0.1/cb"}, "linkUrl", "must begin with"),
        ({"linkUrl": "http://user:pw@127.0.0.1/"}, "linkUrl", "user name or password"),
        ({"linkUrl": "http://127.0.0.1/#x"}, "linkUrl", "fragment"),
        ({"linkUrl": "http://169.254.169.254/"}, "linkUrl", "169.254.169.254"),
        ({"linkUrl": "http://[fd00:ec2::254]/"}, "linkUrl", "fd00:ec2::254"),
        ({"linkUrl": "http://[::ffff:169.254.169.254]/"}, "linkUrl", "169.254.169.254"),
        ({"linkUrl": "http://0.0.0.0/"}, "linkUrl", "0.0.0.0"),
        ({"linkUrl": "http://127.0.0.1/" + "x" * 2048}, "linkUrl", "2048"),
    ],
)
async def test_a_bad_field_of_an_application_is_named(
    api: Api, changes: dict[str, object], field: str, problem: str
) -> None:
    check_field(await api.create_app(_APPLICATION | changes), field, problem)
    assert api.kept() == (1, 0)


@pytest.mark.parametrize("field", ["appName", "linkUrl"])
async def test_a_missing_field_of_an_application_is_named(api: Api, field: str) -> None:
    values = {name: value for name, value in _APPLICATION.items() if name != field}
    check_field(await api.create_app(values), field, "is required")


_BAD_NUMBERS = ['"4"', "0", "-1", "1.0", "true", "null", str(MAX_COROUTINE_ID + 1), "[]"]


@pytest.mark.parametrize("number", _BAD_NUMBERS)
@pytest.mark.parametrize("path", ["/task/cancel", "/task/detail"])
async def test_a_bad_coroutine_id_is_refused(api: Api, path: str, number: str) -> None:
    reply = await api.post(path, f'{{"coroutine_id":{number}}}')
    check_field(reply, "coroutine_id", f"from 1 to {MAX_COROUTINE_ID}")


@pytest.mark.parametrize(
    "value",
    [
        "4_2",
        "%D9%A4%D9%A2",
        "0",
        "042",
        "%2B42",
        "-1",
        "4.2",
        "42%20",
        "",
        str(MAX_COROUTINE_ID + 1),
        "9" * 400,
        "0x2a",
        "true",
    ],
)
@pytest.mark.parametrize("name", ["coroutine_id", "taskId"])
async def test_a_bad_number_in_a_query_is_refused(api: Api, name: str, value: str) -> None:
    check_field(await api.get("/task/detail", f"{name}={value}"), name, "must be an integer")


@pytest.mark.parametrize(
    ("query", "status", "problem"),
    [
        ("", 422, "coroutine_id: is required"),
        ("id=1", 422, "coroutine_id: is required"),
        ("coroutine_id=1&coroutine_id=1", 422, "coroutine_id: is given twice"),
        ("coroutine_id=1&task_id=1", 422, "task_id: is not a field"),
        ("coroutine_id=1&taskNo=a", 422, "taskNo: must not be given together with coroutine_id"),
        ("taskNo=", 422, "taskNo: must be a string of 1 to 64 characters, has 0 characters"),
        ("taskNo=a%0Ab", 422, "taskNo: must not contain control characters"),
        ("taskNo=a+b", 400, "must not contain +"),
        ("taskNo=%zz", 400, "has a % that two hexadecimal digits do not follow"),
        ("taskNo=%", 400, "has a %"),
        ("taskNo=%ff", 400, "is not UTF-8"),
        ("taskNo=%00", 400, "U+0000"),
        ("taskNo", 400, "must be NAME=VALUE"),
        ("coroutine_id=1&", 400, "must be NAME=VALUE"),
        ("coroutine%5Fid=1", 400, "must be NAME=VALUE"),
        ("=1", 400, "must be NAME=VALUE"),
    ],
)
async def test_a_bad_query_is_refused(api: Api, query: str, status: int, problem: str) -> None:
    check(await api.get("/task/detail", query), status, problem)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({}, "coroutine_id: is required"),
        ({"coroutine_id": 1, "taskId": 1}, "taskId: must not be given together with coroutine_id"),
        ({"taskId": 1, "taskNo": "a"}, "taskNo: must not be given together with taskId"),
        ({"taskNo": 5}, "taskNo: must be a string"),
        ({"coroutineId": 5}, "coroutineId: is not a field of this endpoint; the nearest one is"),
    ],
)
async def test_a_detail_names_exactly_one_task(
    api: Api, values: dict[str, object], problem: str
) -> None:
    check(await api.post("/task/detail", values), 422, problem)


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "",
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/json; charset=gbk",
        "application/json; charset=utf-16",
        "application/jsonp",
        "application/json, text/plain",
    ],
)
async def test_a_wrong_content_type_is_refused(api: Api, content_type: str | None) -> None:
    headers = api.signed(encode(TASK))
    if content_type is not None:
        headers["Content-Type"] = content_type
    reply = await api.raw(request_bytes("POST", "/task/create", headers, encode(TASK)))
    check(reply, 415, "the header Content-Type must be application/json")
    assert api.kept() == (1, 0)


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "application/json; charset=utf-8",
        "Application/JSON;Charset=UTF-8",
        'application/json; charset="utf-8"',
    ],
)
async def test_json_in_utf_8_is_accepted(api: Api, content_type: str) -> None:
    headers = api.signed(encode(TASK)) | {"Content-Type": content_type}
    assert (await api.post("/task/create", TASK, headers=headers)).code == 0


async def test_a_content_encoding_is_refused(api: Api) -> None:
    headers = api.signed(encode(TASK)) | {"Content-Encoding": "gzip"}
    check(await api.post("/task/create", TASK, headers=headers), 415, "Content-Encoding")


_PATHS = ["/application/create", "/task/create", "/task/batch", "/task/cancel", "/task/detail"]
_EVERYWHERE = [*_PATHS, "/healthz", "/readyz", "/nowhere"]


@pytest.mark.parametrize("method", ["OPTIONS", "HEAD"])
@pytest.mark.parametrize("path", _EVERYWHERE)
async def test_options_and_head_are_not_answered(api: Api, path: str, method: str) -> None:
    head_only = method == "HEAD"
    reply = await api.raw(request_bytes(method, path, {}, b""), head_only=head_only)
    assert reply.status == 405
    assert reply.headers["allow"]
    assert reply.headers["x-request-id"]
    if not head_only:
        check(reply, 405, "OPTIONS is not answered here, only ")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/application/create", "POST"),
        ("GET", "/task/create", "POST"),
        ("PUT", "/task/cancel", "POST"),
        ("DELETE", "/task/detail", "GET, POST"),
        ("PATCH", "/healthz", "GET"),
        ("POST", "/readyz", "GET"),
    ],
)
async def test_another_method_is_told_the_right_ones(
    api: Api, method: str, path: str, allow: str
) -> None:
    reply = await api.raw(request_bytes(method, path, {}, b""))
    check(reply, 405, f"{method} is not answered here, only {allow}")
    assert reply.headers["allow"] == allow


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/nowhere",
        "/task",
        "/task/create/",
        "//task/create",
        "/task/Create",
        "/healthz/",
        "/%00",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_an_unknown_path_is_not_found(api: Api, method: str, path: str) -> None:
    reply = await api.raw(request_bytes(method, path, {}, b"{}" if method == "POST" else b""))
    check(reply, 404, "there is no such path")


async def test_a_path_is_compared_as_it_was_sent(api: Api) -> None:
    reply = await api.post("/task%2Fcreate", TASK)
    assert reply.status == 404


@pytest.mark.parametrize("path", _PATHS)
async def test_a_query_on_post_is_refused(api: Api, path: str) -> None:
    reply = await api.post(f"{path}?x=1", b"{}")
    check(reply, 400, "a POST must have no query string")


async def test_a_body_on_get_is_refused(api: Api) -> None:
    headers = api.signed(b"coroutine_id=1")
    reply = await api.raw(
        request_bytes("GET", "/task/detail?coroutine_id=1", headers, b'{"coroutine_id":1}')
    )
    check(reply, 400, "a GET must have no body")


def _chunked(body: bytes) -> bytes:
    pieces = [body[at : at + 1000] for at in range(0, len(body), 1000)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


async def _send_with_length(api: Api, body: bytes) -> Reply:
    return await api.post("/task/create", body)


async def _send_chunked(api: Api, body: bytes) -> Reply:
    headers = api.signed(body) | {
        "Content-Type": "application/json",
        "Transfer-Encoding": "chunked",
    }
    head = request_bytes("POST", "/task/create", headers, b"", length=False)
    return await api.raw(head + _chunked(body))


@pytest.mark.parametrize("send", [_send_with_length, _send_chunked])
async def test_a_body_at_the_limit_is_accepted_and_one_over_it_is_not(
    send: Callable[[Api, bytes], Awaitable[Reply]],
) -> None:
    async with running_api(config_of(max_body=2000)) as api:
        body = encode(TASK).ljust(2000)
        check(await send(api, body + b" "), 413, "the body is longer than 2000 bytes")
        assert api.kept() == (1, 0)
        assert (await send(api, body)).code == 0


@pytest.mark.parametrize("send", [_send_with_length, _send_chunked])
async def test_who_sends_megabytes_too_much_sees_the_answer(
    send: Callable[[Api, bytes], Awaitable[Reply]],
) -> None:
    async with running_api(config_of(max_body=2000)) as api:
        reply = await send(api, b" " * 4_000_000)
        check(reply, 413, "longer than 2000 bytes")
        assert reply.headers["connection"] == "close"


async def test_a_413_by_content_length_comes_before_the_body(api: Api) -> None:
    wire = await api.connect()
    async with wire.stream:
        head = request_bytes(
            "POST",
            "/task/create",
            {"Content-Length": "99999999999999999999"},
            b"",
            length=False,
        )
        await wire.send(head)
        check(await wire.reply(), 413, "longer than 4096 bytes")

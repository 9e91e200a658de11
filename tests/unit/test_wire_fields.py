"""Fields, queries and answers."""

from __future__ import annotations

import json
from urllib.parse import quote
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskd.api.endpoints.tasks import parse_task
from taskd.api.http.heads import read_head
from taskd.api.wire.body import read_object
from taskd.api.wire.envelope import Answer, InvalidFields, Refusal, done, refused, shown
from taskd.api.wire.fields import Fields
from taskd.api.wire.query import parse_query
from taskd.errors import InvalidInput

_NUMBERS = frozenset({"coroutine_id"})
_KNOWN = frozenset({"taskNo", "timeout"})
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=70),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
_NAMES = st.sampled_from(
    [
        "taskNo",
        "name",
        "content",
        "timeout",
        "runtime",
        "delay",
        "step",
        "retryTotal",
        "task_no",
        "id",
        "",
    ]
)


@given(st.dictionaries(_NAMES, _JSON))
def test_any_fields_make_a_task_or_a_list_of_errors(values: dict[str, object]) -> None:
    try:
        task = parse_task(values, app_id=1, now=1000, zone=ZoneInfo("UTC"))
    except InvalidFields as refusal:
        answer = refusal.answer
        listed = json.loads(answer.encode())["data"]["errors"]
        first = InvalidInput(listed[0]["field"], listed[0]["problem"])
        assert answer.status == 422
        assert answer.msg == str(first)
        return
    assert 1 <= len(task.task_no) <= 64
    assert 1 <= task.timeout_ms <= 3_600_000
    assert task.due_at >= 1000
    assert task.runtime is None or task.runtime < task.due_at
    json.loads(task.content)


@given(st.binary(max_size=200))
def test_any_body_is_an_object_or_a_refusal(body: bytes) -> None:
    try:
        assert isinstance(read_object(body), dict)
    except Refusal as refusal:
        status = refusal.answer.status
        json.loads(refusal.answer.encode())
    else:
        status = 400
    assert status in {400, 422}


@pytest.mark.parametrize("value", [True, 1.0, "1", None, [], {}])
def test_an_integer_is_nothing_else(value: object) -> None:
    fields = Fields({"timeout": value}, _KNOWN)
    fields.integer("timeout", 1, 10)
    with pytest.raises(InvalidFields):
        fields.check()


def test_a_string_is_counted_in_characters() -> None:
    fields = Fields({"taskNo": "😀" * 64}, _KNOWN)
    assert fields.text("taskNo", most=64) == "😀" * 64
    fields.check()


@pytest.mark.parametrize("text", ["a b", "a\u00a0b", "e\u0301", "帅", "\u200b", "\u2028"])
def test_printable_means_no_control_characters_and_no_more(text: str) -> None:
    fields = Fields({"taskNo": text}, _KNOWN)
    assert fields.text("taskNo", most=64, printable=True) == text
    fields.check()


@given(st.text(max_size=300))
def test_every_unknown_field_is_told_a_known_one(name: str) -> None:
    fields = Fields({name: 1}, _KNOWN)
    if name not in _KNOWN:
        (error,) = fields.errors
        assert error.problem.split()[-1] in _KNOWN
        assert len(error.field) <= 64


@given(st.binary())
def test_any_query_is_fields_or_a_refusal(query: bytes) -> None:
    try:
        values = parse_query(query, numbers=_NUMBERS)
    except Refusal as refusal:
        assert refusal.answer.status in {400, 422}  # noqa: PT017 - both ways are right
        return
    for name, value in values.items():
        assert type(value) is str or (name in _NUMBERS and type(value) is int)


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1))
def test_a_percent_encoded_value_is_read_as_it_was(text: str) -> None:
    query = f"taskNo={quote(text, safe='')}".encode()
    assert parse_query(query, numbers=_NUMBERS) == {"taskNo": text}


@given(st.integers(1, 10**16 - 1))
def test_a_number_in_a_query_is_read_as_it_is(number: int) -> None:
    query = f"coroutine_id={number}".encode()
    assert parse_query(query, numbers=_NUMBERS) == {"coroutine_id": number}


@given(st.text(), st.text() | st.dictionaries(st.text(), st.text()))
def test_every_answer_is_an_envelope_in_utf_8(msg: str, data: object) -> None:
    value = json.loads(Answer(200, 0, msg, data).encode().decode())
    assert list(value) == ["code", "msg", "data"]
    assert value == {"code": 0, "msg": msg, "data": data}


def test_answers_are_written_literally() -> None:
    assert (
        refused("请勿重复提交!").encode() == '{"code":1,"msg":"请勿重复提交!","data":[]}'.encode()
    )
    assert done({"a": 1}, "Ok!").encode() == b'{"code":0,"msg":"Ok!","data":{"a":1}}'


@given(_JSON)
def test_a_shown_value_is_short_and_on_one_line(value: object) -> None:
    assert len(shown(value)) <= 61
    assert "\n" not in shown(value)


def test_headers_that_come_twice_conflict_only_where_they_differ() -> None:
    lines = b"Host:\r\na: 1\r\nb: 1\r\nA: 1\r\nB: 2\r\nc: 1\r\n\r\n"
    head = read_head(b"GET / HTTP/1.1\r\n" + lines)
    assert head is not None
    assert head.headers == {b"host": b"", b"a": b"1", b"b": b"2", b"c": b"1"}
    assert head.conflicts == {b"b"}

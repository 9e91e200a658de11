"""JSON as the API takes it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from taskd.api.endpoints.tasks import parse_content
from taskd.api.wire.strict_json import Fraction, NotJSON, check_survives, check_text, parse_object
from taskd.errors import InvalidInput
from taskd.runtime.json_depth import MAX_DEPTH

T = TypeVar("T")

_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
_INTS = st.integers(-(2**63), 2**64 - 1)
_SCALARS = (
    st.none() | st.booleans() | _INTS | st.floats(allow_nan=False, allow_infinity=False) | _TEXT
)
_VALUES = st.recursive(
    _SCALARS, lambda inner: st.lists(inner) | st.dictionaries(_TEXT, inner), max_leaves=20
)
_OBJECTS = st.dictionaries(_TEXT, _VALUES)

# Text that looks like JSON more often than random text does.
_PIECES = st.lists(
    st.sampled_from(
        [
            *'{}[]:,"\\ -.eE0123456789ud8c\0\x1f\x7fé\u2028😀\ufeff',
            "true",
            "null",
            "NaN",
            "-Infinity",
            "\\u0000",
            "\\ud800",
            "\\ud83d\\ude00",
            '"a":1',
            '{"a":',
            "1" * 20,
            "1e400",
            "[" * 70,
            "]" * 70,
        ]
    )
).map("".join)


def attempt(read: Callable[[], T]) -> tuple[T | None, str | None]:
    """What a function gives, or the sentence with which it refuses."""
    try:
        return read(), None
    except (NotJSON, InvalidInput) as error:
        return None, str(error)


def strings_of(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, child in value.items():
            yield key
            yield from strings_of(child)
    elif isinstance(value, list):
        for child in value:
            yield from strings_of(child)


@given(_OBJECTS)
@example({"a": -0.0, "b": 1e22, "c": 2**64 - 1, "d": -(2**63), "e": "\u2028😀"})
@example({"a": {"": [{}, [], "[[["]}})
def test_what_json_can_say_is_read_as_it_is(values: dict[str, object]) -> None:
    for ascii_only in (True, False):
        body = json.dumps(values, ensure_ascii=ascii_only).encode()
        assert parse_object(body) == values


@given(_VALUES.filter(lambda value: value is not None))
def test_a_content_value_survives_being_written_again(value: object) -> None:
    parsed = parse_object(json.dumps({"content": value}).encode())["content"]
    if isinstance(value, str):
        return
    again = json.loads(parse_content(parsed))
    assert again == value
    assert json.dumps(again) == json.dumps(value)


@given(st.binary())
@example(b"\xef\xbb\xbf{}")
@example(b'{"a":"\xed\xa0\x80"}')
@example(b"[" * 100_000)
@example(b'{"a":' * 100_000)
@example(b'"' * 10_001)
@example(b'{"a":1' + b"0" * 100_000 + b"}")
@example(b'{"a":1e' + b"9" * 5000 + b"}")
@example(b'{"a":0e' + b"9" * 5000 + b"}")
def test_no_bytes_raise_anything_but_a_refusal(body: bytes) -> None:
    values, error = attempt(lambda: parse_object(body))
    if error is not None:
        assert 0 < len(error) < 500
        return
    assert values is not None
    for value in values.values():
        text, error = attempt(lambda value=value: parse_content(value))  # type: ignore[misc]
        if text is not None:
            json.loads(text)


@given(_PIECES)
@example('{"a":1,"a":2}')
@example('{"a":"\\ud83d\\ude00"}')
def test_what_is_taken_is_json_that_says_the_same_to_all(text: str) -> None:
    """Whatever the strict reader takes, a lenient one reads alike, and it holds
    nothing that readers disagree on."""
    values, error = attempt(lambda: parse_object(text.encode()))
    if error is not None:
        return
    assert values == json.loads(text)
    for part in strings_of(values):
        assert "\0" not in part
        part.encode()


@given(_PIECES)
def test_check_text_takes_exactly_what_is_json(text: str) -> None:
    def refuse(name: str) -> None:
        raise ValueError(name)

    try:
        json.JSONDecoder(parse_constant=refuse).decode(text)
        is_json = True
    except (ValueError, RecursionError):
        is_json = False
    _, error = attempt(lambda: check_text(text))
    if error is None:
        assert is_json
    else:
        assert not is_json or "nested" in error


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_sixty_four_levels_are_taken_and_sixty_five_are_not(opening: str) -> None:
    closing = {"[": "]", '{"a":': "}"}[opening]
    assert MAX_DEPTH == 64
    check_text(opening * 64 + "1" + closing * 64)
    with pytest.raises(NotJSON, match="more than 64 deep"):
        check_text(opening * 65 + "1" + closing * 65)
    whole = f'{{"content":{opening * 63}1{closing * 63}}}'
    assert parse_object(whole.encode())["content"]
    with pytest.raises(InvalidInput, match="content: is nested more than 64 deep"):
        parse_object(f'{{"content":{opening * 64}1{closing * 64}}}'.encode())


def test_what_is_too_deep_is_told_where_it_is_json_up_to_there() -> None:
    deep = "[" * 300
    for text in (deep, deep + "x", '{"a":' + deep, '["\\"[",' + deep):
        with pytest.raises(InvalidInput, match=r"^the body is nested more than 64 deep$"):
            parse_object(text.encode())
        with pytest.raises(NotJSON, match=r"^it is nested more than 64 deep$"):
            check_text(text)
    for text, at in (("x" + deep, 0), ("[1 2" + deep, 3), ('["a"' + deep, 4)):
        with pytest.raises(NotJSON, match=rf"^the body is not JSON: .* at character {at}$"):
            parse_object(text.encode())
        with pytest.raises(NotJSON, match=rf"^it is not JSON: .* at character {at}$"):
            check_text(text)


def test_brackets_in_strings_are_no_levels() -> None:
    assert parse_object(b'{"a":"' + b"[" * 500 + b'"}') == {"a": "[" * 500}
    check_text('"' + "{" * 500 + '"')


def test_escapes_that_only_look_bad_are_taken() -> None:
    assert parse_object(b'{"a":"\\\\u0000 \\\\ud800"}') == {"a": "\\u0000 \\ud800"}


@pytest.mark.parametrize(
    ("text", "survives"),
    [
        ("1.0", True),
        ("1E5", True),
        ("-0.0", True),
        ("0.1", True),
        ("0e999999999999999999999", True),
        ("0.00000000000000000001", True),
        ("1.7976931348623157e308", True),
        ("5e-324", True),
        ("0.30000000000000004", True),
        ("1e400", False),
        ("-1e400", False),
        ("1e-400", False),
        ("1e-999999999999999999999", False),
        ("1e999999999999999999999", False),
        ("0.12345678901234567", False),
        ("1.00000000000000000", False),
        ("123456789012345678.5", False),
        ("9007199254740993.0", False),
    ],
)
def test_which_fractions_survive(text: str, survives: bool) -> None:
    number = Fraction(text)
    assert number.survives is survives
    if survives:
        assert parse_content(number) == float.__repr__(float(text)).encode()
        assert math.copysign(1, number) == math.copysign(1, float(text))
    else:
        with pytest.raises(ValueError, match="send the content as a string"):
            check_survives([{"a": number}])


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_double_survives_as_python_writes_it(value: float) -> None:
    assert Fraction(repr(value)).survives


@given(st.integers(-(10**19), 10**19), st.integers(1, 20), st.integers(-330, 330))
def test_a_fraction_that_survives_is_the_same_number(
    digits: int, point: int, exponent: int
) -> None:
    text = str(digits)
    sign, plain = ("-", text[1:]) if digits < 0 else ("", text)
    plain = plain.rjust(point + 1, "0")
    number = Fraction(f"{sign}{plain[:-point]}.{plain[-point:]}e{exponent}")
    if number.survives:
        again = Fraction(parse_content(number).decode())
        assert again == number


@pytest.mark.parametrize("content", ['"x"', " [1, 2.50 ]\n", "1e400", '{"a":1,"a":2}', "\t0"])
def test_a_content_string_goes_on_byte_for_byte(content: str) -> None:
    assert parse_content(content) == content.encode()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"order": 1001, "名": "é"}, '{"order":1001,"名":"é"}'),
        ([], "[]"),
        (False, "false"),
        (0, "0"),
        (18446744073709551615, "18446744073709551615"),
    ],
)
def test_another_content_is_written_without_white_space(value: object, text: str) -> None:
    assert parse_content(value) == text.encode()


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 1_000_000,
        b'{"a":' * 200_000,
        b'{"' + b"\\u0000" * 170_000 + b'":1}',
        b'{"a":"' + b'\\"' * 500_000,
        b'{"a":[' + b"1," * 499_000 + b"1]}",
        b'{"a":[' + b'{"b":0,"b":0},' * 70_000 + b"0]}",
        b'{"a":{' + b",".join(b'"%d":0' % n for n in range(90_000)) + b',"0":1}}',
        b"{" + b",".join(b'"%d":0' % n for n in range(90_000)) + b',"0":1}',
        b'{"a":' + b"1" * 1_000_000 + b"}",
        b'{"a":0.' + b"1" * 1_000_000 + b"}",
        b'{"a":[' + b",".join([b"[" * 60 + b"]" * 60] * 8_200) + b"]}",
        b'{"a":' + b"[" * 450_000 + b"]" * 450_000 + b"}",
        b'{"a":"' + b"[" * 900_000 + b'","b":"\\ud83d\\ude00"}',
    ],
    ids=lambda body: body[:24].decode(),
)
def test_a_megabyte_meant_to_be_slow_is_not(body: bytes) -> None:
    began = time.thread_time()
    _, error = attempt(lambda: parse_content(parse_object(body)["a"]))
    assert error is None or len(error) < 300
    assert time.thread_time() - began < 2.5


@pytest.mark.parametrize("depth", [1, 63, 64, 65, 66, 200])
@pytest.mark.parametrize("brackets", ["[]", "{}"])
def test_the_depth_is_counted_to_the_level(depth: int, brackets: str) -> None:
    opening = "[" if brackets == "[]" else '{"a}]":'
    text = opening * depth + "1" + brackets[1] * depth
    wide = "[" + ",".join([text] * 70) + "]"
    for candidate, levels in ((text, depth), (wide, depth + 1)):
        if levels > MAX_DEPTH:
            with pytest.raises(NotJSON, match="deep"):
                check_text(candidate)
        else:
            check_text(candidate)

"""How deep a JSON text is nested."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from taskd.runtime import json_depth
from taskd.runtime.json_depth import (
    MAX_READ_DEPTH,
    NestedTooDeep,
    deeper_than,
    first_deeper,
    load_json,
    more_values_than,
    refuse_deep,
)

_TEXTS = st.recursive(
    st.sampled_from(["1", "null", '"a"', '"[[\\"{"', '"\\\\"', '"\\\\\\"]"', '"é[😀"', '""']),
    lambda inner: (
        st.lists(inner, max_size=4).map(lambda parts: f"[{','.join(parts)}]")
        | st.lists(inner, max_size=4).map(
            lambda parts: "{" + ",".join(f'"}}{n}\\"{{":{p}' for n, p in enumerate(parts)) + "}"
        )
    ),
    max_leaves=40,
)
_PIECES = st.lists(st.sampled_from([*'[]{}"\\,:1', '\\"', "\\\\", "[[[", "]]]", "é"])).map("".join)


def depth_of(value: object) -> int:
    """The depth of a value, found by walking it."""
    if isinstance(value, dict):
        return 1 + max(map(depth_of, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth_of, value), default=0)
    return 0


@given(_TEXTS, st.integers(2, 70_000))
def test_the_depth_is_that_of_what_a_parser_makes_of_it(text: str, size: int) -> None:
    depth = depth_of(json.loads(text))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_depth, "_SLICE", size)
        assert not deeper_than(text.encode(), depth)
        assert first_deeper(text.encode(), depth) is None
        if depth:
            assert deeper_than(text.encode(), depth - 1)


@given(_TEXTS, st.integers(0, 5), st.integers(2, 100))
def test_what_comes_before_the_place_is_not_deeper(text: str, limit: int, size: int) -> None:
    data = text.encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_depth, "_SLICE", size)
        place = first_deeper(data, limit)
    if place is None:
        return
    assert data[place : place + 1] in {b"[", b"{"}
    assert not deeper_than(data[:place], limit)
    assert deeper_than(data[: place + 1], limit)


def values_of(value: object) -> int:
    """The values in a value, found by walking it; a key and its value are one."""
    if isinstance(value, dict):
        return 1 + sum(map(values_of, value.values()))
    if isinstance(value, list):
        return 1 + sum(map(values_of, value))
    return 1


@given(_TEXTS, st.integers(2, 70_000))
def test_values_are_counted_but_for_what_is_empty(text: str, size: int) -> None:
    value = json.loads(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_depth, "_SLICE", size)
        assert more_values_than(text.encode(), values_of(value) - 1)
        assert not more_values_than(text.encode(), 2 * values_of(value))


def test_what_stands_in_strings_is_no_value() -> None:
    text = json.dumps({"a": "," * 1000, "[" * 1000: '\\"{[,' * 1000}).encode()
    assert more_values_than(text, 2)
    assert not more_values_than(text, 3)


def counted(text: str) -> int:
    """The depth of a text, counted character by character."""
    depth = deepest = at = 0
    in_string = False
    while at < len(text):
        if in_string and text[at] == "\\":
            at += 1
        elif text[at] == '"':
            in_string = not in_string
        elif not in_string:
            depth += (text[at] in "[{") - (text[at] in "]}")
            deepest = max(deepest, depth)
        at += 1
    return deepest


@given(_PIECES, st.integers(0, 4), st.integers(2, 20))
@example('\\"[', 0, 2)
@example("]]][[", 1, 3)
def test_no_parser_goes_deeper_before_it_finds_that_a_text_is_no_json(
    text: str, limit: int, size: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_depth, "_SLICE", size)
        place = first_deeper(text.encode(), limit)
    given = text if place is None else text.encode()[:place].decode()
    try:
        json.loads(given)
        read = len(given)
    except json.JSONDecodeError as error:
        read = error.pos
    assert counted(given[:read]) <= limit


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a}]":', "}")])
def test_every_python_reads_what_is_not_too_deep(opening: str, closing: str) -> None:
    def nested(depth: int) -> str:
        return opening * depth + "1" + closing * depth

    assert depth_of(load_json(nested(MAX_READ_DEPTH))) == MAX_READ_DEPTH
    with pytest.raises(NestedTooDeep, match="it is nested more than 256 deep"):
        load_json(nested(MAX_READ_DEPTH + 1))
    with pytest.raises(NestedTooDeep, match="it is nested more than 64 deep"):
        load_json(nested(65).encode(), max_depth=64)


def test_what_is_nested_too_deep_is_refused_whatever_it_is() -> None:
    for text in ("[" * 1_000_000, '{"a":' * 200_000, "[" * 300 + "]" * 300, "x" + "[" * 300):
        with pytest.raises(NestedTooDeep, match="it is nested more than 256 deep"):
            load_json(text)
        with pytest.raises(NestedTooDeep):
            refuse_deep(text.encode(), 64)
    refuse_deep('"' + "[" * 1000)
    refuse_deep('"\\"' + "[" * 1000)
    with pytest.raises(NestedTooDeep):
        refuse_deep('"\\\\"' + "[" * 1000)

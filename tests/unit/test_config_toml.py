"""TOML that anybody may have written."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from taskd.config import load_toml
from taskd.config.toml import MAX_PARTS, MAX_TEXT

_PIECES = st.lists(
    st.sampled_from(
        [
            *("a", "b", ".", " ", "=", "1", "\n", "\n", "#", "\\", "[", "]", "{", "}", ","),
            *(
                '"',
                "'",
                '"""',
                "'''",
                '\\"',
                "a = 1\n",
                "[a]\n",
                "[[b]]\n",
                'c = "x"\n',
                "1.5",
                "é",
            ),
        ]
    )
).map("".join)


@given(_PIECES)
@example('a = "#"\nb = "[[" # ]\n')
@example('a = """x""y""""\n')
@example("a = '''x''y''''\n")
@example('a = "\\"#"\nb = 1 # "\n')
def test_what_is_bounded_is_read_as_ever(text: str) -> None:
    try:
        wanted: object = tomllib.loads(text)
    except ValueError as error:
        wanted = str(error)
    try:
        found: object = load_toml(text)
    except ValueError as error:
        found = str(error)
    assert found == wanted or "nested" in str(found) or "parts" in str(found)


@pytest.mark.parametrize("quoted", ['"%s"', "'%s'", '"""%s"""', "'''%s'''", "1 # %s"])
def test_what_stands_in_a_string_or_a_comment_has_no_parts_and_no_depth(quoted: str) -> None:
    text = "a = " + quoted % ("a.b." * 20 + "[" * 20) + "\nb = 1\n"
    assert load_toml(text)["b"] == 1


@pytest.mark.parametrize("key", ["%s = 1", "[%s]", "[[%s]]", "x = {%s = 1}", "x = 1\n%s = 1"])
@pytest.mark.parametrize("part", ["a", '"a"', "'a'", "a "])
def test_a_key_has_only_so_many_parts(key: str, part: str) -> None:
    load_toml(key % ".".join([part] * MAX_PARTS))
    with pytest.raises(ValueError, match="a key has more than 16 parts"):
        load_toml(key % ".".join([part] * (MAX_PARTS + 1)))


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ("{a = ", "}"), ("[{a = ", "}]")])
def test_what_is_nested_too_deep_is_refused(opening: str, closing: str) -> None:
    load_toml("x = " + opening * 8 + "1" + closing * 8)
    with pytest.raises(ValueError, match="something is nested more than 16 deep"):
        load_toml("x = " + opening * 17 + "1" + closing * 17)
    with pytest.raises(ValueError, match="something is nested more than 16 deep"):
        load_toml("x = " + opening * 100_000)


def test_a_number_of_thousands_of_digits_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match=r"^a number is too long$"):
        load_toml("x = " + "1" * 5000)


def test_a_text_without_end_is_not_read() -> None:
    with pytest.raises(ValueError, match="has more than"):
        load_toml("#" * (MAX_TEXT + 1))

"""Reads TOML from a file that may not be trusted.

The time of the standard library's parser grows with the square of the number of parts of
a dotted key, and its recursion with the text's nesting. So both are bounded before it is
given the text.
"""

from __future__ import annotations

import re
import tomllib
from typing import Any

from taskd.runtime.json_depth import deeper_than

MAX_TEXT = 16 * 1024 * 1024
"""Characters of the longest text that is read."""

MAX_PARTS = 16
"""The most parts of a dotted key; taskd's own keys have two."""

MAX_DEPTH = 16
"""The deepest nesting of arrays and tables."""

# Possessive throughout, and with an optional closing quote, so that it never backtracks.
_STRING_OR_COMMENT = re.compile(
    r'"""(?:[^"\\]++|\\.|"{1,2}+(?!"))*+(?:"{3,5}+)?+'
    r"|'''(?:[^']++|'{1,2}+(?!'))*+(?:'{3,5}+)?+"
    r'|"[^"\\\n]*+(?:\\.[^"\\\n]*+)*+"?+'
    r"|'[^'\n]*+'?+"
    r"|#[^\n]*+",
    re.DOTALL,
)
_IN_A_KEY = re.compile(r"[A-Za-z0-9_ \t-]++")


def load_toml(text: str) -> dict[str, Any]:
    """The tables of a TOML text.

    Raises:
        ValueError: the text is no TOML, or exceeds a bound; the message says where or
            which.
    """
    if len(text) > MAX_TEXT:
        raise ValueError(f"it has more than {MAX_TEXT} characters")
    marks = _IN_A_KEY.sub("", _STRING_OR_COMMENT.sub("", text))
    if "." * MAX_PARTS in marks:
        raise ValueError(f"a key has more than {MAX_PARTS} parts")
    if deeper_than(marks.encode("utf-8", "replace"), MAX_DEPTH):
        raise ValueError(f"something is nested more than {MAX_DEPTH} deep")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise
    except ValueError as error:  # from `int`, which reads no more than 4300 digits
        raise ValueError("a number is too long") from error

"""Reading TOML from a file that anybody may have written.

The standard library's parser takes time that grows with the square of the number of
parts of a dotted key, and goes as deep as the text is nested. So both are bounded
before it sees the text.
"""

from __future__ import annotations

import re
import tomllib
from typing import Any

from taskd.runtime.json_depth import deeper_than

MAX_TEXT = 16 * 1024 * 1024
"""Characters of the longest text that is read."""

MAX_PARTS = 16
"""Parts of a dotted key; taskd's own have two."""

MAX_DEPTH = 16
"""Arrays and tables inside one another."""

# Possessive throughout, and closed or not, so that no text makes it try again.
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
        ValueError: it is none, or more than is read; the message says what and where.
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
    except ValueError as error:  # of `int`, which reads no more than some thousand digits
        raise ValueError("a number is too long") from error

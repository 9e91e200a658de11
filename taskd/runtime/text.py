"""Text from files and pipes: UTF-8, with a byte order mark or without one.

Editors and shells of Windows write the mark, or UTF-16. The mark is removed; UTF-16 is refused
in a sentence of its own, as it would otherwise look like a broken file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import IO

MARK = b"\xef\xbb\xbf"
"""The byte order mark, in UTF-8."""

_UTF_32 = (b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff")
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_LOOKED_AT = 4


class NotText(ValueError):
    """The bytes are no UTF-8. The message is a sentence without its subject."""


def refuse_other(data: bytes) -> None:
    """Refuse bytes that begin as UTF-16 or UTF-32 does.

    Raises:
        NotText: they do.
    """
    begin = data[:_LOOKED_AT]
    name = None
    if begin.startswith(_UTF_32):
        name = "UTF-32"
    elif begin.startswith(_UTF_16):
        name = "UTF-16"
    elif begin.count(0) == _LOOKED_AT - 1:  # one letter, without a mark
        name = "UTF-32"
    elif len(begin) >= len(_UTF_16[0]) and (begin[0] == 0) is not (begin[1] == 0):
        name = "UTF-16"
    if name is not None:
        raise NotText(f"is {name} and must be UTF-8: iconv -f {name} -t UTF-8")


def text_of(data: bytes) -> str:
    """Return the text of these bytes.

    Raises:
        NotText: they are no text. The error holds nothing of them.
    """
    refuse_other(data)
    try:
        return data.removeprefix(MARK).decode()
    except UnicodeDecodeError as error:
        place = error.start
    # Raised outside of the handler: the cause would show the bytes, perhaps a secret.
    raise NotText(f"is not UTF-8 at byte {place}")


def unmarked(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the chunks of a text, however small, without its mark.

    Raises:
        NotText: the text begins as UTF-16 or UTF-32 does.
    """
    begin: bytes | None = b""
    for chunk in chunks:
        if begin is None or not chunk:
            yield chunk
            continue
        begin += chunk
        if len(begin) >= _LOOKED_AT:
            refuse_other(begin)
            yield begin.removeprefix(MARK)
            begin = None
    if begin:
        refuse_other(begin)
        yield begin.removeprefix(MARK)


def lines_of(stream: IO[bytes]) -> Iterator[str]:
    """Yield the lines of a text.

    Raises:
        NotText: a line is no UTF-8; says which.
    """
    for number, line in enumerate(stream, start=1):
        if number == 1:
            refuse_other(line)
        try:
            yield line.removeprefix(MARK).decode()
        except UnicodeDecodeError as error:
            place = error.start
        else:
            continue
        raise NotText(f"is not UTF-8 in line {number}, at byte {place}")

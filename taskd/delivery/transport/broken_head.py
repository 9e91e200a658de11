"""Reads the head of an answer that the parser has refused.

A status means the same whatever else is wrong: two Content-Lengths, a header without a
colon, lines that end with a bare LF. So a refused head is read once more, for its status
line and for the few headers that matter. Nothing else of it is trusted: where its body ends
stays unknown.
"""

from __future__ import annotations

import re

_BEGINNING = re.compile(rb"[\r\n]*HTTP/[0-9](?:\.[0-9])?[ \t]+[0-9]{3}(?![0-9])")
_STATUS_LINE = re.compile(rb"HTTP/[0-9](?:\.[0-9])?[ \t]+([0-9]{3})(?:[ \t][^\n]*)?\r?\n")
_BLANK_LINE = re.compile(rb"\n\r?\n")
_TLS_RECORDS = (b"\x15\x03", b"\x16\x03")
"""An alert, a handshake."""
_HTTP_2_SETTINGS = b"\x04\x00"
"""Type and flags of the frame that HTTP/2 begins with."""
_SHOWN = 32
_INTERIM = range(100, 200)
_SWITCHING_PROTOCOLS = 101


def looks_like_an_answer(data: bytes | bytearray) -> bool:
    """Whether these first bytes hold a version and a status."""
    return _BEGINNING.match(data) is not None


def what_is_no_answer(data: bytes) -> str:
    """A sentence on first bytes that do not begin an answer."""
    if data.startswith(_TLS_RECORDS):
        return "the answer is TLS, not HTTP: should the linkUrl begin with https://?"
    if data[3:5] == _HTTP_2_SETTINGS:
        return "the answer is HTTP/2, and only HTTP/1.1 is spoken"
    shown = repr(data[:_SHOWN].decode("latin-1")) + ("…" if len(data) > _SHOWN else "")
    return f"the answer is not valid HTTP: it begins with {shown}"


class BrokenHead:
    """Collects an answer from its first byte until its head is there.

    Args:
        wanted: the headers that are kept, in lower case.

    Attributes:
        status: None until the head has ended.
        headers: those that are wanted; of several with one name, the first.
        body: what came after the head.
    """

    __slots__ = ("_at", "_data", "_searched", "_wanted", "body", "headers", "status")

    def __init__(self, wanted: frozenset[bytes]) -> None:
        self._wanted = wanted
        self._data = bytearray()
        self._at = 0
        self._searched = 0
        self.status: int | None = None
        self.headers: dict[bytes, bytes] = {}
        self.body = b""

    def feed(self, data: bytes | bytearray) -> bool:
        """Take more bytes, each once.

        Returns:
            Whether this can still become a head, or is one.
        """
        self._data += data
        while True:
            while self._data.startswith((b"\r", b"\n"), self._at):
                self._at += 1
            end = _BLANK_LINE.search(self._data, max(self._at, self._searched))
            if end is None:
                self._searched = len(self._data) - 2  # a blank line may have begun
                return True
            line = _STATUS_LINE.match(self._data, self._at)
            if line is None:
                return False
            status = int(line[1])
            if status not in _INTERIM or status == _SWITCHING_PROTOCOLS:
                self._read(self._data[line.end() : end.start()])
                self.body = bytes(self._data[end.end() :])
                self.status = status
                return True
            self._at = end.end()

    def _read(self, lines: bytearray) -> None:
        for line in lines.split(b"\n"):
            name, colon, value = line.partition(b":")
            name = name.strip().lower()
            if colon and bytes(name) in self._wanted:
                self.headers.setdefault(bytes(name), bytes(value.strip()))

"""Finds where a request's body ends: after so many bytes, or where its chunks say so.

A framing takes the bytes behind a head, returns those of the body's content, and keeps the
rest, which are the next request's. The result is the same wherever the bytes are cut.
"""

from __future__ import annotations

import re
from typing import Protocol

from taskd.api.http.heads import MAX_HEAD, Unreadable

_MAX_SIZE_LINE_BYTES = 256
_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_QUOTED = rb'"(?:[\t\x20\x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t\x20-\x7e\x80-\xff])*+"'
_SIZE = re.compile(
    rb"([0-9A-Fa-f]{1,8}+)(?:;" + _TOKEN + rb"(?:=(?:" + _TOKEN + rb"|" + _QUOTED + rb"))?+)*+\r\n"
)
_TRAILER = re.compile(rb"(?:[!#$%&'*+.^_`|~0-9A-Za-z-]++:[\t\x20-\x7e\x80-\xff]*+)?+\r\n")


class Framing(Protocol):
    """A body that is arriving."""

    complete: bool
    """Whether all of it has come."""
    rest: bytes
    """Bytes that came behind it."""

    def feed(self, data: bytes) -> bytes:
        """Take bytes that came; returns those of the body's content.

        Raises:
            Unreadable: they are no well-formed body.
        """
        ...


class Counted:
    """A body of a known number of bytes."""

    def __init__(self, length: int) -> None:
        self._left = length
        self.complete = not length
        self.rest = b""

    def feed(self, data: bytes) -> bytes:
        """See `Framing.feed`."""
        piece = data[: self._left]
        self._left -= len(piece)
        self.complete = not self._left
        self.rest = data[len(piece) :]
        return piece


class Chunked:
    """A body in chunks. Chunk extensions and trailers have to be well formed, and are
    ignored."""

    def __init__(self) -> None:
        self.complete = False
        self.rest = b""
        self._data = bytearray()
        """Bytes that were not taken yet: the beginning of a line."""
        self._seen = 0
        """Where to go on looking for the line's end."""
        self._left = 0
        """Bytes of the chunk that are still to come, its CR LF included."""
        self._trailing = 0
        """Bytes that came behind the last chunk, plus 1; 0 before it."""

    def feed(self, data: bytes) -> bytes:
        """See `Framing.feed`."""
        self._data += data
        at = 0
        pieces: list[bytes] = []
        while not self.complete and at < len(self._data):
            if self._left:
                step = self._chunk(at, pieces)
            elif self._trailing:
                step = self._trailer(at)
            else:
                step = self._size(at)
            if not step:
                break
            at += step
            self._seen = at
        self._seen = len(self._data) - at
        del self._data[:at]
        if self.complete:
            self.rest = bytes(self._data)
            self._data.clear()
        return b"".join(pieces)

    def _size(self, at: int) -> int:
        """Take a chunk's size from the line at this offset; returns the line's length, 0
        while the line is not complete."""
        end = self._data.find(b"\n", self._seen, at + _MAX_SIZE_LINE_BYTES) + 1
        if not end:
            if len(self._data) - at >= _MAX_SIZE_LINE_BYTES:
                raise Unreadable("a chunk's size is not given in a short line")
            return 0
        match = _SIZE.fullmatch(self._data, at, end)
        if match is None:
            raise Unreadable("a chunk's size must be hexadecimal digits in a line of their own")
        size = int(match[1], 16)
        if size:
            self._left = size + 2
        else:
            self._trailing = 1
        return end - at

    def _chunk(self, at: int, pieces: list[bytes]) -> int:
        """Take what has come of a chunk and its CR LF; returns how many bytes that is."""
        data = self._data
        step = min(self._left, len(data) - at)
        content = min(step, max(self._left - 2, 0))
        if content:
            pieces.append(bytes(data[at : at + content]))
        end = data[at + content : at + step]
        if not b"\r\n"[content - self._left :].startswith(end):
            raise Unreadable("a chunk is longer than its size")
        self._left -= step
        return step

    def _trailer(self, at: int) -> int:
        """Take one line behind the last chunk; returns its length, 0 while it is not
        complete."""
        data = self._data
        end = data.find(b"\n", self._seen) + 1
        length = (end or len(data)) - at
        if self._trailing + length > MAX_HEAD:
            raise Unreadable(f"what trails behind the body is longer than {MAX_HEAD} bytes")
        if not end:
            return 0
        if not _TRAILER.fullmatch(data, at, end):
            raise Unreadable("what trails behind the body must be headers")
        self._trailing += length
        self.complete = data[at:end] == b"\r\n"
        return length

"""Reading one response, without I/O.

httptools (llhttp, strict) takes the bytes apart; here stands what is asked of a
response beyond its grammar, and when its connection may be used again.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import httptools

from taskd.errors import UnreadableResponse

MAX_HEAD = 65536
"""Bytes of status line and headers, those of 1xx responses included; and of what
surrounds the chunks of a body, beside eight bytes per byte of it."""

_CHUNK_OVERHEAD = 8
_FIRST_FINAL = 200
_LAST_STATUS = 599
_FIRST_STATUS = 100
_SWITCHING_PROTOCOLS = 101
_VERSIONS = frozenset({"1.0", "1.1"})
_WANTED = frozenset({b"retry-after", b"content-encoding", b"content-length", b"transfer-encoding"})
_HEAD_END = b"\r\n\r\n"
_LAST_CHUNK = b"\n0\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Response:
    """A whole response."""

    status: int
    body: bytes = field(repr=False)
    retry_after: str | None
    """The Retry-After header, as it came."""


class _Stop(Exception):
    """Ends the parser's run; never leaves this module."""


class ResponseReader:
    """Reads the responses of one connection, one after another.

    `begin`, then `feed` what arrives until `complete`; `end_of_stream` when the
    peer closed. It refers to a parser that refers to it: `close` parts them, so
    that no garbage collection is needed.

    Attributes:
        begun: whether a byte of a response that is not a 1xx has arrived.
        complete: whether the whole response is there.
        received_bytes: since `begin`.
    """

    __slots__ = (
        "_body",
        "_body_fed",
        "_chunked",
        "_framed",
        "_head_done",
        "_headers",
        "_max_response",
        "_parser",
        "_problem",
        "_status",
        "_surplus",
        "begun",
        "complete",
        "received_bytes",
        "reusable",
    )

    def __init__(self) -> None:
        self.begin(0)
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)

    def begin(self, max_response: int) -> None:
        """Make ready for the next response, of at most this many bytes of body."""
        self._max_response = max_response
        self._body = bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._head_done = False
        self._status = 0
        self._framed = False
        self._chunked = False
        self._body_fed = 0
        self._problem: str | None = None
        self._surplus = False
        self.begun = False
        self.complete = False
        self.reusable = False
        self.received_bytes = 0

    def feed(self, data: bytes) -> None:
        """Take in what arrived.

        Raises:
            UnreadableResponse: this can't become a response that we read.
        """
        self.received_bytes += len(data)
        head_was_done, began_before = self._head_done, self.begun
        self._body_fed = 0
        self._run(data)
        if self._problem is not None:
            raise UnreadableResponse(self._problem)
        if self.complete:
            self.reusable = self._is_reusable(data, head_was_done, began_before)
        elif not self._head_done:
            if self.received_bytes > MAX_HEAD:
                raise UnreadableResponse(f"the answer's head is over {MAX_HEAD} bytes")
        elif self.received_bytes > MAX_HEAD + _CHUNK_OVERHEAD * self._max_response:
            raise UnreadableResponse("the answer spends too many bytes on its chunks or trailers")

    def end_of_stream(self) -> None:
        """Note that no more bytes will come: `complete` if that ends the body."""
        if self._head_done and not self._framed:
            self.complete = True

    def response(self) -> Response:
        """The complete response."""
        retry_after = self._headers.get(b"retry-after")
        return Response(
            self._status,
            bytes(self._body),
            None if retry_after is None else retry_after.decode("latin-1"),
        )

    def close(self) -> None:
        """Let go of the parser. Nothing can be fed any more."""
        self._parser = None

    def _run(self, data: bytes) -> None:
        if self._parser is None:
            raise UnreadableResponse("the connection was closed")
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._problem = "the answer wants to switch protocols"
        except httptools.HttpParserError as error:
            if self.complete:
                self._surplus = True
            elif self._problem is None:
                raise UnreadableResponse(f"the answer is not valid HTTP: {error}") from error

    def _is_reusable(self, data: bytes, head_was_done: bool, began_before: bool) -> bool:  # noqa: FBT001 - private
        """Whether the response ended exactly where the data did, and leaves the
        parser clean. In doubt it is not: that costs a connection, no more."""
        if self._surplus or not self.reusable:
            return False
        if self._chunked:
            return data.endswith(_LAST_CHUNK)
        if head_was_done:
            return self._body_fed == len(data)
        head_end = data.find(_HEAD_END)
        return (
            not began_before
            and head_end >= 0
            and head_end + len(_HEAD_END) + self._body_fed == len(data)
        )

    # What the parser calls. An exception ends its run.

    def on_message_begin(self) -> None:
        """A message's first byte."""
        if self.complete:
            raise _Stop
        self.begun = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer, which is ignored."""
        name = name.lower()
        if name in _WANTED and not self._head_done:
            self._headers.setdefault(name, value)

    def on_headers_complete(self) -> None:
        """All headers of a message."""
        if self._parser is None:
            raise _Stop
        self._status = status = self._parser.get_status_code()
        if _FIRST_STATUS <= status < _FIRST_FINAL and status != _SWITCHING_PROTOCOLS:
            return
        self._problem = self._refusal(status, self._parser.get_http_version())
        if self._problem is not None:
            raise _Stop
        self._head_done = True

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self._body_fed += len(body)
        if len(self._body) + len(body) > self._max_response:
            self._problem = self._too_long()
            raise _Stop
        self._body += body

    def on_message_complete(self) -> None:
        """A message's end."""
        if self._head_done and self._parser is not None:
            self.complete = True
            self.reusable = self._parser.should_keep_alive()
        else:
            self.begun = False
            self._headers.clear()

    def _refusal(self, status: int, version: str) -> str | None:
        if not _FIRST_STATUS <= status <= _LAST_STATUS:
            return f"the answer has the impossible status {status}"
        if status == _SWITCHING_PROTOCOLS:
            return "the answer wants to switch protocols"
        if version not in _VERSIONS:
            return f"the answer is in HTTP/{version}, not HTTP/1.1"
        encoding = self._headers.get(b"content-encoding", b"identity").strip().lower()
        if encoding not in (b"identity", b""):
            return (
                f"the answer (status {status}) is encoded as {encoding[:40].decode('latin-1')!r}, "
                "though only identity is accepted"
            )
        return self._frame()

    def _frame(self) -> str | None:
        """Find out how the body ends, or why that is not to be read."""
        headers = self._headers
        transfer = headers.get(b"transfer-encoding")
        if transfer is not None:
            if transfer.strip().lower() != b"chunked":
                return "the answer's Transfer-Encoding is not chunked"
            self._chunked = True
        length = headers.get(b"content-length")
        self._framed = self._chunked or length is not None
        # Its digits were checked by the parser; 20 of them are over any limit.
        if length is not None and int(length[:20]) > self._max_response:
            return self._too_long()
        return None

    def _too_long(self) -> str:
        return f"the answer (status {self._status}) is over the limit of {self._max_response} bytes"

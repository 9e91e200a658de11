"""Reading one response, without I/O.

httptools (llhttp, strict) parses the grammar. This module knows what else a response must
be, and when its connection may be used again.

Once its head is there a response has a status, however its body goes on. What is wrong with
the rest becomes the response's ``problem``, and no more is read then than is kept.
"""

from __future__ import annotations

import httptools

from taskd.delivery.progress import Response
from taskd.delivery.transport.broken_head import BrokenHead, looks_like_an_answer, what_is_no_answer
from taskd.errors import UnreadableResponse

MAX_HEAD = 65536
"""Bytes of status line and headers, those of 1xx responses included. A whole response may
have as many, and eight per byte of ``max_response``, for what surrounds its chunks."""

KEPT_BODY = 4096
"""Bytes of a body that are kept whatever is wrong with it."""

MAX_PIECES = 4096
"""Pieces that arrive one after another without a byte of body. For each, the parser copies
what it has of a header."""

_CHUNK_OVERHEAD = 8
_FIRST_FINAL = 200
_FIRST_STATUS = 100
_FIRST_REDIRECT = 300
_SWITCHING_PROTOCOLS = 101
_VERSIONS = frozenset({"1.0", "1.1"})
_WANTED = frozenset(
    {
        *(b"retry-after", b"location"),
        *(b"content-encoding", b"content-length", b"transfer-encoding"),
    }
)
_IDENTITY = frozenset({b"", b"identity"})
_MOST_DIGITS = 20
_HEAD_END = b"\r\n\r\n"
_LAST_CHUNK = b"\n0\r\n\r\n"


class _Stop(Exception):
    """Ends the parser's run; never leaves this module."""


class ResponseReader:
    """Reads the responses of one connection, one after another.

    Call `begin`, then `feed` what arrives until `complete`, or `end_of_stream` when the
    peer has closed. The reader and its parser refer to each other: `close` parts them, so
    that no garbage collection is needed.

    Attributes:
        begun: whether a byte of a response that is not a 1xx has arrived.
        head_done: whether its head is there. From then on `response` returns it.
        complete: whether no more of it has to be read.
        reusable: whether its connection may carry another.
        received_bytes: since `begin`.
    """

    __slots__ = (
        "_body",
        "_body_counts",
        "_body_fed",
        "_broken_head",
        "_chunked",
        "_framed",
        "_grammar",
        "_head",
        "_headers",
        "_max_response",
        "_parser",
        "_pieces",
        "_problem",
        "_status",
        "_surplus",
        "begun",
        "complete",
        "head_done",
        "received_bytes",
        "reusable",
    )

    def __init__(self) -> None:
        self.begin(0)
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)

    def begin(self, max_response: int, *, body_counts: bool = True) -> None:
        """Make ready for the next response, of at most this many bytes of body.

        Args:
            max_response: a longer body is a problem, and not read.
            body_counts: whether the body of a 2xx says if it is a success.
        """
        self._max_response = max_response
        self._body_counts = body_counts
        self._body = bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._status = 0
        self._framed = False
        self._chunked = False
        self._body_fed = 0
        self._pieces = 0
        self._problem: str | None = None
        self._surplus = False
        self._head: bytearray | None = None
        self._broken_head: BrokenHead | None = None
        self._grammar = ""
        self.begun = False
        self.head_done = False
        self.complete = False
        self.reusable = False
        self.received_bytes = 0

    def feed(self, data: bytes) -> None:
        """Take bytes that arrived.

        Raises:
            UnreadableResponse: they can't become a response that has a status.
        """
        self.received_bytes += len(data)
        if self._broken_head is not None:
            self._feed_broken(self._broken_head, data)
            return
        head_was_done, began_before = self.head_done, self.begun
        self._body_fed = 0
        self._run(data)
        self._pieces = 0 if self._body_fed else self._pieces + 1
        if self._problem is not None:
            self.reusable = False
        elif self.complete:
            self.reusable = self._is_reusable(data, head_was_done, began_before)
        elif self.head_done:
            if self.received_bytes > MAX_HEAD + _CHUNK_OVERHEAD * self._max_response:
                self.cut("it spends too many bytes on its chunks or trailers")
            elif self._pieces > MAX_PIECES:
                self.cut(f"it spends more than {MAX_PIECES} pieces on its chunks or trailers")
        elif self._broken_head is None:
            self._check_head_size()
            if self._head is None:
                self._head = bytearray()
            self._head += data

    def end_of_stream(self) -> None:
        """Note that no more bytes will come: `complete` if that ends the body.

        Raises:
            UnreadableResponse: what came is no response that has a status.
        """
        if self.head_done:
            if not self._framed:
                self.complete = True
        elif self._broken_head is not None:
            raise self._invalid()

    def cut(self, problem: str) -> None:
        """Read no more of a response whose head is there."""
        if self._problem is None:
            self._problem = problem
        self.complete = True
        self.reusable = False

    @property
    def refused(self) -> bool:
        """Whether nothing that is still to come can make the response a success."""
        if not self.head_done:
            return False
        lost = self._body_counts and self._problem is not None
        return lost or not _FIRST_FINAL <= self._status < _FIRST_REDIRECT

    @property
    def decided(self) -> bool:
        """Whether nothing that is still to come can change what the response means."""
        return self.head_done and (not self._body_counts or self.refused)

    @property
    def body_so_far(self) -> str:
        """How much of the body is there, in words."""
        length = self._headers.get(b"content-length")
        if length is None or self._broken_head is not None:
            return f"{len(self._body)} bytes of its body"
        return f"{len(self._body)} of {int(length[:_MOST_DIGITS])} bytes of its body"

    def response(self) -> Response:
        """The response; while it is not complete, what there is of it."""
        retry_after, location = map(self._headers.get, (b"retry-after", b"location"))
        return Response(
            self._status,
            bytes(self._body),
            None if retry_after is None else retry_after.decode("latin-1"),
            None if location is None else location.decode("utf-8", "replace"),
            self._encoding(),
            self._problem,
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
            self.cut("it wants to switch protocols")
        except httptools.HttpParserError as error:
            if self._problem is not None:
                return  # that is what ended the run
            if self.complete:
                self._surplus = True
            elif self.head_done:
                self.cut(f"its body is not valid HTTP: {error}")
            else:
                self._begin_broken(data, error)

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
        """Take a header; a trailer is ignored. The first of a name counts, but of
        Transfer-Encoding all do."""
        name = name.lower()
        if name not in _WANTED or self.head_done:
            return
        known = self._headers.setdefault(name, value)
        if known is not value and name == b"transfer-encoding":
            self._headers[name] = known + b", " + value

    def on_headers_complete(self) -> None:
        """All headers of a message."""
        if self._parser is None:
            raise _Stop
        self._status = status = self._parser.get_status_code()
        if _FIRST_STATUS <= status < _FIRST_FINAL and status != _SWITCHING_PROTOCOLS:
            return
        self.head_done = True
        if status == _SWITCHING_PROTOCOLS:
            self.cut("it wants to switch protocols")
            raise _Stop
        version = self._parser.get_http_version()
        if version not in _VERSIONS:
            self._problem = f"it is in HTTP/{version}, not HTTP/1.1"
        self._frame()

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self._body_fed += len(body)
        if self._problem is None:
            if len(self._body) + len(body) <= self._max_response:
                self._body += body
                return
            self._problem = self._too_long()
        self._keep(body)
        if self.complete:
            raise _Stop

    def on_message_complete(self) -> None:
        """A message's end."""
        if self.head_done and self._parser is not None:
            self.complete = True
            self.reusable = self._parser.should_keep_alive()
        else:
            self.begun = False
            self._headers.clear()

    def _frame(self) -> None:
        """Find out how the body ends."""
        transfer = self._headers.get(b"transfer-encoding")
        if transfer is not None:
            self._chunked = transfer.strip().lower() == b"chunked"
            self._framed = b"chunked" in transfer.lower()
            return
        length = self._headers.get(b"content-length")
        if length is not None:
            self._framed = True
            # Its digits were checked by the parser; 20 of them are over any limit.
            if int(length[:_MOST_DIGITS]) > self._max_response and self._problem is None:
                self._problem = self._too_long()

    def _keep(self, body: bytes) -> None:
        """Of a body that has a problem, keep no more than its beginning."""
        self._body += body[: max(0, KEPT_BODY - len(self._body))]
        if len(self._body) >= KEPT_BODY:
            self.complete = True

    def _too_long(self) -> str:
        return f"its body is over the limit of {self._max_response} bytes"

    def _encoding(self) -> str | None:
        headers = self._headers
        content = headers.get(b"content-encoding", b"").strip()
        transfer = b"" if self._chunked else headers.get(b"transfer-encoding", b"").strip()
        if content.lower() in _IDENTITY and not transfer:
            return None
        return b", ".join(part for part in (content, transfer) if part).decode("latin-1")

    # A head that the parser refuses.

    def _begin_broken(self, data: bytes, error: Exception) -> None:
        data = data if self._head is None else bytes(self._head + data)
        self._grammar = str(error)
        if not looks_like_an_answer(data):
            raise UnreadableResponse(what_is_no_answer(data)) from error
        self._broken_head = BrokenHead(_WANTED)
        self._feed_broken(self._broken_head, data)

    def _feed_broken(self, broken: BrokenHead, data: bytes) -> None:
        if self.head_done:
            self._keep(data)
            return
        if not broken.feed(data):
            raise self._invalid()
        if broken.status is None:
            self._check_head_size()
            return
        self._status, self._headers = broken.status, broken.headers
        self._framed = False
        self._problem = f"its head is not valid HTTP: {self._grammar}"
        self.begun = self.head_done = True
        self._keep(broken.body)

    def _invalid(self) -> UnreadableResponse:
        return UnreadableResponse(f"the answer is not valid HTTP: {self._grammar}")

    def _check_head_size(self) -> None:
        if self.received_bytes > MAX_HEAD:
            raise UnreadableResponse(f"the answer's head is over {MAX_HEAD} bytes")
        if self._pieces > MAX_PIECES:
            raise UnreadableResponse(f"the answer's head comes in more than {MAX_PIECES} pieces")

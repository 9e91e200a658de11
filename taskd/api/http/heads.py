r"""Parses a request's line and headers: the part of HTTP/1.1 that the API accepts.

::

    head     =  *CRLF line *field CRLF      MAX_HEAD bytes at most, all of it
    line     =  method SP target SP "HTTP/1." ( "0" / "1" ) CRLF
    method   =  capital letters and hyphens, 32 at most
    target   =  path [ "?" query ]  /  "http" [ "s" ] "://" HOST [ path [ "?" query ] ]  /  "*"
    field    =  name ":" value CRLF          blanks around the value are dropped
    value    =  visible characters, bytes above 0x7f, blanks between them

This is RFC 9112's grammar without what two parsers could read differently, since such a
difference lets a request be smuggled past a proxy: every line ends in CR LF, none continues
in the next one, no blank stands before a colon, and a header that decides where the request
ends comes once and in one form (`_understood`).

`read_head` parses a head that has arrived in one piece, by one regular expression;
`HeadGatherer` takes a head in any pieces. Both accept and refuse the same heads.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus

from taskd.api.wire.envelope import Refusal

MAX_HEAD = 16 * 1024
"""Bytes of a request's line and headers, line ends included."""

# Possessive throughout, so that no input makes an expression backtrack.
_LINE = rb"([A-Z][A-Z-]{0,31}+) ([!\"$-~]++) HTTP/1\.([01])\r\n"
_FIELD = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++:[\t\x20-\x7e\x80-\xff]*+\r\n"
_HEAD = re.compile(_LINE + rb"((?:" + _FIELD + rb")*+)\r\n")
_ONE_LINE = re.compile(_LINE)
_ONE_FIELD = re.compile(_FIELD)
_PAIR = re.compile(rb"([^:]++):[ \t]*+([^\r]*+)\r\n")
_CONTROL = re.compile(rb"[^\t\x20-\x7e\x80-\xff]")
_CONTROL_SO_FAR = re.compile(rb"[^\t\r\x20-\x7e\x80-\xff]|\r(?=[^\n])")

_HOST = re.compile(
    rb"(?:[A-Za-z0-9._~!$&'()*+,;=%-]*+|\[[0-9A-Fa-f:.]++(?:%[A-Za-z0-9._~%-]++)?\])(?::[0-9]{0,5})?"
)
_ABSOLUTE = re.compile(rb"https?://([^/?]++)(/[^?]*+)?+(?:\?(.*+))?")
_LENGTH = re.compile(rb"0|[1-9][0-9]*+")
_OTHER_METHOD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++ ")
_OTHER_VERSION = re.compile(rb".* HTTP/[0-9]++(?:\.[0-9]++)?\r\n")
_LONGEST_LENGTH_DIGITS = 15
_ENDLESS = 10**_LONGEST_LENGTH_DIGITS
"""Stands for a Content-Length of more than `_LONGEST_LENGTH_DIGITS`; no body may be so
long."""

_ONCE = (b"host", b"content-length", b"transfer-encoding", b"expect")
_SELDOM = frozenset({b"transfer-encoding", b"expect"})
_NONE: frozenset[bytes] = frozenset()
_OLD = b"0"


class Unreadable(Refusal):
    """The bytes are not HTTP/1.1 as the API accepts it: 400. Where the request ends can't
    be known, so the connection can't be used any more."""

    def __init__(self, problem: str) -> None:
        super().__init__(HTTPStatus.BAD_REQUEST, f"the request is not valid HTTP/1.1: {problem}")


class HeadTooLong(Refusal):
    """A request's line and headers are longer than `MAX_HEAD`: 400."""

    def __init__(self) -> None:
        super().__init__(
            HTTPStatus.BAD_REQUEST,
            f"the request's line and headers are longer than {MAX_HEAD} bytes",
        )


@dataclass(slots=True)
class Head:
    """A request's line and headers, understood."""

    method: str
    path: str
    """Without the query, as it came."""
    query: bytes
    headers: Mapping[bytes, bytes]
    """By lower-case name; of a name that comes more than once, the last."""
    conflicts: frozenset[bytes]
    """Names that come more than once, with different values."""
    end: int
    """Offset of its end."""
    length: int = 0
    """Bytes of its body, where that is not in chunks."""
    chunked: bool = False
    """Whether its body comes in chunks."""
    expects: bool = False
    """Whether its client waits for 100 before it sends the body."""
    last: bool = False
    """Whether its connection ends with its answer."""


def read_head(data: bytes) -> Head | None:
    """The head that the bytes begin with; None if it is not complete or not well formed,
    which a `HeadGatherer` tells apart.

    Raises:
        Unreadable, HeadTooLong: it is complete, and not accepted.
    """
    match = _HEAD.match(data)
    if match is None:
        return None
    if match.end() > MAX_HEAD:
        raise HeadTooLong
    return _understood(match)


class HeadGatherer:
    """Takes bytes as they come, until they make a head. Each is looked at once."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._begin = 0
        """Where the request's line begins."""
        self._line = 0
        """Where the first line begins that is not complete."""
        self._seen = 0
        self._lines = 0

    @property
    def begun(self) -> bool:
        """Whether anything has come but empty lines."""
        return len(self._data) > self._begin

    def feed(self, data: bytes) -> Head | None:
        """Take more bytes; returns the head once it is complete. `Head.end` counts from the
        first byte that was ever fed.

        Raises:
            Unreadable, HeadTooLong: no further bytes can make an acceptable head of it.
        """
        self._data += data
        until = min(len(self._data), MAX_HEAD)
        while end := self._data.find(b"\n", self._seen, until) + 1:
            line = bytes(self._data[self._line : end])
            self._line = self._seen = end
            if self._take(line):
                match = _HEAD.fullmatch(bytes(self._data[self._begin : end]))
                if match is None:
                    raise AssertionError("lines that are each well formed make a head")
                head = _understood(match)
                head.end = end
                return head
        # The last byte is looked at again: LF must follow if it is a CR.
        since = max(self._line, self._seen - 1)
        if _CONTROL_SO_FAR.search(self._data, since, until):
            raise Unreadable(f"line {self._lines + 1} has a control character")
        if until == MAX_HEAD:
            raise HeadTooLong
        self._seen = until
        return None

    def _take(self, line: bytes) -> bool:
        """Take one line with its end; returns whether it ends the head."""
        number = self._lines + 1
        text = line.removesuffix(b"\n").removesuffix(b"\r")
        if _CONTROL.search(text):
            raise Unreadable(f"line {number} has a control character")
        if not line.endswith(b"\r\n"):
            raise Unreadable(f"line {number} does not end in CR LF")
        if not self._lines:
            if not text:
                self._begin = self._line
                return False
            if not _ONE_LINE.fullmatch(line):
                raise _no_line(line)
        elif not text:
            return True
        elif not _ONE_FIELD.fullmatch(line):
            raise _no_field(number, text)
        self._lines = number
        return False


def _no_line(line: bytes) -> Refusal:
    if _OTHER_VERSION.fullmatch(line) and not line.endswith((b" HTTP/1.1\r\n", b" HTTP/1.0\r\n")):
        return Refusal(HTTPStatus.BAD_REQUEST, "only HTTP/1.1 is spoken here")
    if _OTHER_METHOD.match(line) and not _METHOD.match(line):
        return Unreadable("its method must be of capital letters")
    return Unreadable("its first line must be METHOD TARGET HTTP/1.1, with one space between")


_METHOD = re.compile(rb"[A-Z][A-Z-]{0,31}+ ")


def _no_field(number: int, text: bytes) -> Refusal:
    if text.startswith((b" ", b"\t")):
        return Unreadable(f"line {number} begins with a blank")
    return Unreadable(f"line {number} must be NAME: VALUE, with no blank before the colon")


def _understood(match: re.Match[bytes]) -> Head:
    """What a well-formed head says.

    Raises:
        Unreadable: it contradicts itself, or does not say where the request goes or ends.
    """
    method, target, version, fields = match.groups()
    headers, conflicts = _collected(fields)
    host = headers.get(b"host")
    if host is None:
        if version != _OLD:
            raise Unreadable("the header Host is missing")
    elif not _HOST.fullmatch(host):
        raise Unreadable("the header Host must be a host, and a port if you like")
    if target.startswith(b"/"):
        path, _, query = target.partition(b"?")
    else:
        path, query = _elsewhere(target, host)
    head = Head(
        method.decode(), path.decode(), query, headers, conflicts, match.end(), last=version == _OLD
    )
    length = headers.get(b"content-length")
    if length is not None:
        if not _LENGTH.fullmatch(length):
            raise Unreadable("Content-Length must be digits, without zeros before them")
        head.length = int(length) if len(length) <= _LONGEST_LENGTH_DIGITS else _ENDLESS
    if not _SELDOM.isdisjoint(headers):
        _note_seldom(head)
    connection = headers.get(b"connection")
    if connection is not None and b"close" in connection.lower():
        options = {option.strip() for option in connection.lower().split(b",")}
        head.last = head.last or b"close" in options
    return head


def _collected(fields: bytes) -> tuple[dict[bytes, bytes], frozenset[bytes]]:
    """Headers by name, and the names that come with different values."""
    pairs = [(name.lower(), value) for name, value in _PAIR.findall(fields)]
    if b" \r" in fields or b"\t\r" in fields:
        pairs = [(name, value.rstrip(b" \t")) for name, value in pairs]
    headers = dict(pairs)
    if len(headers) == len(pairs):
        return headers, _NONE
    names = [name for name, _ in pairs]
    for once in _ONCE:
        if names.count(once) > 1:
            raise Unreadable(f"the header {once.decode().title()} must not come twice")
    conflicts = frozenset(name for name, value in pairs if headers[name] != value)
    if b"connection" in conflicts:
        # Of the headers that are read here, only Connection is a list, and may come in
        # pieces.
        pieces = (value for name, value in pairs if name == b"connection")
        headers[b"connection"] = b",".join(pieces)
    return headers, conflicts


def _elsewhere(target: bytes, host: bytes | None) -> tuple[bytes, bytes]:
    """Path and query of a target that is ``*`` or a URL."""
    if target == b"*":
        return target, b""
    url = _ABSOLUTE.fullmatch(target)
    if url is None:
        raise Unreadable("its target must be a path, or an http URL")
    authority, path, query = url.groups()
    if host is not None and authority.lower() != host.lower():
        raise Unreadable("its target names another host than the header Host")
    if not _HOST.fullmatch(authority):
        raise Unreadable("its target must be a path, or an http URL")
    return path or b"/", query or b""


def _note_seldom(head: Head) -> None:
    """Note in the head what headers say that few requests have."""
    old = head.last
    coding = head.headers.get(b"transfer-encoding")
    if coding is not None:
        if old:
            raise Unreadable("HTTP/1.0 has no Transfer-Encoding")
        if b"content-length" in head.headers:
            # A proxy may go by the one where taskd goes by the other, and take the bytes
            # that follow for another request.
            raise Unreadable("Content-Length and Transfer-Encoding must not be given together")
        if coding.lower() != b"chunked":
            raise Unreadable("Transfer-Encoding must be chunked")
        head.chunked = True
    expected = head.headers.get(b"expect")
    if expected is not None and not old:
        if expected.lower() != b"100-continue":
            raise Unreadable("Expect must be 100-continue")
        head.expects = True

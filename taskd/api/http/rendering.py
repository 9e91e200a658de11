"""An answer as the bytes that go on the wire."""

from __future__ import annotations

import time
from wsgiref.handlers import format_date_time

from taskd.api.wire.envelope import Answer

CONTINUE = b"HTTP/1.1 100 \r\n\r\n"
"""Tells a client that waits to send its body."""

_ANSWER = (
    b"HTTP/1.1 %d \r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
    b"x-request-id: %s\r\n%sdate: %s\r\n%s\r\n%s"
)
_LAST = b"connection: close\r\n"


class Renderer:
    """Writes answers.

    Attributes:
        closing: whether every connection ends with its next answer.
    """

    def __init__(self) -> None:
        self.closing = False
        self._second = -1
        self._date = b""

    def render(
        self, answer: Answer, body: bytes, request_id: str, *, last: bool, headed: bool = False
    ) -> bytes:
        """The bytes of an answer.

        Args:
            answer: with headers beside those that every answer has.
            body: its body.
            request_id: of the request.
            last: whether its connection ends with it.
            headed: whether it answers a HEAD: the body's length is then sent without the
                body.
        """
        more = b"".join([b"%s: %s\r\n" % pair for pair in answer.headers])
        return _ANSWER % (
            answer.status,
            len(body),
            request_id.encode(),
            more,
            self._now(),
            _LAST if last else b"",
            b"" if headed else body,
        )

    def _now(self) -> bytes:
        """The date, made once a second."""
        second = int(time.time())  # noqa: TID251 - the header shows the machine's time, nothing is decided by it
        if second != self._second:
            self._second = second
            self._date = format_date_time(second).encode()
        return self._date

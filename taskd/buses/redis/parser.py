"""redis-py's parser of answers, with bounds on their size, depth and cost.

redis-py's own parser reads lines of any length, copies a line once for each segment that
it comes in, and follows nested lists until Python's recursion limit.
"""

from __future__ import annotations

from typing import Any

from redis._parsers import _RESP2Parser
from redis._parsers.socket import SocketBuffer
from redis.exceptions import InvalidResponse

MAX_LINE = 64 * 1024
"""Bytes of the longest line: a number, a word, an error's sentence."""

MAX_STRING = 4 * 1024 * 1024
"""Bytes of the longest string; a signal's is 256 KiB."""

MAX_DEPTH = 8
"""The deepest nesting of lists."""

_LINE_END = b"\r\n"


class BoundedParser(_RESP2Parser):
    """See the module."""

    def on_connect(self, connection: Any) -> None:  # noqa: ANN401 - redis-py's, of no public type
        """Read from this connection from here on."""
        super().on_connect(connection)  # type: ignore[no-untyped-call] # it has no types
        assert self._sock is not None  # noqa: S101 - its superclass has just set it
        self._buffer = _BoundedBuffer(self._sock, self.socket_read_size, connection.socket_timeout)
        self._depth = 0

    def _read_response(self, *args: Any, **how: Any) -> Any:  # noqa: ANN401 - any answer
        if self._depth > MAX_DEPTH:
            raise InvalidResponse(f"lists more than {MAX_DEPTH} deep")
        self._depth += 1
        try:
            return super()._read_response(*args, **how)
        finally:
            self._depth -= 1


class _BoundedBuffer(SocketBuffer):
    def readline(self, **how: Any) -> bytes:  # type: ignore[override]  # noqa: ANN401 - not the same in all versions
        parts: list[bytes] = []
        length = 0
        last = b""
        while True:
            part = self._buffer.readline()
            parts.append(part)
            length += len(part)
            last = (last + part[-2:])[-2:]
            if length > MAX_LINE:
                raise InvalidResponse(f"a line of more than {MAX_LINE} bytes")
            if last == _LINE_END:
                return b"".join(parts)[: -len(_LINE_END)]
            if not part.endswith(b"\n"):
                self._read_from_socket(**how)

    def read(self, length: int, **how: Any) -> bytes:  # type: ignore[override]  # noqa: ANN401 - as above
        if length > MAX_STRING:
            raise InvalidResponse(f"a string of {length} bytes")
        return super().read(length, **how)

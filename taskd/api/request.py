"""One request, complete, as the endpoints see it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(slots=True)
class Request:
    """A request whose body has arrived."""

    method: str
    path: str
    """Without the query, as it came."""
    query: bytes
    headers: Mapping[bytes, bytes]
    """By lower-case name; of a name that comes more than once, the last."""
    conflicts: frozenset[bytes]
    """Names that come more than once, with different values."""
    body: bytes = field(repr=False)
    id: str
    """Names it in logs and in the answer."""
    app_key: str | None = None
    """Who claims to have sent it, once that is known."""

    @property
    def signed(self) -> bytes:
        """What its ``payload`` header is the digest of."""
        return self.query if self.method == "GET" else self.body


def collect_headers(
    pairs: Iterable[tuple[bytes, bytes]],
) -> tuple[dict[bytes, bytes], frozenset[bytes]]:
    """Headers by name, and the names that come with different values."""
    pairs = list(pairs)
    headers = dict(pairs)
    if len(headers) == len(pairs):
        return headers, frozenset()
    return headers, frozenset(name for name, value in pairs if headers[name] != value)

"""One request, as the endpoints see it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

from taskd.api.wire.envelope import Answer
from taskd.domain.model import App, NonceUse
from taskd.domain.record import record

_ADMINISTRATOR = "administrator"


@record
class Caller:
    """The signer of a request. `taskd.api.entrances` uses its nonce up."""

    app: App | None
    """None for the administrator."""
    nonce: NonceUse
    payload: str | None
    """The digest that was signed; None where it is not compared."""


@dataclass(slots=True)
class Request:
    """A request. Endpoints get it once its body has arrived."""

    method: str
    path: str
    """Without the query, as it came."""
    query: bytes
    headers: Mapping[bytes, bytes]
    """By lower-case name; of a name that comes more than once, the last."""
    conflicts: frozenset[bytes]
    """Names that come more than once, with different values."""
    body: bytes | bytearray = field(repr=False)
    id: str
    """Names it in logs and in the answer."""
    client: str = ""
    """The address that it came from."""
    app_key: str | None = None
    """The key that it claims to be signed with, once that is known."""
    caller: Caller | None = None
    """Its signer, once that is known."""
    spent: bool = False
    """Whether its nonce was used up, or handed to the write that uses it up."""
    refusal: Answer | None = None
    """Its answer, where its headers alone decide it. Its body is then not kept."""
    held: int = 0
    """Bytes of its body that count as held (`body_intake.Buffered`)."""

    @property
    def sender(self) -> Hashable | None:
        """What tells its signer apart from others: the administrator, or an application's
        id. None if nobody has signed it, or that is not known yet."""
        if self.caller is None:
            return None
        return _ADMINISTRATOR if self.caller.app is None else self.caller.app.id

    @property
    def signed(self) -> bytes | bytearray:
        """The bytes whose digest the ``payload`` header is: the query of a GET, else the
        body."""
        return self.query if self.method == "GET" else self.body

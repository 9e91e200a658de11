"""The one shape of every answer: ``{"code": int, "msg": str, "data": object | []}``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from http import HTTPStatus

from taskd.domain.record import record
from taskd.errors import InvalidInput

# An encoder of its own: `json.dumps` with options makes one per call.
_encode = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":")
).encode


@record
class Answer:
    """What a request is answered with."""

    status: int
    """The HTTP status."""
    code: int
    """The envelope's code: 0 done, 1 a documented refusal, else the same as ``status``."""
    msg: str
    data: object
    headers: tuple[tuple[bytes, bytes], ...] = ()
    """Headers beside those that every answer has."""

    def encode(self) -> bytes:
        """The body, in UTF-8; half of a surrogate pair becomes a JSON escape."""
        text = _encode({"code": self.code, "msg": self.msg, "data": self.data})
        return text.encode("utf-8", "backslashreplace")


class Refusal(Exception):
    """A request is answered with a 4xx or 5xx. Raised before anything is changed.

    Attributes:
        answer: what the request is answered with.
    """

    def __init__(
        self, status: int, msg: str, *, headers: tuple[tuple[bytes, bytes], ...] = ()
    ) -> None:
        super().__init__(msg)
        self.answer = Answer(status, status, msg, [], headers)


class Unauthorized(Refusal):
    """The request's signature does not admit it: 401."""

    def __init__(self, msg: str) -> None:
        super().__init__(HTTPStatus.UNAUTHORIZED, msg)


class InvalidFields(Refusal):
    """Fields of the request break their rules: 422. The answer lists them all."""

    def __init__(self, errors: Sequence[InvalidInput]) -> None:
        super().__init__(HTTPStatus.UNPROCESSABLE_ENTITY, str(errors[0]))
        status = int(HTTPStatus.UNPROCESSABLE_ENTITY)
        listed = [{"field": error.field, "problem": error.problem} for error in errors]
        self.answer = Answer(status, status, str(errors[0]), {"errors": listed})


def done(data: object, msg: str = "ok!") -> Answer:
    """The answer of a request that was carried out."""
    return Answer(HTTPStatus.OK, 0, msg, data)


def refused(msg: str, *, headers: tuple[tuple[bytes, bytes], ...] = ()) -> Answer:
    """A refusal with code 1: one of the two that the protocol's source documents."""
    return Answer(HTTPStatus.OK, 1, msg, [], headers)


def shown(value: object) -> str:
    """A client's value as a message shows it: short, on one line."""
    if type(value) is list:
        return "an array"
    if type(value) is dict:
        return "an object"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"


_SHOWN_CHARACTERS = 60

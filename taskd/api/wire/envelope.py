"""The one shape of every answer: ``{"code": int, "msg": str, "data": object | []}``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus

from taskd.errors import InvalidInput

# An encoder of its own: `json.dumps` with options makes one per call.
_encode = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":")
).encode


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request is answered with."""

    status: int
    """Of HTTP."""
    code: int
    """Of the envelope: 0 done, 1 a documented refusal, else the same as ``status``."""
    msg: str
    data: object
    headers: tuple[tuple[bytes, bytes], ...] = ()
    """Beside those that every answer has."""

    def encode(self) -> bytes:
        """The body. What UTF-8 can't express goes as a JSON escape."""
        text = _encode({"code": self.code, "msg": self.msg, "data": self.data})
        return text.encode("utf-8", "backslashreplace")


class Refusal(Exception):
    """A request is answered with a 4xx or 5xx. Raised before anything is changed.

    Attributes:
        answer: what it is answered with.
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
    """Fields of the request break their rules: 422, which lists them all."""

    def __init__(self, errors: Sequence[InvalidInput]) -> None:
        super().__init__(HTTPStatus.UNPROCESSABLE_ENTITY, str(errors[0]))
        status = int(HTTPStatus.UNPROCESSABLE_ENTITY)
        listed = [{"field": error.field, "problem": error.problem} for error in errors]
        self.answer = Answer(status, status, str(errors[0]), {"errors": listed})


def done(data: object, msg: str = "ok!") -> Answer:
    """The answer of a request that was carried out."""
    return Answer(HTTPStatus.OK, 0, msg, data)


def refused(msg: str, *, headers: tuple[tuple[bytes, bytes], ...] = ()) -> Answer:
    """One of the two refusals that the protocol's source documents."""
    return Answer(HTTPStatus.OK, 1, msg, [], headers)


def shown(value: object) -> str:
    """A value of the client's as a message shows it: short, on one line."""
    if type(value) is list:
        return "an array"
    if type(value) is dict:
        return "an object"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


_SHOWN = 60

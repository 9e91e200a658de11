"""The JSON object that a POST carries."""

from __future__ import annotations

from http import HTTPStatus

from taskd.api.wire.envelope import InvalidFields, Refusal
from taskd.api.wire.strict_json import NotJSON, parse_object
from taskd.errors import InvalidInput


def read_object(body: bytes | bytearray, items: str | None = None) -> dict[str, object]:
    """The fields of a request's body; ``items`` as `parse_object` takes it.

    Raises:
        Refusal: it is empty or no JSON (400).
        InvalidFields: it is JSON, but `parse_object` does not accept it (422).
    """
    if not body:
        raise Refusal(HTTPStatus.BAD_REQUEST, "the body is empty: send a JSON object")
    try:
        return parse_object(body, items)
    except NotJSON as error:
        raise Refusal(HTTPStatus.BAD_REQUEST, str(error)) from error
    except InvalidInput as error:
        raise InvalidFields([error]) from error

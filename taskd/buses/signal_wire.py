"""The messages between nodes as bytes: one JSON object each.

A signal: ``{"v": 1, "kind": "cancel" | "inspect", "id", "from", "task_id"}``. Its
reply: ``{"v": 1, "kind": "cancelled" | "inspected" | "failed", "id", …}``. A notice:
``{"v": 1, "kind": "app_changed", "id", "from", "app_id", "app_key"}``.

Reading is strict: a message that is not exactly one of these is refused as a whole. It
guards against other versions of this program; all that can write to Redis are trusted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, TypeVar

from taskd.domain.model import (
    MAX_COROUTINE_ID,
    CancelCertainty,
    Frame,
    Inspection,
    Phase,
    TaskState,
)
from taskd.domain.record import record
from taskd.ports.bus import (
    AppChanged,
    CancelReply,
    CancelSignal,
    InspectReply,
    InspectSignal,
    Notice,
    Reply,
    Signal,
)
from taskd.runtime.json_depth import load_json

MAX_MESSAGE = 256 * 1024
"""Bytes of the largest message that is sent or read."""

_VERSION = 1
_MAX_FRAMES = 1_000
_ID = re.compile(r"[0-9a-f]{16}")
_NODE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_APP_KEY = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_MAX_APP_ID = 2**63 - 1


class Malformed(ValueError):
    """Bytes are no message of this version; the text says why, without quoting them."""


@record
class SignalMessage:
    """A signal under way."""

    id: str
    """16 hexadecimal digits; the same for all repetitions of one signal."""
    sender: str
    """The node that waits for the reply."""
    signal: Signal


@record
class ReplyMessage:
    """A reply under way."""

    id: str
    """The signal's."""
    reply: Reply | None
    """None if the signal's handler failed."""


@record
class NoticeMessage:
    """A notice under way."""

    id: str
    sender: str
    notice: Notice


Message = SignalMessage | ReplyMessage | NoticeMessage


def encode(message: Message) -> bytes:
    """A message as bytes.

    Raises:
        Malformed: it is too large.
    """
    if isinstance(message, SignalMessage):
        kind = "cancel" if isinstance(message.signal, CancelSignal) else "inspect"
        body: dict[str, Any] = {"from": message.sender, "task_id": message.signal.task_id}
    elif isinstance(message, NoticeMessage):
        kind, notice = "app_changed", message.notice
        body = {"from": message.sender, "app_id": notice.app_id, "app_key": notice.app_key}
    else:
        kind, body = _reply_body(message.reply)
    text = json.dumps(
        {"v": _VERSION, "kind": kind, "id": message.id, **body}, separators=(",", ":")
    )
    data = text.encode()
    if len(data) > MAX_MESSAGE:
        raise Malformed(f"a message of {len(data)} bytes is over {MAX_MESSAGE}")
    return data


def decode(data: bytes) -> Message:
    """Bytes as a message.

    Raises:
        Malformed: they are no message of this version.
    """
    if len(data) > MAX_MESSAGE:
        raise Malformed(f"{len(data)} bytes are over {MAX_MESSAGE}")
    try:
        fields = load_json(data)
    except ValueError as error:
        raise Malformed("not JSON") from error
    if not isinstance(fields, dict):
        raise Malformed("not an object")
    if _take(fields, "v", int) != _VERSION:
        raise Malformed("of another version")
    kind = _take(fields, "kind", str)
    message_id = _take(fields, "id", str)
    if not _ID.fullmatch(message_id):
        raise Malformed("id: not 16 hexadecimal digits")
    read = _READERS.get(kind)
    if read is None:
        raise Malformed("kind: unknown")
    message = read(message_id, fields)
    if fields:
        raise Malformed("has fields that do not belong there")
    return message


def _reply_body(reply: Reply | None) -> tuple[str, dict[str, Any]]:
    if reply is None:
        return "failed", {}
    if isinstance(reply, CancelReply):
        return "cancelled", {"state": reply.state, "word": reply.certainty}
    seen = reply.inspection
    if seen is None:
        return "inspected", {"inspection": None}
    return "inspected", {
        "inspection": {
            "node": seen.node,
            "phase": seen.phase,
            "frames": [_frame_body(frame) for frame in seen.frames],
            "executed": _frame_body(seen.executed),
            "variables": seen.variables,
            "rounds": seen.rounds,
            "elapsed_ms": seen.elapsed_ms,
        }
    }


def _frame_body(frame: Frame) -> list[str | int]:
    return [frame.file, frame.line, frame.function]


def _read_signal(make: Callable[[int], Signal]) -> Callable[[str, dict[str, Any]], Message]:
    def read(message_id: str, fields: dict[str, Any]) -> Message:
        sender = _take_sender(fields)
        task_id = _take(fields, "task_id", int)
        if not 0 < task_id <= MAX_COROUTINE_ID:
            raise Malformed("task_id: out of range")
        return SignalMessage(message_id, sender, make(task_id))

    return read


def _read_app_changed(message_id: str, fields: dict[str, Any]) -> Message:
    sender = _take_sender(fields)
    app_id = _take(fields, "app_id", int)
    if not 0 < app_id <= _MAX_APP_ID:
        raise Malformed("app_id: out of range")
    app_key = _take(fields, "app_key", str)
    if not _APP_KEY.fullmatch(app_key):
        raise Malformed("app_key: not an application's key")
    return NoticeMessage(message_id, sender, AppChanged(app_id, app_key))


def _read_failed(message_id: str, _fields: dict[str, Any]) -> Message:
    return ReplyMessage(message_id, None)


def _read_cancelled(message_id: str, fields: dict[str, Any]) -> Message:
    state = _take_named(fields, "state", TaskState)
    certainty = _take_named(fields, "word", CancelCertainty)
    return ReplyMessage(message_id, CancelReply(state=state, certainty=certainty))


def _read_inspected(message_id: str, fields: dict[str, Any]) -> Message:
    body = _take(fields, "inspection", dict, type(None))
    if body is None:
        return ReplyMessage(message_id, InspectReply(None))
    frames = _take(body, "frames", list)
    if len(frames) > _MAX_FRAMES:
        raise Malformed("frames: too many")
    inspection = Inspection(
        node=_take(body, "node", str),
        phase=_take_named(body, "phase", Phase),
        frames=tuple(_frame(frame) for frame in frames),
        executed=_frame(_take(body, "executed", list)),
        variables=_variables(_take(body, "variables", dict)),
        rounds=_take(body, "rounds", int),
        elapsed_ms=_take(body, "elapsed_ms", int),
    )
    if body:
        raise Malformed("inspection: has fields that do not belong there")
    return ReplyMessage(message_id, InspectReply(inspection))


_READERS = {
    "cancel": _read_signal(CancelSignal),
    "inspect": _read_signal(InspectSignal),
    "failed": _read_failed,
    "cancelled": _read_cancelled,
    "inspected": _read_inspected,
    "app_changed": _read_app_changed,
}


def _take(fields: dict[str, Any], name: str, *kinds: type) -> Any:  # noqa: ANN401 - checked here
    """Remove and return a field. Its type has to be one of the kinds exactly: an `int`
    may not be true or false."""
    if name not in fields:
        raise Malformed(f"{name}: missing")
    value = fields.pop(name)
    if type(value) not in kinds:
        raise Malformed(f"{name}: of the wrong type")
    return value


def _take_sender(fields: dict[str, Any]) -> str:
    sender = _take(fields, "from", str)
    if not _NODE.fullmatch(sender):
        raise Malformed("from: not a node's name")
    return str(sender)


E_ = TypeVar("E_", TaskState, CancelCertainty, Phase)


def _take_named(fields: dict[str, Any], name: str, kind: type[E_]) -> E_ | None:
    value = _take(fields, name, str, type(None))
    if value is None:
        return None
    try:
        return kind(value)
    except ValueError as error:
        raise Malformed(f"{name}: unknown") from error


def _frame(value: object) -> Frame:
    match value:
        case [str(file), int(line), str(function)] if type(line) is int:
            return Frame(file, line, function)
    raise Malformed("a frame is not a file, a line and a function")


def _variables(fields: dict[str, Any]) -> dict[str, str | int | float | bool | None]:
    if not all(isinstance(value, str | int | float | None) for value in fields.values()):
        raise Malformed("variables: of the wrong type")
    return fields

"""NSQ's bytes: commands out, frames in, and the body of a wake-up. No I/O.

Packing and parsing are nsq-py's (`nsq.util.pack`, `nsq.constants`, `nsq.response`); its
connections, clients and readers are not used.
Protocol: https://nsq.io/clients/tcp_protocol_spec.html
"""

from __future__ import annotations

import json
import logging
import re
import struct
from collections.abc import Sequence
from typing import Any

import nsq  # type: ignore[import-untyped]  # it has no types
import nsq.constants as nsq_constants  # type: ignore[import-untyped]  # as above
from nsq.response import Error, Message, Response  # type: ignore[import-untyped]  # as above
from nsq.util import pack  # type: ignore[import-untyped]  # as above

from taskd.domain.model import DueTask
from taskd.errors import QueueUnavailable

# On import, nsq-py adds a handler that writes to standard error, from INFO on.
_library_logger = logging.getLogger("nsq")
_library_logger.removeHandler(nsq.handler)
_library_logger.setLevel(logging.NOTSET)

MAX_FRAME = 1024 * 1024
"""Bytes of the largest frame that is read. A wake-up's takes under 100."""

MAX_BATCH = 1000
"""Wake-ups of one MPUB: under 100 KB together, while nsqd takes 5 MB."""

MAX_RDY = 2500
"""The largest RDY; nsqd's default limit. Above its limit, nsqd closes the connection."""

MAGIC: bytes = nsq_constants.MAGIC_V2
HEARTBEAT: bytes = nsq_constants.HEARTBEAT
OK = b"OK"

_SIZE = struct.Struct(">l")
_TYPE_SIZE = 4
_NL: bytes = nsq_constants.NL
_NOT_FATAL = frozenset({b"E_FIN_FAILED", b"E_REQ_FAILED", b"E_TOUCH_FAILED"})
_SHOWN_BYTES = 200

_MAX_ID = 2**63 - 1
_VERSION = b"1"
_BODY = re.compile(rb"([0-9]{1,4}) ([1-9][0-9]{0,18}) ([1-9][0-9]{0,18}) ([0-9]{1,15})")
_UNPRINTABLE = re.compile(r"[^ -~]")


class Framer:
    """Turns received bytes, however they are split, into nsq-py's responses."""

    def __init__(self, max_frame: int = MAX_FRAME) -> None:
        self._max_frame = max_frame
        self._buffer = bytearray()

    @property
    def pending(self) -> int:
        """Bytes that belong to no whole frame yet."""
        return len(self._buffer)

    def feed(self, data: bytes | bytearray) -> list[Response]:
        """The frames that these bytes complete.

        Raises:
            QueueUnavailable: they are no frame, or one that is too long.
        """
        self._buffer += data
        frames: list[Response] = []
        start = 0
        while len(self._buffer) - start >= _SIZE.size:
            (size,) = _SIZE.unpack_from(self._buffer, start)
            if not _TYPE_SIZE <= size <= self._max_frame:
                raise QueueUnavailable(
                    f"it sent what is no frame, or one over {self._max_frame} bytes (size {size})"
                )
            end = start + _SIZE.size + size
            if len(self._buffer) < end:
                break
            frames.append(_frame(bytes(self._buffer[start + _SIZE.size : end])))
            start = end
        del self._buffer[:start]
        return frames


def _frame(raw: bytes) -> Response:
    try:
        frame = Response.from_raw(None, raw)
    except (TypeError, struct.error) as error:
        # nsq-py raises a TypeError for a frame type it does not know.
        raise QueueUnavailable(f"it sent a frame that can't be read: {error}") from error
    if isinstance(frame, Message) and not frame.body:
        raise QueueUnavailable("it sent a message without a body")
    return frame


def error_text(frame: Error) -> str:
    """An error frame's text, safe to be shown: the code and nsqd's explanation."""
    text = bytes(frame.data[:_SHOWN_BYTES]).decode("ascii", "replace")
    return _UNPRINTABLE.sub("?", text)


def is_fatal(frame: Error) -> bool:
    """Whether nsqd closes the connection after this error. An unknown error counts as
    fatal. Read from the frame's data: nsq-py's table of errors lacks some that nsqd
    sends."""
    code, _, _ = bytes(frame.data).partition(b" ")
    return code not in _NOT_FATAL


def identify(fields: dict[str, Any]) -> bytes:
    """IDENTIFY, with the wanted settings as JSON."""
    body = json.dumps(fields, separators=(",", ":")).encode()
    return _with_body(nsq_constants.IDENTIFY, body)


def auth(secret: str) -> bytes:
    """AUTH with a secret."""
    return _with_body(nsq_constants.AUTH, secret.encode())


def subscribe(topic: str, channel: str) -> bytes:
    """SUB to a channel of a topic; nsqd makes both if they are not there."""
    return _line(nsq_constants.SUB, topic.encode(), channel.encode())


def publish(topic: str, bodies: Sequence[bytes]) -> bytes:
    """MPUB of all bodies to a topic."""
    body: bytes = pack(list(bodies))
    return _line(nsq_constants.MPUB, topic.encode()) + body


def ready(count: int) -> bytes:
    """RDY: allow ``count`` messages in flight on this connection."""
    return _line(nsq_constants.RDY, str(count).encode())


def finish(message_id: bytes) -> bytes:
    """FIN: the message is done with."""
    return _line(nsq_constants.FIN, message_id)


def requeue(message_id: bytes, delay_ms: int) -> bytes:
    """REQ: the message may go elsewhere, after a delay."""
    return _line(nsq_constants.REQ, message_id, str(delay_ms).encode())


def touch(message_id: bytes) -> bytes:
    """TOUCH: the message's timeout begins anew."""
    return _line(nsq_constants.TOUCH, message_id)


def nop() -> bytes:
    """NOP: the answer to a heartbeat."""
    return _line(nsq_constants.NOP)


def encode_body(task: DueTask) -> bytes:
    """A wake-up as a message's body: version, task, app and due time, as text that
    a person who tails the topic can read."""
    return b"%b %d %d %d" % (_VERSION, task.task_id, task.app_id, task.due_at)


def decode_body(body: bytes) -> DueTask | None:
    """The wake-up of a message's body, or None if it is none."""
    match = _BODY.fullmatch(body)
    if match is None or match[1] != _VERSION:
        return None
    task_id, app_id, due_at = int(match[2]), int(match[3]), int(match[4])
    if task_id > _MAX_ID or app_id > _MAX_ID:
        return None
    return DueTask(task_id=task_id, app_id=app_id, due_at=due_at)


def _line(*words: bytes) -> bytes:
    return b" ".join(words) + _NL


def _with_body(command: bytes, body: bytes) -> bytes:
    packed: bytes = pack(body)
    return _line(command) + packed

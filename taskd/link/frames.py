"""The frames that a supervisor and its workers exchange on a stream socket.

A frame is a length (four bytes, of the bytes after it), a kind (one byte) and a payload.

=========  ==================  ====================================================
kind       from, to            payload
=========  ==================  ====================================================
READY      worker, supervisor  none: it answers requests from here on
FAILED     worker, supervisor  why it can't start, one sentence
HEARTBEAT  worker, supervisor  connections open now, and 1 if one more that signs would
                               push out another: ``3 0``
LEAVING    worker, supervisor  none: it stops, and wants no new connections
MEMBERS    supervisor, worker  the leader's name and those of all that take work; in a
                               second line those of all that are alive
GONE       supervisor, leader  the name of a node that has ended, in whatever way
CONFIG     supervisor, worker  the daemon's configuration from here on, by `to_bytes`
END        supervisor, worker  none: it has to end at once
SIGNAL     either, by address  a message of `taskd.buses.signal_wire`
WAKE       either, by address  wake-ups: ``[[task_id, app_id, due_at], …]``
=========  ==================  ====================================================

In SIGNAL and WAKE, a worker puts the addressee's name and a newline before the payload; the
supervisor removes them and sends the rest on, unread.
"""

from __future__ import annotations

import struct
from enum import IntEnum

MAX_PAYLOAD = 1024 * 1024
"""Bytes of the longest payload."""

_HEAD = struct.Struct("!IB")
_LENGTH = struct.Struct("!I")


class Kind(IntEnum):
    """The kind of a frame: see the module."""

    READY = 1
    FAILED = 2
    HEARTBEAT = 3
    LEAVING = 4
    MEMBERS = 5
    SIGNAL = 6
    WAKE = 7
    GONE = 8
    CONFIG = 9
    END = 10


MAY_BE_LOST = frozenset({Kind.SIGNAL, Kind.WAKE})
"""Kinds of frames that may be dropped if the receiver does not take them in time."""


class Malformed(ValueError):
    """The bytes that came are none of the frames."""


def frame(kind: Kind, payload: bytes = b"", *, to: str | None = None) -> bytes:
    """Return a frame as bytes.

    Args:
        kind: of the frame.
        payload: `MAX_PAYLOAD` bytes at most.
        to: the node that the supervisor sends it on to; None: the supervisor itself.
    """
    if to is not None:
        payload = to.encode() + b"\n" + payload
    return _HEAD.pack(len(payload) + 1, kind) + payload


def split_address(payload: bytes) -> tuple[str, bytes]:
    """Return the addressee of a worker's payload, and the rest.

    Raises:
        Malformed: there is no address.
    """
    address, found, rest = payload.partition(b"\n")
    if not found:
        raise Malformed("no address")
    return address.decode("ascii", "replace"), rest


class Splitter:
    """Takes bytes as they come, and returns the frames that are complete."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[Kind, bytes]]:
        """Take these bytes, and return the frames that they complete.

        Raises:
            Malformed: the bytes are no frames.
        """
        self._buffer += data
        frames: list[tuple[Kind, bytes]] = []
        start = 0
        while len(self._buffer) - start >= _HEAD.size:
            (length,) = _LENGTH.unpack_from(self._buffer, start)
            if not 1 <= length <= MAX_PAYLOAD + 1:
                raise Malformed(f"a frame of {length} bytes")
            end = start + _LENGTH.size + length
            if len(self._buffer) < end:
                break
            try:
                kind = Kind(self._buffer[start + _LENGTH.size])
            except ValueError as error:
                raise Malformed(str(error)) from error
            frames.append((kind, bytes(self._buffer[start + _HEAD.size : end])))
            start = end
        del self._buffer[:start]
        return frames

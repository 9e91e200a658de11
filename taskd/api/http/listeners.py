"""Listening sockets: to bind them, accept from them, and close them without resetting
clients."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import logging
import math
import os
import socket
import struct
from collections.abc import Callable, Iterator

import trio

from taskd.api.http.file_shortage import SHORT, Shortage, Spare
from taskd.config import ServerConfig
from taskd.runtime.logs import log_event

logger = logging.getLogger("taskd.api")

BACKLOG = 4096
"""Connections that the system holds until they are accepted; its own bound may be lower."""

_LEFT = frozenset({errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.ECONNRESET})
"""Errors of accepting that the client causes: it has left, or is not let in."""

_NO_ROOM_S = 0.1
_TELL_EVERY_S = 10.0
_SO_ATTACH_FILTER = 26


async def bind(server: ServerConfig) -> list[trio.SocketListener]:
    """The listening sockets of ``[server] host`` and ``port``.

    Raises:
        OSError: the address can't be bound.
    """
    try:
        return await trio.open_tcp_listeners(server.port, host=server.host, backlog=BACKLOG)
    except OSError as error:
        raise unbound(server, error) from error


async def accept(
    listener: trio.SocketListener,
    take: Callable[[socket.socket], None],
    make_room: Callable[[], None],
    at_once: int,
    *,
    spare: Spare | None = None,
) -> None:
    """Accept until cancelled, or until the listener is closed.

    Args:
        listener: to accept from.
        take: is given each connection, non-blocking.
        make_room: called where the system has no room for one more.
        at_once: connections to take in one pass of Trio's loop; a pass may be long if many
            are busy.
        spare: used to answer 503 while files are short; None if clients can't be told so.
    """
    told_at = -math.inf
    shortage = Shortage()
    while listener.socket.fileno() >= 0:
        await trio.lowlevel.wait_readable(listener.socket)
        try:
            for sock in itertools.islice(queued(listener), at_once):
                shortage.end()
                take(sock)
        except OSError as error:
            if error.errno in _LEFT or listener.socket.fileno() < 0:
                continue
            now = trio.current_time()
            if now - told_at >= _TELL_EVERY_S:
                told_at = now
                log_event(logger, logging.ERROR, "can't accept", reason=str(error))
            make_room()
            lasts = error.errno in SHORT and shortage.lasts(now)
            if not (lasts and spare is not None and await _turn_away(listener, spare)):
                await trio.sleep(_NO_ROOM_S)


async def _turn_away(listener: trio.SocketListener, spare: Spare) -> bool:
    """Turn away the connection that has waited longest; returns whether that could be
    tried."""
    with borrowed(listener) as queue:
        try:
            return await spare.turn_away(queue)
        except BlockingIOError:
            return True
        except OSError as error:
            return error.errno in _LEFT


@contextlib.contextmanager
def borrowed(listener: trio.SocketListener) -> Iterator[socket.socket]:
    """A listener's socket, non-blocking. No descriptor is opened for it.

    Raises:
        OSError: it is closed.
    """
    fd = listener.socket.fileno()
    if fd < 0:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    queue = socket.socket(fileno=fd)
    try:
        queue.settimeout(0)
        yield queue
    finally:
        queue.detach()


def queued(listener: trio.SocketListener) -> Iterator[socket.socket]:
    """The connections that the system has accepted for a listener.

    Raises:
        OSError: there is one more, and it can't be accepted.
    """
    with borrowed(listener) as queue:
        while True:
            try:
                sock, _ = queue.accept()
            except BlockingIOError:
                return
            sock.settimeout(0)
            yield sock


def go_deaf(listener: trio.socket.SocketType) -> None:
    """Have the kernel drop what comes to a listening socket from now on. No connection is
    then made between the last accept and the close, which would reset it. A client that
    tries asks again after a second, by TCP's rule, and is refused."""
    # A classic BPF program of one instruction, "return 0"; see socket(7).
    program = ctypes.create_string_buffer(struct.pack("=HBBI", 0x06, 0, 0, 0))
    pointing = struct.pack("@HP", 1, ctypes.addressof(program))
    try:
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, pointing)
    except OSError as error:
        log_event(
            logger,
            logging.INFO,
            "who connects in the moment of the end may be reset",
            reason=str(error),
        )


def unbound(server: ServerConfig, error: OSError) -> OSError:
    """The error that tells an operator why the address can't be bound."""
    where = f"[server] host and port: can't listen on {server.host} port {server.port}"
    return OSError(error.errno or errno.EADDRNOTAVAIL, f"{where}: {error.strerror or error}")


def authority(address: tuple[str, int]) -> str:
    """An address as it is written in a URL."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

"""One connection to a receiver, and one exchange on it at a time."""

from __future__ import annotations

import select
import socket
import ssl
import struct
from typing import Self

import trio

from taskd.delivery.progress import Progress, Response
from taskd.delivery.transport.parsing import ResponseReader
from taskd.delivery.transport.request import Request
from taskd.delivery.transport.secured import Secured
from taskd.delivery.transport.tls_words import alert_of, tls_reason
from taskd.domain.model import Phase
from taskd.errors import Unreachable

_EITHER = select.EPOLLIN | select.EPOLLOUT
_OTHER_WAY_S = 0.1
_CHUNK_BYTES = 16384
_PATIENCE_S = 2.0
"""How long to wait for the rest of a body that decides nothing: people are shown it, and
once it is read the connection can be used again."""
_TCP_INFO = struct.Struct("=120xQ")
"""Of Linux's tcp_info: tcpi_bytes_acked."""

_WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Connection:
    """A connected socket, with TLS or without, owned by one task at a time.

    Args:
        sock: connected and non-blocking; closed by `close`.
        origin: of the receiver, for messages.
        address: ``IP:port`` that it is connected to.
        opened_at: when it was made, in Trio's time.
        via: the proxy that it leads through, for people; None without one.
    """

    __slots__ = (
        "_accepted_bytes",
        "_earlier_bytes",
        "_ended",
        "_reader",
        "_sock",
        "_tls",
        "address",
        "idle_since",
        "on_trial",
        "opened_at",
        "origin",
        "rested_s",
        "via",
    )

    def __init__(
        self,
        sock: socket.socket | Secured,
        *,
        origin: str,
        address: str | None,
        opened_at: float,
        via: str | None = None,
    ) -> None:
        self._sock = sock
        self._tls = isinstance(sock, Secured)
        self._reader = ResponseReader()
        self.origin = origin
        self.address = address
        self.via = via
        self.opened_at = self.idle_since = opened_at
        self.rested_s = 0.0
        """How long it was idle before it was taken for the latest request."""
        self.on_trial = False
        """Whether the latest request shows if connections to its origin may be kept."""
        self._accepted_bytes = 0
        self._earlier_bytes = 0
        """Bytes that were sent before the latest request."""
        self._ended = False

    def close(self) -> None:
        """Close it at once, without a farewell. May be repeated."""
        self._reader.close()
        self._sock.close()

    def is_stale(self) -> bool:
        """Whether the peer has closed it or sent something unasked while it was
        idle. It must then be closed."""
        try:
            self._sock.recv(1)
        except (BlockingIOError, ssl.SSLWantReadError):
            return False
        except OSError:
            return True
        return True

    @property
    def answered(self) -> bool:
        """Whether a byte has come in answer to the latest request."""
        return self._reader.received_bytes > 0

    def has_taken_nothing(self) -> bool:
        """Whether the latest request, which failed, can't have been read: the system took
        nothing of it, or the peer had closed before any of it arrived. A reset proves
        nothing: a peer that has read everything may send one."""
        if not self._accepted_bytes:
            return True
        if not self._ended:
            return False
        acknowledged_bytes = _acknowledged_bytes(self._sock)
        return acknowledged_bytes is not None and acknowledged_bytes <= self._earlier_bytes

    def answer_so_far(self) -> Response | None:
        """What has been read of the answer to the latest request, once its head is
        there."""
        return self._reader.response() if self._reader.head_done else None

    async def exchange(
        self,
        request: Request,
        max_response: int,
        progress: Progress,
        *,
        body_counts: bool = True,
    ) -> tuple[Response, bool]:
        """Send a request, once, and read its response.

        Args:
            request: all of its bytes.
            max_response: bytes that the response's body may have.
            progress: told how far it is.
            body_counts: whether the body of a 2xx decides if it is a success.

        Returns:
            The response, and whether the connection may be used again. After an
            exception, a cancellation included, it must be closed; `answer_so_far`
            has what had come.

        Raises:
            Unreachable: the connection broke before the response's head was there.
            UnreadableResponse: see there.
        """
        sock, reader, tls, address = self._sock, self._reader, self._tls, self.address
        received_bytes = 0
        failure: OSError | None = None
        self._accepted_bytes, self._ended = 0, False
        if self.rested_s and (tls or self.via is not None):  # not only requests were sent
            self._earlier_bytes = _acknowledged_bytes(sock) or 0
        reader.begin(max_response, body_counts=body_counts)
        await _last_look()  # from here on, bytes may be sent
        progress.enter(Phase.SENDING)
        try:
            sent_bytes = request.send(sock)
        except _WOULD_BLOCK:
            sent_bytes = 0
        except OSError as error:
            # The peer closed; an answer that it sent before may still be read.
            sent_bytes, failure = 0, error
        self._accepted_bytes = sent_bytes
        if failure is None and sent_bytes < len(request):
            sent_bytes, failure = await self._send_rest(request, sent_bytes, progress)
        if not reader.begun:
            progress.enter(Phase.AWAITING_RESPONSE)
        while not reader.complete:
            if reader.decided:
                await self._take_rest(progress)
                break
            try:
                # With TLS, bytes may be waiting that have left the socket already.
                if not tls:
                    await trio.lowlevel.wait_readable(sock)
                data = sock.recv(_CHUNK_BYTES)
            except (BlockingIOError, ssl.SSLWantReadError):
                if tls:
                    await trio.lowlevel.wait_readable(sock)
                continue
            except ssl.SSLWantWriteError:
                await trio.lowlevel.wait_writable(sock)
                continue
            except OSError as error:
                self._ended = isinstance(error, ssl.SSLEOFError)
                told = error if failure is None or alert_of(error) is not None else failure
                self._end(address, told)
                break
            received_bytes += len(data)
            self._take(data, failure, progress)
        self._earlier_bytes += sent_bytes
        return reader.response(), reader.reusable and failure is None and sent_bytes == len(request)

    async def _send_rest(
        self, request: Request, sent_bytes: int, progress: Progress
    ) -> tuple[int, OSError | None]:
        """Send what did not fit into the socket's buffer, while reading an answer
        that comes before the request has left, as from a receiver that refuses a
        big body unread.

        Returns:
            How many bytes were sent, and the error that ended sending. That is all of the
            request, unless an error, a whole answer, or one that is no success came first.
        """
        sock, reader = self._sock, self._reader
        with _EitherWay(sock) as either:
            while sent_bytes < len(request) and not (reader.complete or reader.refused):
                await either.wait()
                try:
                    data = sock.recv(_CHUNK_BYTES)
                except _WOULD_BLOCK:
                    pass
                except OSError as error:
                    return sent_bytes, error
                else:
                    self._take(data, None, progress)
                    continue
                try:
                    sent_bytes += request.send(sock)
                    self._accepted_bytes = sent_bytes
                    either.look_for(_EITHER)
                except (BlockingIOError, ssl.SSLWantWriteError):
                    either.look_for(_EITHER)
                except ssl.SSLWantReadError:
                    either.look_for(select.EPOLLIN)
                except OSError as error:
                    return sent_bytes, error
        return sent_bytes, None

    async def _take_rest(self, progress: Progress) -> None:
        """Read on, for `_PATIENCE_S` at most, in an answer whose meaning is known."""
        sock, reader = self._sock, self._reader
        with trio.move_on_after(_PATIENCE_S):
            while not reader.complete:
                try:
                    data = sock.recv(_CHUNK_BYTES)
                except (BlockingIOError, ssl.SSLWantReadError):
                    await trio.lowlevel.wait_readable(sock)
                except ssl.SSLWantWriteError:
                    await trio.lowlevel.wait_writable(sock)
                except OSError as error:
                    self._end(self.address, error)
                else:
                    self._take(data, None, progress)
                    await trio.lowlevel.checkpoint()
        if not reader.complete:
            reader.cut(f"only {reader.body_so_far} came within {_PATIENCE_S:g} s")

    def _take(self, data: bytes, failure: OSError | None, progress: Progress) -> None:
        reader = self._reader
        if data:
            reader.feed(data)
        else:
            self._ended = True
            reader.end_of_stream()
            if not reader.complete:
                self._end(self.address, failure)
        if reader.begun:
            if progress.phase is not Phase.READING:
                progress.enter(Phase.READING)
        elif progress.phase is Phase.READING:  # what had begun was a 1xx
            progress.enter(Phase.AWAITING_RESPONSE)

    def _end(self, address: str | None, error: OSError | None) -> None:
        """Note that the connection has ended before the answer did.

        Raises:
            Unreachable: there is no answer.
        """
        reader = self._reader
        closed = error is None or isinstance(error, ConnectionError | ssl.SSLEOFError)
        reason = "" if closed or error is None else f": {tls_reason(error)}"
        if reader.head_done:
            how = "was closed" if closed else "broke"
            reader.cut(f"the connection {how} after {reader.body_so_far}{reason}")
            return
        if reader.begun:
            moment = "in the middle of the answer"
        elif reader.received_bytes:
            moment = "after an interim answer"
        else:
            moment = "without an answer"
        peer = f"{self.origin} at {address}{' through the proxy' if self.via else ''}"
        if alert_of(error) is not None and error is not None:
            raise Unreachable(f"{peer} ended TLS {moment}: {tls_reason(error)}") from error
        if closed:
            raise Unreachable(f"{peer} closed the connection {moment}") from error
        raise Unreachable(f"the connection to {peer} broke {moment}{reason}") from error


def _acknowledged_bytes(sock: socket.socket | Secured) -> int | None:
    """How many bytes the peer's system has acknowledged; None where this system can't tell.
    Known even after the connection's end."""
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
        (acknowledged,) = _TCP_INFO.unpack(info)
    except (OSError, struct.error):
        return None
    return int(acknowledged) - 1  # the first was the connection's SYN


class _EitherWay:
    """Waits until a socket can be read from or written to. A Trio task waits for one
    descriptor at a time, so an epoll joins both. Without a descriptor for an epoll, it
    waits until the socket can be written to, but no longer than `_OTHER_WAY_S`."""

    def __init__(self, sock: socket.socket | Secured) -> None:
        self._sock = sock
        self._events = _EITHER
        try:
            self._poll: select.epoll | None = select.epoll()
            self._poll.register(sock, _EITHER)
        except OSError:
            self._poll = None

    def look_for(self, events: int) -> None:
        if self._poll is not None and events != self._events:
            self._poll.modify(self._sock, events)
        self._events = events

    async def wait(self) -> None:
        if self._poll is not None:
            await trio.lowlevel.wait_readable(self._poll)
        elif self._events == _EITHER:
            with trio.move_on_after(_OTHER_WAY_S):
                await trio.lowlevel.wait_writable(self._sock)
        else:
            await trio.lowlevel.wait_readable(self._sock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._poll is not None:
            self._poll.close()


async def _last_look() -> None:
    """Let a cancellation that is due happen now. A deadline that has passed since Trio last
    looked counts too, as in a process that was stopped in between."""
    if trio.current_effective_deadline() <= trio.current_time():
        await trio.lowlevel.checkpoint()
    else:
        await trio.lowlevel.checkpoint_if_cancelled()

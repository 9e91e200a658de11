"""A connection to Redis that Trio tasks may use: redis-py in a worker thread.

redis-py has no Trio client, and a thread that is blocked in it can't be
cancelled. So a call is bounded twice: the socket's timeouts end the thread's work, and
a deadline here ends the wait for the thread (name resolution has no timeout). After a
call that was not waited for to its end, the connection is given up: the thread closes
it when it is done, and the next call opens another.

Nothing is sent twice: redis-py's retries are off, and it may not reconnect by itself.
Before each use, an idle connection is checked for whether the server has closed it.
"""

from __future__ import annotations

import logging
import ssl
import threading
from collections.abc import Sequence
from typing import Any, Protocol, cast

import trio
from redis.backoff import NoBackoff
from redis.connection import Connection, SSLConnection
from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ClusterCrossSlotError,
    ClusterDownError,
    MasterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from taskd.buses.redis.parser import BoundedParser
from taskd.buses.redis.target import RedisTarget
from taskd.errors import BusUnavailable

logger = logging.getLogger("taskd.buses.redis")

CALL_S = 2.0
"""Longest wait for the answers to a call, connecting included."""
SOCKET_S = 1.5
"""Longest wait for a connection, and each time for bytes on it."""

CLUSTER_MODE = "runs in cluster mode, which the bus can't use: give it a server of its own"

_NO_TYPE: tuple[type[Exception], ...] = ()

# Matched by class, or by a word in the text, since errors from within a script have no
# class of their own. The first match counts.
_REFUSALS: tuple[tuple[tuple[type[Exception], ...], str, str], ...] = (
    (_NO_TYPE, "NOAUTH", "wants a password: give it in [bus] url"),
    (_NO_TYPE, "Authentication required", "wants a password: give it in [bus] url"),
    (
        _NO_TYPE,
        "without any password configured",
        "has no password for this user: leave it out of [bus] url",
    ),
    (
        (AuthenticationError, AuthorizationError),
        "WRONGPASS",
        "refuses the user or the password of [bus] url",
    ),
    ((NoPermissionError,), "NOPERM", "does not let this user do what a bus needs: {text}"),
    (
        (ReadOnlyError,),
        "READONLY",
        "is a replica, which takes no writes: give the primary's address",
    ),
    (
        (MasterDownError,),
        "MASTERDOWN",
        "is a replica, whose primary is lost: give the primary's address",
    ),
    # Answers of a server in cluster mode only.
    ((AskError,), "MOVED", CLUSTER_MODE),
    ((ClusterDownError, ClusterCrossSlotError, TryAgainError), "CLUSTERDOWN", CLUSTER_MODE),
    ((OutOfMemoryError,), "OOM", "is out of memory: raise its maxmemory"),
    (
        _NO_TYPE,
        "MISCONF",
        (
            "can't save its data, so it takes no writes (MISCONF): make room on its disk, or set "
            'save "", since the bus needs nothing kept'
        ),
    ),
    (
        _NO_TYPE,
        "NOREPLICAS",
        "has fewer replicas than it asks for, so it takes no writes (min-replicas-to-write)",
    ),
    (_NO_TYPE, "BUSY ", "is busy with somebody's script (BUSY)"),
    (
        _NO_TYPE,
        "DENIED",
        "lets no other machine in (protected-mode): give it a password, or set its bind",
    ),
    (
        _NO_TYPE,
        "unknown command",
        ("refuses: {text}: is it Redis or Valkey, of version 7 or newer, and no Sentinel?"),
    ),
)

_CERTIFICATE = "a client certificate: give cert_file and key_file in [bus] url"

_MAX_TEXT = 200

Command = tuple[str | bytes | int, ...]
Answer = Any
"""A server's answer: bytes, int, None, or a list of them."""


class RawConnection(Protocol):
    """The part of redis-py's `Connection` in use here; redis-py has no types for it."""

    def connect(self) -> None:
        """Connect, log in, choose the database."""
        ...

    def disconnect(self) -> None:
        """Close the socket, if there is one."""
        ...

    def can_read(self, timeout: float) -> bool:
        """Whether there is something to read within so many seconds."""
        ...

    def pack_commands(self, commands: Sequence[Command]) -> list[bytes]:
        """Commands as bytes."""
        ...

    def send_packed_command(self, command: list[bytes], *, check_health: bool) -> None:
        """Send bytes that `pack_commands` made."""
        ...

    def read_response(self) -> Answer:
        """Read one answer; raises it if it is an error."""
        ...


class Link:
    """One connection, for one Trio task at a time; opened by the first call.

    Args:
        target: the server.
        limiter: bounds the threads of all links of a Bus together.
    """

    def __init__(self, target: RedisTarget, limiter: trio.CapacityLimiter) -> None:
        self._target = target
        self._limiter = limiter
        self._conversation: Conversation | None = None

    async def call(self, *commands: Command) -> list[Answer]:
        """Send commands in one go and return their answers, in order.

        Raises:
            BusUnavailable: no answer, or an error for one of them. Each may have been
                carried out or not.
        """
        conversation = self._conversation or Conversation(self._target)
        self._conversation = None
        try:
            with trio.move_on_after(CALL_S):
                answers = await trio.to_thread.run_sync(
                    conversation.exchange,
                    commands,
                    abandon_on_cancel=True,
                    limiter=self._limiter,
                    thread_name="taskd-bus",
                )
                self._conversation = conversation
                return answers
        finally:
            if self._conversation is None:
                conversation.give_up()
        raise BusUnavailable(f"Redis at {self._target.address} did not answer within {CALL_S:g} s")

    def close(self) -> None:
        """Close the connection. A later call opens another."""
        if self._conversation is not None:
            self._conversation.give_up()
            self._conversation = None


class Conversation:
    """A connection that one thread uses, and another may give up. It has to be given up
    after an error."""

    def __init__(self, target: RedisTarget) -> None:
        self._target = target
        self._lock = threading.Lock()
        self._given_up = False
        self._busy = False
        self._connected = False
        self._connection = make_connection(target)

    def exchange(self, commands: Sequence[Command]) -> list[Answer]:
        """See `Link.call`. Runs in a worker thread."""
        with self._lock:
            if self._given_up:
                raise BusUnavailable("the call was given up before it began")
            self._busy = True
        try:
            return self._exchange(commands)
        except Exception as error:
            # Any error: on bytes that are not Redis', redis-py raises ValueError and others.
            raise explained(self._target, error) from error
        finally:
            self._leave()

    def give_up(self) -> None:
        """Close the connection: at once, or when the thread that uses it is done."""
        with self._lock:
            self._given_up = True
            if not self._busy:
                self._connection.disconnect()

    def _leave(self) -> None:
        with self._lock:
            self._busy = False
            if self._given_up:
                self._connection.disconnect()

    def _exchange(self, commands: Sequence[Command]) -> list[Answer]:
        connection = self._connection
        if self._connected and is_stale(connection):
            connection.disconnect()
            self._connected = False
        if not self._connected:
            connection.connect()
            self._connected = True
        connection.send_packed_command(connection.pack_commands(commands), check_health=False)
        # An error leaves later answers unread; the caller then gives the connection up.
        return [connection.read_response() for _ in commands]


def make_connection(target: RedisTarget) -> RawConnection:
    """A connection, not opened yet, that neither retries, reconnects nor checks itself."""
    options: dict[str, Any] = {
        "host": target.host,
        "port": target.port,
        "db": target.number,
        "username": target.user,
        "password": target.password,
        "socket_connect_timeout": SOCKET_S,
        "socket_timeout": SOCKET_S,
        "socket_keepalive": True,
        "health_check_interval": 0,
        "retry_on_timeout": False,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
        "parser_class": BoundedParser,
    }
    if target.tls:
        options |= {
            "ssl_cert_reqs": "required",
            "ssl_check_hostname": True,
            "ssl_ca_certs": target.ca_file,
            "ssl_certfile": target.cert_file,
            "ssl_keyfile": target.key_file,
        }
    kind: Any = SSLConnection if target.tls else Connection
    return cast("RawConnection", kind(**options))


def is_stale(connection: RawConnection) -> bool:
    """Whether the server has closed an idle connection, or has sent unexpected bytes."""
    try:
        return bool(connection.can_read(0))
    except (RedisError, OSError) as error:
        logger.debug("an idle connection to Redis had been closed: %s", error)
        return True


def explained(target: RedisTarget, error: Exception) -> BusUnavailable:
    """A failure as one sentence for people."""
    return BusUnavailable(f"Redis at {target.address} {_what_happened(target, error)}")


def _what_happened(target: RedisTarget, error: Exception) -> str:
    if isinstance(error, RedisTimeoutError | TimeoutError):
        return f"did not answer within {SOCKET_S:g} s"
    if isinstance(error, ResponseError | AuthenticationError | AuthorizationError):
        return _refused(error)
    if isinstance(error, BusyLoadingError):
        return "is loading its data"
    if isinstance(error, RedisConnectionError) and "max number of clients" in str(error):
        return "has as many clients as it takes: raise its maxclients"
    if isinstance(error, RedisConnectionError | OSError):
        return f"can't be reached{_why_unreached(target, error)}"
    return f"answered what can't be read: is it Redis? ({type(error).__name__})"


def _why_unreached(target: RedisTarget, error: Exception) -> str:
    cause = error if isinstance(error, ssl.SSLError) else error.__cause__ or error.__context__
    if isinstance(cause, ssl.SSLError):
        if "CERTIFICATE_REQUIRED" in (cause.reason or ""):
            return f": it asks for {_CERTIFICATE}"
        if isinstance(cause, ssl.SSLEOFError) and target.cert_file is None:
            # The server's alert about it may be lost if something was being sent.
            return f": it closed the connection; perhaps it asks for {_CERTIFICATE}"
        reason = getattr(cause, "verify_message", "") or cause.reason or "it failed"
        return f" by TLS: {reason}"
    if isinstance(cause, OSError) and cause.strerror:
        return f": {cause.strerror}"
    return f": {error}"


def _refused(error: Exception) -> str:
    text = " ".join(str(error).split())[:_MAX_TEXT]
    for kinds, word, meaning in _REFUSALS:
        if isinstance(error, kinds) or word in text:
            return meaning.format(text=text)
    return f"refuses: {text}"

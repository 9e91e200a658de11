"""One connection to a MySQL server, which is either in order or never used again.

trio-mysql speaks the protocol; this makes it safe. What it does badly, and what is
done about it:

- A statement that is cancelled leaves half a packet on the wire: while a statement
  is under way the connection counts as broken, until its answer was read whole.
- It closes a socket with a method that is not there, and swallows that: the stream is
  opened and closed here.
- It falls back to plain text where the server offers no TLS: that is refused before
  anything of the user's was sent, and looked at once more after the login.
- Bytes that came in clear text before TLS began would be read as if they had come
  after: refused.
- It waits as long as the server pleases: every step has a deadline.
- Its cursors ask for warnings after a statement, and raise them as Python's: not used.
- Its ``transaction()``, cancelled, stays open: transactions are the writer's, whose
  rollback is shielded and has a deadline.
- It encodes passwords as Latin-1: it is given UTF-8.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from dataclasses import dataclass
from typing import Any, Self

import trio
from trio_mysql.connections import Connection  # type: ignore[import-untyped] # it has no types
from trio_mysql.constants import CLIENT, SERVER_STATUS  # type: ignore[import-untyped] # as above

from taskd.errors import StoreRefused, StoreUnavailable
from taskd.stores.mysql.errors import ConnectionLost, Refused, keeps_connection, translated
from taskd.stores.mysql.login import METHODS
from taskd.stores.mysql.target import MySQLTarget

CONNECT_S = 5.0
STATEMENT_S = 10.0
ROLLBACK_S = 2.0
PING_S = 2.0
_QUIT_S = 0.2
_QUIT = b"\x01\x00\x00\x00\x01"
"""Without it the server notes an aborted connection."""

LOCK_WAIT_S = 3
"""The server gives up waiting for a lock after so long, well before the statement's
deadline."""

IDLE_S = 10
"""The server ends a connection that has asked nothing for so long, and with it the
transaction and the locks of a node that was cut off in the middle."""

_SESSION = f"""SET character_set_client = 'utf8mb4', character_set_connection = 'utf8mb4',
    character_set_results = 'utf8mb4', collation_connection = 'utf8mb4_bin',
    SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION', SESSION time_zone = '+00:00',
    SESSION innodb_lock_wait_timeout = {LOCK_WAIT_S}, SESSION lock_wait_timeout = {LOCK_WAIT_S},
    SESSION wait_timeout = {IDLE_S}, SESSION autocommit = """
_ISOLATION = "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED"
_LIMITS = "SELECT @@max_allowed_packet, @@auto_increment_increment"
_CIPHER = "SHOW SESSION STATUS LIKE 'Ssl_cipher'"

Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a statement answered."""

    rows: tuple[Row, ...]
    affected: int
    first_id: int
    """The id that the first of the rows it inserted was given."""


class _Wire(Connection):  # type: ignore[misc] # it has no types
    """The library's connection, with what has to be looked at before the login."""

    require_tls = False
    _auth_plugin_name: str

    async def _get_server_information(self) -> None:
        await super()._get_server_information()
        if len(self._rbuf) > self._rbuf_offset:
            raise StoreRefused("the database said more than a server may before the login")
        if self.require_tls and not self.server_capabilities & CLIENT.SSL:
            raise StoreRefused("the database offers no TLS, and the URL asks for it")
        if self._auth_plugin_name != "mysql_native_password":
            # Unknown to the library, so that it begins with nothing, and the server
            # asks for the user's own method, which is then looked up in `METHODS`.
            self._auth_plugin_name = "none"

    async def ask(self, statement: bytes) -> Answer:
        await self.query(statement)
        result = self._result
        rows: tuple[Row, ...] = result.rows or ()
        return Answer(rows, result.affected_rows or 0, result.insert_id or 0)

    async def read_packet(self) -> Any:  # noqa: ANN401 - the library's packet
        return await self._read_packet()

    async def quit(self) -> None:
        await self._write_bytes(_QUIT)

    @property
    def secure(self) -> bool:
        return bool(self._secure)

    @property
    def in_transaction(self) -> bool:
        return bool(self.server_status & SERVER_STATUS.SERVER_STATUS_IN_TRANS)


class MySQLConnection:
    """See the module. Made by `open`; used by one task at a time."""

    def __init__(self, target: MySQLTarget, stream: trio.SocketStream, wire: _Wire) -> None:
        self._target = target
        self._stream = stream
        self._wire = wire
        self._usable = True
        self.max_packet = 0
        """Bytes that a statement may have at most."""
        self.id_step = 1
        """By how much the ids differ that one statement's rows are given."""

    @classmethod
    async def open(
        cls, target: MySQLTarget, tls: ssl.SSLContext | None, *, autocommit: bool
    ) -> Self:
        """Connect, log in, and agree on how to talk.

        Args:
            target: where to.
            tls: speak TLS with this; None: plain text.
            autocommit: whether a statement outside of a transaction is one of its
                own; else the first one begins a transaction.

        Raises:
            StoreRefused: the server lacks TLS, or asks for a password in a way that
                is not safe.
            StoreUnavailable: anything else; `errors.refusal` tells more.
        """
        stream: trio.SocketStream | None = None
        try:
            with trio.fail_after(CONNECT_S):
                stream = await trio.open_tcp_stream(target.host, target.port)
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                connection = cls(target, stream, await _log_in(target, tls, stream))
                await connection._agree(autocommit=autocommit, tls=tls is not None)
        except BaseException as error:
            if stream is not None:
                await trio.aclose_forcefully(stream)
            if isinstance(error, trio.TooSlowError):
                raise _too_slow(CONNECT_S) from error
            if isinstance(error, StoreRefused | StoreUnavailable) or not isinstance(
                error, Exception
            ):
                raise
            raise translated(error, database=target.database, denied=_why_denied(target)) from error
        return connection

    @property
    def usable(self) -> bool:
        """Whether it is in order."""
        return self._usable

    @property
    def in_transaction(self) -> bool:
        """Whether the server has a transaction open on it."""
        return self._wire.in_transaction

    async def execute(self, statement: str | bytes, *, within_s: float = STATEMENT_S) -> Answer:
        """Run one statement.

        Args:
            statement: with its values in it (see `rows`).
            within_s: it is given up after so many seconds.

        Raises:
            Conflict: see `errors`. A deadlock has ended the transaction.
            Refused: the statement has changed nothing; the transaction goes on.
            StoreUnavailable: the connection can't be used any more, and its
                transaction is lost with it.
        """
        if isinstance(statement, str):
            statement = statement.encode()
        if self.max_packet and len(statement) >= self.max_packet:
            raise Refused(
                f"a statement of {len(statement)} bytes is more than the database takes: raise "
                "its max_allowed_packet"
            )
        if not self._usable:
            raise ConnectionLost("the database can't be used now: the connection is broken")
        self._usable = False
        try:
            with trio.fail_after(within_s):
                answer = await self._wire.ask(statement)
        except trio.TooSlowError as error:
            raise _too_slow(within_s) from error
        except Exception as error:
            self._usable = keeps_connection(error)
            raise translated(error, database=self._target.database) from error
        self._usable = True
        return answer

    async def commit(self) -> None:
        """End the transaction. Where this fails, nobody here knows how it ended."""
        await self.execute("COMMIT")

    async def rollback(self) -> None:
        """Give the transaction up, in bounded time, cancelled or not; a connection on
        which that fails is not usable any more."""
        if not self._usable:
            return
        with trio.CancelScope(shield=True):
            await self.execute("ROLLBACK", within_s=ROLLBACK_S)

    async def ping(self) -> None:
        """Make sure that the server is there.

        Raises:
            StoreUnavailable: it is not.
        """
        await self.execute("DO 0", within_s=PING_S)

    async def aclose(self) -> None:
        """Close, with a word of farewell if it is in order. Never waits for long."""
        if self._usable:
            self._usable = False
            with trio.move_on_after(_QUIT_S, shield=True):
                with contextlib.suppress(Exception):  # it is closed in any case
                    await self._wire.quit()
        await trio.aclose_forcefully(self._stream)

    async def _agree(self, *, autocommit: bool, tls: bool) -> None:
        if tls:
            ((_, cipher),) = (await self.execute(_CIPHER, within_s=CONNECT_S)).rows
            if not cipher:
                raise StoreRefused("the database does not speak TLS, and the URL asks for it")
        await self.execute(_ISOLATION, within_s=CONNECT_S)
        await self.execute(_SESSION + str(int(autocommit)), within_s=CONNECT_S)
        ((max_packet, id_step),) = (await self.execute(_LIMITS, within_s=CONNECT_S)).rows
        self.max_packet, self.id_step = max_packet, id_step


async def _log_in(
    target: MySQLTarget, tls: ssl.SSLContext | None, stream: trio.SocketStream
) -> _Wire:
    wire = _Wire(
        host=target.host,
        port=target.port,
        user=target.user,
        password=target.password.encode(),
        database=target.database,
        charset="utf8mb4",
        use_unicode=True,
        autocommit=None,
        program_name="taskd",
        auth_plugin_map=METHODS,
        ssl=tls,
    )
    wire.require_tls = tls is not None
    await wire.connect(stream)
    return wire


def _why_denied(target: MySQLTarget) -> str:
    # A server tells nothing else of one who would have to speak TLS, or show a
    # certificate, and does not.
    if not target.tls:
        return "if this user may log in by TLS only, add tls=true to the URL"
    if target.cert_file is None:
        return "if it has to show a certificate (REQUIRE X509), give cert_file and key_file"
    return ""


def _too_slow(seconds: float) -> StoreUnavailable:
    return StoreUnavailable(
        f"the database can't be used now: it has not answered within {seconds:g} s"
    )

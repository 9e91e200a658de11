"""One connection to a MySQL server, which is either in order or never used again.

trio-mysql speaks the protocol. It has faults, which this module makes up for:

- A cancelled statement leaves half a packet on the wire. So the connection counts as
  broken from the start of a statement until its answer was read whole.
- It closes a socket by a method that does not exist, and swallows the error. So the
  stream is opened and closed here.
- It falls back to plain text if the server offers no TLS. So that is refused before user
  and password are sent, and TLS is checked once more after the login.
- It reads bytes that came in clear text before TLS began as if they came after. So such
  bytes are refused.
- It waits for the server without limit. So every step has a deadline.
- Its cursors ask for warnings after a statement, and raise them as Python's. So they are
  not used.
- Its ``transaction()`` stays open if it is cancelled. So the writer begins and ends
  transactions itself, with a shielded rollback that has a deadline.
- It encodes passwords as Latin-1. So it is given UTF-8 bytes.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from typing import Any, Self

import trio
from trio_mysql.connections import Connection  # type: ignore[import-untyped] # it has no types
from trio_mysql.constants import CLIENT, SERVER_STATUS  # type: ignore[import-untyped] # as above

from taskd.domain.record import record
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
"""The packet that ends a connection; without it the server notes an aborted one."""

LOCK_WAIT_S = 3
"""Seconds after which the server gives up waiting for a lock, well before the statement's
deadline."""

IDLE_S = 10
"""Seconds after which the server ends an idle connection, and with it the transaction and the
locks of a node that was cut off."""

_SESSION = f"""SET character_set_client = 'utf8mb4', character_set_connection = 'utf8mb4',
    character_set_results = 'utf8mb4', collation_connection = 'utf8mb4_bin',
    SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION', SESSION time_zone = '+00:00',
    SESSION innodb_lock_wait_timeout = {LOCK_WAIT_S}, SESSION lock_wait_timeout = {LOCK_WAIT_S},
    SESSION wait_timeout = {IDLE_S}, SESSION autocommit = """
_ISOLATION = "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED"
_LIMITS = "SELECT @@max_allowed_packet, @@auto_increment_increment"
_CIPHER = "SHOW SESSION STATUS LIKE 'Ssl_cipher'"

Row = tuple[Any, ...]


@record
class Answer:
    """What a statement answered."""

    rows: tuple[Row, ...]
    affected: int
    first_id: int
    """The id of the first row that the statement inserted."""


class _Wire(Connection):  # type: ignore[misc] # it has no types
    """The library's connection, with checks before the login."""

    require_tls = False
    _auth_plugin_name: str

    async def _get_server_information(self) -> None:
        await super()._get_server_information()
        if len(self._rbuf) > self._rbuf_offset:
            raise StoreRefused("the database said more than a server may before the login")
        if self.require_tls and not self.server_capabilities & CLIENT.SSL:
            raise StoreRefused("the database offers no TLS, and the URL asks for it")
        if self._auth_plugin_name != "mysql_native_password":
            # The library does not know this method, so it sends no password at first. The
            # server then asks for the user's own method, which is looked up in `METHODS`.
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
    """See the module. Made by `open`; used by one Trio task at a time."""

    def __init__(self, target: MySQLTarget, stream: trio.SocketStream, wire: _Wire) -> None:
        self._target = target
        self._stream = stream
        self._wire = wire
        self._usable = True
        self.max_packet = 0
        """Bytes that a statement has to stay below; 0: not known yet."""
        self.id_step = 1
        """The step between the ids of one statement's rows."""

    @classmethod
    async def open(
        cls, target: MySQLTarget, tls: ssl.SSLContext | None, *, autocommit: bool
    ) -> Self:
        """Connect, log in, check TLS, and set the session up.

        Args:
            target: where to.
            tls: speak TLS with this; None: plain text.
            autocommit: whether each statement outside of a transaction commits by itself;
                else the first one begins a transaction.

        Raises:
            StoreRefused: the server lacks TLS, or asks for a password in a way that
                is not safe.
            StoreUnavailable: anything else; `errors.refusal` tells whether a retry may help.
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
        """Whether the connection is in order."""
        return self._usable

    @property
    def in_transaction(self) -> bool:
        """Whether the server has a transaction open on the connection."""
        return self._wire.in_transaction

    async def execute(self, statement: str | bytes, *, within_s: float = STATEMENT_S) -> Answer:
        """Run one statement.

        Args:
            statement: with its values in it (see `rows`).
            within_s: seconds after which it is given up.

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
        """Commit the transaction. If the server does not answer, its outcome is not known here."""
        await self.execute("COMMIT")

    async def rollback(self) -> None:
        """Roll the transaction back within `ROLLBACK_S`, cancelled or not. If that fails, the
        connection is not usable any more."""
        if not self._usable:
            return
        with trio.CancelScope(shield=True):
            await self.execute("ROLLBACK", within_s=ROLLBACK_S)

    async def ping(self) -> None:
        """Check that the server answers.

        Raises:
            StoreUnavailable: it does not.
        """
        await self.execute("DO 0", within_s=PING_S)

    async def aclose(self) -> None:
        """Close; tell the server first if the connection is in order, within `_QUIT_S`."""
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
    # A server that requires TLS or a certificate of this user only says that access is denied,
    # as it does for a wrong password.
    if not target.tls:
        return "if this user may log in by TLS only, add tls=true to the URL"
    if target.cert_file is None:
        return "if it has to show a certificate (REQUIRE X509), give cert_file and key_file"
    return ""


def _too_slow(seconds: float) -> StoreUnavailable:
    return StoreUnavailable(
        f"the database can't be used now: it has not answered within {seconds:g} s"
    )

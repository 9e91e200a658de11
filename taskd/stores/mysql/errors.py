"""Translates the errors of a MySQL server and of its library.

A failed statement becomes one of four errors:

- `Conflict`: other transactions were in the way; this one can be repeated.
- `Refused`: the server does not take these values, on whatever connection.
- `ConnectionLost`: the connection is gone, and its transaction; a new one may work.
- any other `StoreUnavailable`: a new connection would fail as well.
"""

from __future__ import annotations

import ssl

import trio
from trio_mysql import err  # type: ignore[import-untyped] # it has no types

from taskd.errors import StoreError, StoreRefused, StoreUnavailable


class Conflict(Exception):
    """A deadlock, or a lock that was not given in time. Never leaves the adapter.

    Attributes:
        waited: the server waited for the lock as long as it may, `connection.LOCK_WAIT_S`.
    """

    def __init__(self, text: str, *, waited: bool) -> None:
        super().__init__(text)
        self.waited = waited


class Refused(StoreError):
    """The server does not take a value. Nothing was written."""


class DuplicateKey(Refused):
    """There is a row with this key already."""


class ConnectionLost(StoreUnavailable):
    """The connection broke, or the server ended it."""


DUPLICATE_ENTRY = 1062

_LOCK_WAIT = 1205
_CONFLICTS = frozenset({_LOCK_WAIT, 1213, 1020, 1689, 3101, 3572})
_LOST = frozenset({1053, 1077, 1079, 1080, 1152, 1158, 1159, 1160, 1161, 1927, 3169, 4031})
"""Codes by which the server says that it ends the connection."""

_VALUES = frozenset({1048, 1136, 1264, 1265, 1292, 1300, 1366, 1406, 1690, 3140, 3141, 4038})

_WRONG = "user or password is wrong"
_EXPIRED = "this user's password has expired: ALTER USER … IDENTIFIED BY another"

_REASONS = {
    1021: "its disk is full",
    1114: "a table is full",
    1040: "it has too many connections (max_connections)",
    1203: "this user has too many connections (max_user_connections)",
    1226: "this user has used up its share (max_user_connections and the like)",
    1129: "it has blocked this host after too many failed connections (FLUSH HOSTS)",
    1290: "it is read-only",
    1792: "it is read-only",
    1836: "it is read-only",
    3100: "its replication group takes no writes here now",
    3032: "it is in offline mode",
    3955: "this user is locked for a while, after too many wrong passwords",
    1146: "a table of taskd's is missing: run `taskd migrate`",
    1054: "a column of taskd's is missing: run `taskd migrate`",
    1047: "its node is not part of its cluster now",
    1317: "the statement was ended there (KILL)",
    1153: "the statement is larger than its max_allowed_packet",
}

_REFUSALS = {
    1044: "this user has no right to use the database {database}: GRANT it",
    1045: _WRONG,
    1049: "there is no database {database}: CREATE DATABASE it, then run `taskd migrate`",
    1130: "this host may not connect to it",
    1142: "this user lacks a right that taskd needs",
    1143: "this user lacks a right that taskd needs",
    1227: "this user lacks a right that taskd needs",
    1251: "this user's way to authenticate is not known here",
    1524: "this user's way to authenticate is not known there",
    1698: _WRONG,
    1820: _EXPIRED,
    1862: _EXPIRED,
    3118: "this user's account is locked",
    3159: "it takes encrypted connections only (require_secure_transport): add tls=true to the URL",
    4151: "this user's account is locked",
}

_DENIED = frozenset({1045, 1698})

_FIRST_OF_THE_LIBRARY, _LAST_OF_THE_LIBRARY = 2000, 2999
_MAX_TEXT = 200


def code_of(error: BaseException) -> int:
    """Return the server's code of an error; 0 if the error is not the server's."""
    if not isinstance(error, err.Error) or not error.args or not isinstance(error.args[0], int):
        return 0
    code: int = error.args[0]
    return 0 if _FIRST_OF_THE_LIBRARY <= code <= _LAST_OF_THE_LIBRARY else code


def keeps_connection(error: BaseException) -> bool:
    """Whether a statement's failure leaves the connection in order: the server's answer was
    read whole, and another connection would have had the same one."""
    code = code_of(error)
    return code in _CONFLICTS or code in _VALUES or code == DUPLICATE_ENTRY


def translated(error: BaseException, *, database: str, denied: str = "") -> Exception:
    """Return the exception to raise for an error of the library or of the network.

    Args:
        error: as it was raised.
        database: its name, for the messages.
        denied: a hint for a login that is denied though the password is right.
    """
    code = code_of(error)
    if code in _CONFLICTS:
        return Conflict(_text(error), waited=code == _LOCK_WAIT)
    if code == DUPLICATE_ENTRY:
        return DuplicateKey("the database has such a row already")
    if code in _VALUES:
        return Refused(f"the database does not take a value: {_text(error)}")
    gone = code in _LOST or not code
    what = _what(error, code, database)
    if code in _DENIED and denied:
        what += f"; {denied}"
    return (ConnectionLost if gone else StoreUnavailable)(f"the database can't be used now: {what}")


def _what(error: BaseException, code: int, database: str) -> str:
    if not code:
        return _lost(error)
    reason = _REASONS.get(code) or _REFUSALS.get(code)
    return _text(error) if reason is None else f"{reason.format(database=database)} ({code})"


def refusal(error: StoreUnavailable) -> StoreUnavailable | StoreRefused:
    """Return the error for a start: a `StoreRefused` if trying again can't help."""
    cause = error.__cause__
    if cause is not None and code_of(cause) in _REFUSALS:
        return StoreRefused(str(error).replace(" now:", ":"))
    if isinstance(_tls_cause(cause), ssl.SSLCertVerificationError):
        return StoreRefused(str(error).replace(" now:", ":"))
    return error


def _text(error: BaseException) -> str:
    code, *texts = error.args
    text = str(texts[0]) if texts else ""
    return f"{text[:_MAX_TEXT]} ({code})"


def _tls_words(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not valid here: {error.verify_message}"
    if "CERTIFICATE_REQUIRED" in (error.reason or ""):
        return "it asks for a client certificate: give cert_file and key_file in the URL"
    return f"TLS failed: {error}"


def _tls_cause(error: BaseException | None) -> ssl.SSLError | None:
    if isinstance(error, trio.BrokenResourceError):
        error = error.__cause__
    return error if isinstance(error, ssl.SSLError) else None


def _lost(error: BaseException) -> str:
    tls = _tls_cause(error)
    if tls is not None:
        return _tls_words(tls)
    if isinstance(error, err.Error):
        return "the connection was lost"
    if isinstance(error, OSError):
        return error.strerror or str(error) or type(error).__name__
    if isinstance(error, trio.BrokenResourceError | trio.ClosedResourceError):
        return "the connection was lost"
    return f"what it sent can't be read ({type(error).__name__})"

"""Finds out who sent a request, from the signing headers, in the protocol's order of
checks.

`Authenticator.identify` checks that the headers are there and well formed, then timestamp,
key and signature. It needs the head only, since the signature covers the body's digest.
`Authenticator.authenticate` then compares that digest with the body. The nonce comes last:
see `taskd.api.entrances`.
"""

from __future__ import annotations

import hmac
import re
from typing import NamedTuple, NoReturn
from zoneinfo import ZoneInfo

from taskd.api.http.body_reader import Reader
from taskd.api.http.request import Caller, Request
from taskd.api.wire.envelope import Unauthorized
from taskd.api.wire.timestamps import parse_wall_seconds, wall_time
from taskd.clock import Clock
from taskd.config import AuthConfig, Config
from taskd.domain import signing
from taskd.domain.model import App, NonceUse
from taskd.errors import NonceUsed
from taskd.service.service import Service

_NAMES = ("app_key", "nonce", "timestamps", "signature", "payload")
_SPELLINGS = tuple(
    (name, tuple(s.encode() for s in dict.fromkeys((name, name.replace("_", "-")))))
    for name in _NAMES
)

_KEY = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_NONCE = re.compile(r"(?!cb-)[A-Za-z0-9_-]{16,64}")
_SECONDS = re.compile(r"[0-9]{10}")
_SIGNATURE = re.compile(r"[A-Za-z0-9+/]{86}==")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_ANY_PAYLOAD = re.compile(r"[^\x00-\x1f\x7f]{1,1024}")
_OPAQUE_NONCE = 16

_NOBODYS_SECRET = signing.random_token(32)
"""Verifies signatures where the app_key is unknown, so that the answer takes as long."""

_DROPPED = {
    "app_key": "; proxies (nginx for one) and servers drop names with an underscore: "
    "send app-key, which counts as well"
}
"""Hints on what often becomes of a header that is missing."""

_MILLISECONDS = re.compile(r"[0-9]{13}")
_IN_MILLISECONDS = " (thirteen digits are milliseconds)"

_HALF_A_SIGNATURE = {
    44: ", not that of the 32 bytes themselves: write these as hexadecimal digits first",
    64: ": the digits alone are not enough, their base64 is what counts",
}
"""Hints on what was forgotten, by the length of the signature that was sent."""

_WRONG = "app_key or signature: the app_key is unknown, or the signature is not the one it makes"


class _Signed(NamedTuple):
    app_key: str
    nonce: str
    timestamps: str
    signature: str
    payload: str


class Authenticator:
    """Finds out who sent a request."""

    def __init__(
        self, service: Service, config: Config, clock: Clock, reader: Reader | None = None
    ) -> None:
        self._service = service
        self._reader = reader or Reader()
        self._clock = clock
        self.appoint(config.auth)
        self._window_ms = config.auth.window * 1000
        self._opaque = config.auth.payload == "opaque"
        self._zone = ZoneInfo(config.server.timezone)

    def appoint(self, auth: AuthConfig) -> None:
        """Use the administrator's keys of this section from now on."""
        self._admin_key = auth.admin_key.encode()
        self._admin_secret = auth.admin_secret

    @property
    def has_admin(self) -> bool:
        """Whether there is an administrator."""
        return self._admin_secret is not None

    async def authenticate(self, request: Request) -> Caller:
        """The caller whose signature the request carries. Its body has arrived.

        Raises:
            Unauthorized: it carries none, or not a right one.
            StoreUnavailable: the key can't be looked up now.
        """
        caller = request.caller or await self.identify(request)
        if caller.payload is None or await self._reader.digest(request.signed) == caller.payload:
            return caller
        await self._use_up(caller.nonce)
        what = "query string" if request.method == "GET" else "body"
        raise Unauthorized(f"payload: is not the SHA-256 of the {what} that arrived")

    async def identify(self, request: Request) -> Caller:
        """The caller, found by the request's head alone before its body is looked at, and
        noted in the request.

        Raises:
            Unauthorized: the head carries no signature, or not a right one.
            StoreUnavailable: the key can't be looked up now.
        """
        signed = _signed_headers(request)
        is_admin = hmac.compare_digest(signed.app_key.encode(), self._admin_key)
        opaque = self._opaque and not is_admin
        _check_form(signed, opaque=opaque)
        request.app_key = signed.app_key
        now_ms = self._clock.now_ms()
        moments_ms = self._check_time(signed.timestamps, now_ms)

        app = None if is_admin else self._service.known_app(signed.app_key)
        secret = self._admin_secret if is_admin else _secret_of(app)
        if not _is_right(signed, secret):
            # Every wrong signature costs a look-up of its key. So the time that an answer
            # takes does not show whether the app is known here, or exists at all.
            found = await self._service.find_app(signed.app_key)
            if is_admin or found is None or found == app or not _is_right(signed, found.secret_key):
                raise Unauthorized(_WRONG)
            app = found

        # A wall time that comes twice is valid again an hour later, so the nonce must be
        # kept until its later moment has passed.
        nonce = NonceUse(
            app_key=signed.app_key,
            nonce=signed.nonce,
            expires_at=max(now_ms, *moments_ms) + 2 * self._window_ms,
            signed_at=min(moments_ms),
            signed_latest=max(moments_ms),
        )
        request.caller = Caller(app, nonce, None if opaque else signed.payload)
        return request.caller

    def claims_signature(self, request: Request) -> bool:
        """Whether the request has any of the signing headers."""
        return any(spelling in request.headers for _, both in _SPELLINGS for spelling in both)

    async def _use_up(self, nonce: NonceUse) -> None:
        try:
            await self._service.use_nonce(nonce)
        except NonceUsed:
            return  # the payload was checked first, and its error is the one to tell

    def _check_time(self, timestamps: str, now_ms: int) -> list[int]:
        """Make sure that a reading of the timestamp is within the window; returns
        all of them."""
        moments_ms = (
            [int(timestamps) * 1000]
            if _SECONDS.fullmatch(timestamps)
            else parse_wall_seconds(timestamps, self._zone)
        )
        if moments_ms is None:
            hint = _IN_MILLISECONDS if _MILLISECONDS.fullmatch(timestamps) else ""
            _malformed(
                "timestamps",
                "must be ten digits of Unix seconds, or YYYY-MM-DD HH:MM:SS in the server's "
                f"timezone{hint}; {self._time(now_ms)}",
            )
        if not any(abs(now_ms - moment_ms) <= self._window_ms for moment_ms in moments_ms):
            window = self._window_ms // 1000
            raise Unauthorized(
                f"timestamps: is more than {window} s from the server's clock; {self._time(now_ms)}"
            )
        return moments_ms

    def _time(self, now_ms: int) -> str:
        """What a right timestamp is now, in both forms."""
        wall = wall_time(now_ms, self._zone)
        return (
            f"wall times are those of the server's timezone, {self._zone.key}, where it is "
            f"{wall} now, which is {now_ms // 1000} in Unix seconds"
        )


def _secret_of(app: App | None) -> str | None:
    return None if app is None else app.secret_key


def _is_right(signed: _Signed, secret: str | None) -> bool:
    """Whether a secret makes this signature. Without a secret it does not, which takes as
    long to find out."""
    right = signing.verify(
        secret or _NOBODYS_SECRET,
        signed.timestamps,
        signed.nonce,
        signed.payload,
        signed.signature,
    )
    return right and secret is not None


def _signed_headers(request: Request) -> _Signed:
    headers, conflicts = request.headers, request.conflicts
    values = []
    for name, spellings in _SPELLINGS:
        found: bytes | None = None
        for spelling in spellings:
            value = headers.get(spelling)
            if value is None:
                continue
            if spelling in conflicts or (found is not None and found != value):
                _malformed(name, "is given twice, with different values")
            found = value
        if not found:
            raise Unauthorized(f"the header {name} is missing{_DROPPED.get(name, '')}")
        try:
            values.append(found.decode())
        except UnicodeDecodeError:
            _malformed(name, "must be ASCII")
    return _Signed(*values)


def _check_form(signed: _Signed, *, opaque: bool) -> None:
    if not _KEY.fullmatch(signed.app_key):
        _malformed("app_key", "must be 1 to 64 characters of A-Za-z0-9_.-")
    if not _NONCE.fullmatch(signed.nonce):
        _malformed("nonce", "must be 16 to 64 characters of A-Za-z0-9_- and not begin with cb-")
    if opaque and len(signed.nonce) != _OPAQUE_NONCE:
        _malformed("nonce", "must have exactly 16 characters while payload is not checked")
    if not _SIGNATURE.fullmatch(signed.signature):
        hint = _HALF_A_SIGNATURE.get(len(signed.signature), "")
        _malformed("signature", f"must be the base64 of 64 hexadecimal digits{hint}")
    if opaque and not _ANY_PAYLOAD.fullmatch(signed.payload):
        _malformed("payload", "must be 1 to 1024 characters, none of them a control character")
    if not opaque and not _DIGEST.fullmatch(signed.payload):
        _malformed("payload", "must be 64 lower-case hexadecimal digits")


def _malformed(name: str, problem: str) -> NoReturn:
    raise Unauthorized(f"the header {name} is malformed: it {problem}")

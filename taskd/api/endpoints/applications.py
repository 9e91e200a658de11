"""``/application/create``."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from http import HTTPStatus
from zoneinfo import ZoneInfo

from taskd.api.authentication import Authenticator
from taskd.api.entrances import Spending, Unspent
from taskd.api.http.body_reader import Reader
from taskd.api.http.request import Request
from taskd.api.wire.body import read_object
from taskd.api.wire.envelope import Answer, Refusal, done, shown
from taskd.api.wire.fields import Fields
from taskd.api.wire.timestamps import wall_time
from taskd.clock import Clock
from taskd.config import Config
from taskd.domain import signing
from taskd.domain.model import App, SuccessRule
from taskd.errors import Denied, InvalidInput
from taskd.service.service import NewApp, Service

logger = logging.getLogger("taskd.api")

MAX_STEP_S = 3600
MAX_RETRY_TOTAL = 10

_FIELDS = frozenset({"appName", "linkUrl", "step", "retryTotal", "remark", "success"})
_MAX_NAME = 100
_MAX_REMARK = 255
_DEFAULT_STEP_S = 5
_DEFAULT_RETRY_TOTAL = 3
_EXAMPLE_NONCE = 16

_CLOSED = (
    "applications are created by the administrator, and [auth] admin_secret is not configured: "
    "set it (`taskd init` writes a configuration that has one), or set [auth] open_registration"
)
_NO_CALLBACKS = "leads to an address that callbacks don't go to"
_NOT_ADMIN = "applications are created with the administrator's key, not with an application's"


class Registration(Spending):
    """The way to create applications: open to the administrator, and to strangers where
    registration is open. A stranger's request has no nonce."""

    def __init__(self, auth: Authenticator, service: Service, *, is_open: bool) -> None:
        super().__init__(auth, service)
        self._open = is_open

    async def identify(self, request: Request) -> None:
        """Note who has signed a request, by its head alone, if it has to be signed.

        Raises:
            Refusal: it will be refused, whatever its body is.
        """
        if self._is_signed(request):
            await self._auth.identify(request)

    async def answer(
        self,
        request: Request,
        endpoint: Callable[[Request, Unspent | None], Awaitable[Answer]],
    ) -> Answer:
        """See `Entrance.answer`."""
        if not self._is_signed(request):
            return await endpoint(request, None)
        caller = await self._auth.authenticate(request)
        if caller.app is not None:
            await self._spend(request, caller)
            hint = "; or leave the signing headers out" if self._open else ""
            raise Refusal(HTTPStatus.FORBIDDEN, _NOT_ADMIN + hint)
        return await self._create(request, caller, lambda nonce: endpoint(request, nonce))

    def _is_signed(self, request: Request) -> bool:
        """Whether a request has to be signed, or claims to be.

        Raises:
            Refusal: nobody may create applications.
        """
        if not self._open and not self._auth.has_admin:
            raise Refusal(HTTPStatus.FORBIDDEN, _CLOSED)
        return not self._open or self._auth.claims_signature(request)


class Applications:
    """The endpoint that creates applications."""

    def __init__(
        self,
        service: Service,
        config: Config,
        clock: Clock,
        reader: Reader,
        *,
        check_link_url: Callable[[str], None],
    ) -> None:
        self._service = service
        self._clock = clock
        self._reader = reader
        self._check_link_url = check_link_url
        self._zone = ZoneInfo(config.server.timezone)

    async def create(self, request: Request, nonce: Unspent | None) -> Answer:
        """Answer ``POST /application/create``; a stranger's request has no nonce."""
        new = await self._reader.read(partial(self._read, stranger=nonce is None), request)
        app = await self._service.create_app(new, None if nonce is None else nonce.take())
        return done(self._credentials(app), "Ok!")

    def _read(self, body: bytes | bytearray, _until: float, *, stranger: bool) -> NewApp:
        fields = Fields(read_object(body), _FIELDS)
        name = fields.text("appName", least=1, most=_MAX_NAME)
        link_url = fields.parsed("linkUrl", partial(self._link_url, stranger=stranger), "")
        step = _DEFAULT_STEP_S
        if fields.has("step"):
            step = fields.integer("step", 0, MAX_STEP_S, unit="seconds")
        retry_total = _DEFAULT_RETRY_TOTAL
        if fields.has("retryTotal"):
            retry_total = fields.integer("retryTotal", 0, MAX_RETRY_TOTAL)
        if fields.has("remark"):
            remark = fields.text("remark", most=_MAX_REMARK)
        else:
            remark = wall_time(self._clock.now_ms(), self._zone)
        success = fields.choice("success", SuccessRule, otherwise=SuccessRule.BODY)
        fields.check()
        return NewApp(
            name=name,
            link_url=link_url,
            step=step,
            retry_total=retry_total,
            remark=remark,
            success=success,
        )

    def _link_url(self, value: object, *, stranger: bool) -> str:
        if not isinstance(value, str):
            raise InvalidInput("linkUrl", f"must be a string, got {shown(value)}")
        try:
            self._check_link_url(value)
        except InvalidInput as error:
            if stranger and isinstance(error.__cause__, Denied):
                logger.debug("a stranger's application is refused: %s", error)
                raise InvalidInput("linkUrl", _NO_CALLBACKS) from error
            raise
        return value

    def _credentials(self, app: App) -> dict[str, str]:
        """The new app's keys, with headers that authenticate an empty request."""
        example = signing.sign_headers(
            app.app_key,
            app.secret_key,
            b"",
            now_ms=self._clock.now_ms(),
            nonce=signing.random_token(_EXAMPLE_NONCE),
        )
        return {
            "nonce": example["nonce"],
            "timestamps": example["timestamps"],
            "signature": example["signature"],
            "appKey": app.app_key,
            "payload": example["payload"],
            "secretKey": app.secret_key,
        }

"""The ways to the endpoints: each has a request authenticated, and its nonce used up.

    request ─► authenticated ─┬─► spent ─► endpoint                      `SpentFirst`
                              └─► endpoint ─► taken by what it writes    `SpentByWrite`
                                     └── refused, or nothing written ─► spent

An endpoint is reached through one of these and no other way (`Route` has no place for one
without), so no endpoint can forget the nonce. Creating an application has its own,
`Registration`, since strangers may do so where registration is open: they have no nonce.
`SpentByWrite` is for endpoints that create: the Store uses the nonce up in the transaction
that creates. The router turns an answer into a 500 if the nonce of its request is not used up.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus

from taskd.api.authentication import Authenticator
from taskd.api.http.request import Caller, Request
from taskd.api.wire.envelope import Answer, Refusal
from taskd.domain.model import App, NonceUse
from taskd.service.service import Service

_NOT_AN_APP = "tasks are reached with their application's key, not with the administrator's"


@dataclass(slots=True)
class Unspent:
    """The nonce of a request, for the write that uses it up."""

    _request: Request
    _nonce: NonceUse

    def take(self) -> NonceUse:
        """The nonce, which counts as used up from now on: hand it to the service's method
        that writes, and to nothing else.

        Raises:
            RuntimeError: it has been taken.
        """
        if self._request.spent:
            raise RuntimeError("a request's nonce is used up once")
        self._request.spent = True
        return self._nonce


@dataclass(slots=True)
class Creating:
    """An application's request that creates."""

    app: App
    nonce: Unspent


class Spending:
    """What all entrances have in common."""

    def __init__(self, auth: Authenticator, service: Service) -> None:
        self._auth = auth
        self._service = service

    async def identify(self, request: Request) -> None:
        """Note who has signed a request, by its head alone. See `Authenticator.identify`."""
        await self._auth.identify(request)

    async def _spend(self, request: Request, caller: Caller) -> None:
        """Use a request's nonce up, unless that was done."""
        if not request.spent:
            request.spent = True
            await self._service.use_nonce(caller.nonce)

    async def _create(
        self, request: Request, caller: Caller, create: Callable[[Unspent], Awaitable[Answer]]
    ) -> Answer:
        """Have an endpoint create, then use the nonce up if the endpoint did not take it."""
        try:
            answer = await create(Unspent(request, caller.nonce))
        except Refusal:
            await self._spend(request, caller)
            raise
        await self._spend(request, caller)
        return answer

    async def _app_of(self, request: Request, caller: Caller) -> App:
        """The application that has signed a request.

        Raises:
            Refusal: the administrator has signed it; its nonce is used up.
        """
        if caller.app is not None:
            return caller.app
        await self._spend(request, caller)
        raise Refusal(HTTPStatus.FORBIDDEN, _NOT_AN_APP)


class SpentFirst(Spending):
    """Uses the nonce of an application's request up before the endpoint gets it."""

    async def answer(
        self, request: Request, endpoint: Callable[[Request, App], Awaitable[Answer]]
    ) -> Answer:
        """See `Entrance.answer`."""
        caller = await self._auth.authenticate(request)
        await self._spend(request, caller)
        return await endpoint(request, await self._app_of(request, caller))


class SpentByWrite(Spending):
    """Lets the endpoint use the nonce of an application's request up with what it creates.
    If the endpoint did not take the nonce, it is used up before the answer."""

    async def answer(
        self, request: Request, endpoint: Callable[[Request, Creating], Awaitable[Answer]]
    ) -> Answer:
        """See `Entrance.answer`."""
        caller = await self._auth.authenticate(request)
        app = await self._app_of(request, caller)

        def create(nonce: Unspent) -> Awaitable[Answer]:
            return endpoint(request, Creating(app, nonce))

        return await self._create(request, caller, create)

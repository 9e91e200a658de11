"""The API as an ASGI application."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from http import HTTPStatus

from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, Scope
from quart import Response, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from taskd.api.applications import Applications
from taskd.api.auth import Authenticator
from taskd.api.batches import Batches
from taskd.api.envelope import Answer, Refusal
from taskd.api.front import Front, unexpected
from taskd.api.health import Health
from taskd.api.reading import Reader
from taskd.api.tasks import Tasks
from taskd.clock import Clock
from taskd.config import Config
from taskd.service import Service

_ALIVE, _READY = "/healthz", "/readyz"
_NOT_FOUND = (
    "there is no such path; the API has /application/create, /task/create, /task/batch, "
    "/task/cancel, /task/detail, /healthz and /readyz"
)


class TaskdApp(QuartTrio):
    """Quart, with the signed endpoints answered before it."""

    front: Front
    auth: Authenticator

    def reconfigure(self, config: Config) -> None:
        """Take what may change while requests are answered."""
        self.front.max_body = config.server.max_body
        self.auth.appoint(config.auth)

    async def asgi_app(
        self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        """See `Quart.asgi_app`."""
        if scope["type"] == "http":
            await self.front.handle(scope, receive, send)
        else:
            await super().asgi_app(scope, receive, send)


def create_app(
    service: Service,
    config: Config,
    clock: Clock,
    *,
    check_link_url: Callable[[str], None],
    draining: Callable[[], bool] = lambda: False,
) -> TaskdApp:
    """Make the API.

    Args:
        service: carries out what is asked.
        config: its sections ``server`` and ``auth`` count.
        clock: judges timestamps, and says what "now" means for a runtime.
        check_link_url: raises `InvalidInput` for a linkUrl that can't be delivered to.
        draining: whether requests are no longer accepted; health is told all the same.
    """
    app = TaskdApp("taskd", static_folder=None)
    app.auth = auth = Authenticator(service, config, clock)
    applications = Applications(service, auth, config, clock, check_link_url)
    reader = Reader()
    tasks = Tasks(service, auth, config, clock, reader)
    batches = Batches(service, auth, config, clock, reader)
    app.front = Front(
        endpoints={
            "/application/create": {"POST": applications.create},
            "/task/create": {"POST": tasks.create},
            "/task/batch": {"POST": batches.create},
            "/task/cancel": {"POST": tasks.cancel},
            "/task/detail": {"GET": tasks.detail, "POST": tasks.detail},
        },
        framework=super(TaskdApp, app).asgi_app,
        views=frozenset({_ALIVE, _READY}),
        draining=draining,
        max_body=config.server.max_body,
    )
    health = Health(service)
    app.url_map.merge_slashes = False
    _add_view(app, _ALIVE, health.alive)
    _add_view(app, _READY, health.ready)
    app.register_error_handler(Exception, _answer_error)
    return app


def _add_view(app: QuartTrio, path: str, ask: Callable[[], Awaitable[Answer]]) -> None:
    async def view() -> Response:
        return _response(await ask())

    app.add_url_rule(
        path, endpoint=path, view_func=view, methods=["GET"], provide_automatic_options=False
    )


async def _answer_error(error: Exception) -> Response:
    if isinstance(error, Refusal):
        return _response(error.answer)
    if isinstance(error, MethodNotAllowed):
        # Werkzeug adds HEAD to every GET; it is refused before it comes here.
        allowed = ", ".join(sorted({*(error.valid_methods or ())} - {"HEAD"}))
        return _response(
            Refusal(
                HTTPStatus.METHOD_NOT_ALLOWED,
                f"{request.method[:16]} is not answered here, only {allowed}",
                headers=((b"allow", allowed.encode()),),
            ).answer
        )
    if isinstance(error, HTTPException):
        status = error.code or HTTPStatus.NOT_FOUND
        msg = _NOT_FOUND if status == HTTPStatus.NOT_FOUND else error.name
        return _response(Refusal(status, msg).answer)
    return _response(unexpected(error, request.scope["state"]["request_id"]))


def _response(answer: Answer) -> Response:
    headers = {name.decode(): value.decode() for name, value in answer.headers}
    return Response(answer.encode(), answer.status, headers, content_type="application/json")

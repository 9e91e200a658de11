"""The API's parts, put together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from taskd.api.authentication import Authenticator
from taskd.api.endpoints.applications import Applications, Registration
from taskd.api.endpoints.batches import Batches
from taskd.api.endpoints.health import Health
from taskd.api.endpoints.tasks import Tasks
from taskd.api.entrances import SpentByWrite, SpentFirst
from taskd.api.http.access_log import AccessLog
from taskd.api.http.body_reader import Reader
from taskd.api.http.pages import Pages
from taskd.api.http.router import Route, Router
from taskd.clock import Clock
from taskd.config import Config
from taskd.service.service import Service


@dataclass(frozen=True, slots=True)
class Api:
    """What answers requests."""

    router: Router
    auth: Authenticator

    def reconfigure(self, config: Config) -> None:
        """Take what may change while requests are answered."""
        self.router.max_body = config.server.max_body
        self.auth.appoint(config.auth)


def create_api(
    service: Service,
    config: Config,
    clock: Clock,
    *,
    check_link_url: Callable[[str], None],
    draining: Callable[[], bool] = lambda: False,
) -> Api:
    """Make the API.

    Args:
        service: carries out what is asked.
        config: of which the sections ``server`` and ``auth`` are used.
        clock: judges timestamps, and says what "now" means for a runtime.
        check_link_url: raises `InvalidInput` for a linkUrl that can't be delivered to.
        draining: whether requests are no longer accepted; pages on health are answered all
            the same.
    """
    reader = Reader()
    auth = Authenticator(service, config, clock, reader)
    applications = Applications(service, config, clock, reader, check_link_url=check_link_url)
    registration = Registration(auth, service, is_open=config.auth.open_registration)
    tasks = Tasks(service, config, clock, reader)
    batches = Batches(service, config, clock, reader)
    creating, others = SpentByWrite(auth, service), SpentFirst(auth, service)
    health = Health(service)
    log = AccessLog()
    router = Router(
        routes={
            "/application/create": Route({"POST": applications.create}, registration),
            "/task/create": Route({"POST": tasks.create}, creating),
            "/task/batch": Route({"POST": batches.create}, creating),
            "/task/cancel": Route({"POST": tasks.cancel}, others),
            "/task/detail": Route({"GET": tasks.detail, "POST": tasks.detail}, others),
        },
        pages=Pages(
            {"/healthz": health.alive, "/readyz": health.ready},
            secure=config.server.tls_cert is not None,
            log=log,
        ),
        draining=draining,
        max_body=config.server.max_body,
        log=log,
    )
    return Api(router, auth)

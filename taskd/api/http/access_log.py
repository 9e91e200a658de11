"""The API's lines in the log: on requests, and on bytes that are no request.

For each status, a client that is refused again and again gets `LINES` lines in `PERIOD_S`,
and one more that says how many were left out, so that strangers can't fill the disk. Signed
requests count by their app_key, all others by their address.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus

import trio

from taskd.api.http.addresses import origin_of
from taskd.api.http.request import Request
from taskd.api.wire.envelope import Answer, Refusal
from taskd.runtime.logs import log_event

logger = logging.getLogger("taskd.api")

SLOW_S = 1.0
"""A request that takes longer is logged even where all went well."""

PERIOD_S = 60.0
LINES = 10
"""Lines of one kind that one client may cause in a period."""

MAX_COUNTED = 1000
"""Pairs of client and kind that are counted apart. Beyond, each kind has one count for all
other clients."""

_PATH_CHARACTERS = 200
_REASON_CHARACTERS = 300
_OF_THE_CLIENT = re.compile(r", got .*|(?<=the number )\S+", re.DOTALL)
"""The part of a refusal that repeats the request's body."""


@dataclass(slots=True)
class _Count:
    until: float
    left: int = LINES
    held_back: int = 0


class Ration:
    """Bounds how many lines each client may cause.

    Args:
        now: a monotonic clock, in seconds.
    """

    def __init__(self, now: Callable[[], float] = trio.current_time) -> None:
        self._now = now
        self._counts: dict[tuple[str | None, str], _Count] = {}
        """By client and kind, the oldest first."""

    def admits(self, client: str, kind: str) -> bool:
        """Whether a line of a kind may be logged now; counts it."""
        self.settle()
        count = self._counts.get((client, kind))
        if count is None:
            # Clients that are too many to be counted apart share one count for each kind.
            key = (client if len(self._counts) < MAX_COUNTED else None, kind)
            count = self._counts.setdefault(key, _Count(self._now() + PERIOD_S))
        if count.left:
            count.left -= 1
            return True
        count.held_back += 1
        return False

    def settle(self, *, all_of_them: bool = False) -> None:
        """Log how many lines were held back in the periods that are over, or in all."""
        now = self._now()
        while self._counts:
            (client, kind), count = next(iter(self._counts.items()))
            if count.until > now and not all_of_them:
                return
            del self._counts[client, kind]
            if count.held_back:
                log_event(
                    logger,
                    logging.INFO,
                    "more like these were not logged",
                    like=kind,
                    client=client or "many",
                    number=count.held_back,
                    seconds=PERIOD_S,
                )


class AccessLog:
    """Logs requests."""

    def __init__(self) -> None:
        self.ration = Ration()

    def request(self, request: Request, answer: Answer, began: float) -> None:
        """Log what became of a request that began at this `time.perf_counter`, without its
        query, body or signature."""
        seconds = time.perf_counter() - began
        well = answer.status == HTTPStatus.OK and seconds < SLOW_S
        level = logging.DEBUG if well else logging.INFO
        if not logger.isEnabledFor(level):
            return
        if not well and not self.ration.admits(_client_of(request), f"request {answer.status}"):
            return
        log_event(
            logger,
            level,
            "request",
            request_id=request.id,
            client=request.client,
            method=request.method,
            path=request.path[:_PATH_CHARACTERS],
            status=answer.status,
            code=answer.code,
            app_key=request.app_key,
            app_name=_app_name(request),
            ms=round(seconds * 1000, 1),
            reason=None if answer.status == HTTPStatus.OK else _reason(answer),
        )

    def unreadable(self, client: str, name: str, answer: Answer) -> None:
        """Log that a client sent no valid request.

        Args:
            client: its address.
            name: the answer's request id.
            answer: what the client was told.
        """
        if self.ration.admits(origin_of(client), "unreadable request"):
            log_event(
                logger,
                logging.INFO,
                "unreadable request",
                request_id=name,
                client=client,
                status=answer.status,
                reason=answer.msg,
            )

    def unread(self, client: str) -> None:
        """Log that a client does not read its answers."""
        message = "a client took too long to read its answer"
        if self.ration.admits(origin_of(client), message):
            log_event(logger, logging.INFO, message, client=client)

    def unavailable(self, what: str, error: Exception, request: Request) -> None:
        """Log that a request fails because the store or the bus is unavailable."""
        message = f"{what} unavailable"
        if self.ration.admits(_client_of(request), message):
            log_event(logger, logging.WARNING, message, error=str(error), request_id=request.id)

    def unexpected(self, error: Exception, request: Request) -> Answer:
        """Log an error that is a bug of taskd's; returns the answer, which names the
        request id."""
        if self.ration.admits(_client_of(request), "unexpected error"):
            log_event(logger, logging.ERROR, "unexpected error", error=error, request_id=request.id)
        return Refusal(
            HTTPStatus.INTERNAL_SERVER_ERROR,
            f"an unexpected error; the daemon's log has it under the request id {request.id}",
        ).answer

    def failed(self, error: Exception, client: str) -> None:
        """Log that a bug has ended a connection."""
        if self.ration.admits(origin_of(client), "connection failed"):
            log_event(logger, logging.WARNING, "connection failed", error=error, client=client)


def _client_of(request: Request) -> str:
    """The client that a request's lines count for."""
    if request.caller is not None:
        return f"app_key {request.app_key}"
    return origin_of(request.client)


def _app_name(request: Request) -> str | None:
    caller = request.caller
    return caller.app.name if caller is not None and caller.app is not None else None


def _reason(answer: Answer) -> str:
    """Why a request was refused, without what the message repeats of its body."""
    return _OF_THE_CLIENT.sub("", answer.msg)[:_REASON_CHARACTERS]

"""``/task/batch``: many tasks in one request and one transaction."""

from __future__ import annotations

import time
from collections.abc import Sequence
from http import HTTPStatus
from zoneinfo import ZoneInfo

from taskd.api.endpoints.tasks import DUPLICATE, kept, parse_task
from taskd.api.entrances import Creating
from taskd.api.http.body_reader import Reader, TakesLong
from taskd.api.http.request import Request
from taskd.api.wire.body import read_object
from taskd.api.wire.envelope import Answer, InvalidFields, done
from taskd.api.wire.fields import Fields
from taskd.api.wire.strict_json import MAX_ITEMS
from taskd.clock import Clock
from taskd.config import Config
from taskd.domain.model import App, ExistingTask, NewTask
from taskd.domain.record import record
from taskd.errors import BatchRefused
from taskd.service.service import Service

MAX_BATCH = MAX_ITEMS
"""Tasks of one request."""

_TASKS = "tasks"
_FIELDS = frozenset({_TASKS, "atomic"})
_INVALID = int(HTTPStatus.UNPROCESSABLE_ENTITY)
_REFUSED = 1


@record
class _Batch:
    """A batch whose own fields are right; its items may break rules."""

    items: Sequence[NewTask | str]
    """In the request's order; a sentence on what is wrong in place of each that breaks a
    rule."""
    tasks: Sequence[NewTask]
    """The items that break none."""
    atomic: bool


class Batches:
    """The endpoint that takes many tasks at once."""

    def __init__(self, service: Service, config: Config, clock: Clock, reader: Reader) -> None:
        self._service = service
        self._clock = clock
        self._zone = ZoneInfo(config.server.timezone)
        self._reader = reader

    async def create(self, request: Request, creating: Creating) -> Answer:
        """Answer ``POST /task/batch``, once its tasks are durable."""
        app = creating.app

        def read(body: bytes | bytearray, until: float) -> _Batch:
            return self._parse(body, app, until)

        batch = await self._reader.read(read, request)
        invalid = len(batch.tasks) < len(batch.items)
        if not batch.tasks or (batch.atomic and invalid):
            given: Sequence[int | ExistingTask] = ()
        else:
            try:
                given = await self._service.submit_batch(
                    app, batch.tasks, creating.nonce.take(), atomic=batch.atomic
                )
            except BatchRefused as error:
                return _refuse_all(error.position, _taken(error.existing))
        if batch.atomic and invalid:
            index, problem = _first_invalid(batch.items)
            return _refuse_all(index, _invalid(problem))
        return done({"results": _results(batch.items, given)})

    def _parse(self, body: bytes | bytearray, app: App, until: float) -> _Batch:
        fields = Fields(read_object(body, _TASKS), _FIELDS)
        values = fields.array(_TASKS, most=MAX_BATCH)
        atomic = fields.flag("atomic", otherwise=False)
        fields.check()
        now = self._clock.now_ms()
        items: list[NewTask | str] = []
        for value in values:
            items.append(self._parse_item(value, app, now))
            if time.perf_counter() > until:
                raise TakesLong
        return _Batch(items, [item for item in items if isinstance(item, NewTask)], atomic)

    def _parse_item(self, value: object, app: App, now: int) -> NewTask | str:
        if type(value) is not dict:
            return str(value)  # the `InvalidInput` that says what is wrong with it
        try:
            return parse_task(value, app_id=app.id, now=now, zone=self._zone)
        except InvalidFields as refusal:
            return refusal.answer.msg


def _first_invalid(items: Sequence[NewTask | str]) -> tuple[int, str]:
    return next((index, item) for index, item in enumerate(items) if isinstance(item, str))


def _results(
    items: Sequence[NewTask | str], given: Sequence[int | ExistingTask]
) -> list[dict[str, object]]:
    told = iter(given)
    results: list[dict[str, object]] = []
    for item in items:
        if isinstance(item, str):
            results.append(_invalid(item))
        elif isinstance(task_id := next(told), ExistingTask):
            results.append(_taken(task_id))
        else:
            results.append(kept(item, task_id))
    return results


def _invalid(problem: str) -> dict[str, object]:
    """The result of an item that breaks a rule."""
    return {"code": _INVALID, "msg": problem}


def _taken(existing: ExistingTask | None) -> dict[str, object]:
    """The result of an item whose taskNo is taken: by the task ``existing``, or, if that is
    None, by an earlier item of the batch, which was not added either."""
    result: dict[str, object] = {"code": _REFUSED, "msg": DUPLICATE}
    if existing is not None:
        result["existing"] = {"taskId": existing.id, "state": existing.state}
    return result


def _refuse_all(index: int, result: dict[str, object]) -> Answer:
    """The answer to an atomic batch where one item keeps all of them from being added."""
    status = int(HTTPStatus.CONFLICT)
    return Answer(status, status, f"{_TASKS}[{index}]: {result['msg']}", {"index": index, **result})

"""``/task/create``, ``/task/cancel`` and ``/task/detail``."""

from __future__ import annotations

import json
from zoneinfo import ZoneInfo

from taskd.api.endpoints.applications import MAX_RETRY_TOTAL, MAX_STEP_S
from taskd.api.endpoints.task_view import UNKNOWN, describe
from taskd.api.entrances import Creating
from taskd.api.http.body_reader import Reader
from taskd.api.http.request import Request
from taskd.api.wire.body import read_object
from taskd.api.wire.envelope import Answer, done, refused
from taskd.api.wire.fields import Fields
from taskd.api.wire.query import parse_query
from taskd.api.wire.strict_json import NotJSON, check_survives, check_text
from taskd.api.wire.timestamps import parse_delay, parse_runtime
from taskd.clock import Clock, iso_utc
from taskd.config import Config
from taskd.domain.model import MAX_COROUTINE_ID, App, ExistingTask, NewTask, TaskState
from taskd.errors import DuplicateTaskNo, InvalidInput
from taskd.service.service import Service

MAX_TIMEOUT_MS = 3_600_000

_CREATE = frozenset(
    {"taskNo", "name", "content", "timeout", "runtime", "delay", "step", "retryTotal"}
)
_WAYS = ("coroutine_id", "taskId", "taskNo")
"""The ways to name a task."""
_NAMED = frozenset(_WAYS)
_NUMBERS = frozenset({"coroutine_id", "taskId"})
_ANCESTORS = frozenset({"id", "service_id"})
_MAX_TASK_NO = 64
_MAX_NAME = 64

DUPLICATE = "请勿重复提交!"
"""The application has used the taskNo already."""

EXISTING_HEADER = b"taskd-existing"
"""Names the task that has the taskNo of a create: its id and its state."""

_UNKNOWN_COROUTINE = refused("Unknown!")

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


class Tasks:
    """The endpoints of an application's tasks."""

    def __init__(self, service: Service, config: Config, clock: Clock, reader: Reader) -> None:
        self._service = service
        self._clock = clock
        self._zone = ZoneInfo(config.server.timezone)
        self._reader = reader

    async def create(self, request: Request, creating: Creating) -> Answer:
        """Answer ``POST /task/create``, once the task is durable."""
        task = await self._read_task(request, creating.app)
        try:
            task_id = await self._service.submit(creating.app, task, creating.nonce.take())
        except DuplicateTaskNo as error:
            return refused(DUPLICATE, headers=((EXISTING_HEADER, _existing(error.existing)),))
        return done(kept(task, task_id))

    async def _read_task(self, request: Request, app: App) -> NewTask:
        def read(body: bytes | bytearray, _until: float) -> NewTask:
            values = read_object(body)
            return parse_task(values, app_id=app.id, now=self._clock.now_ms(), zone=self._zone)

        return await self._reader.read(read, request)

    async def cancel(self, request: Request, app: App) -> Answer:
        """Answer ``POST /task/cancel``, once the cancellation is durable."""
        task_id, task_no = await self._reader.read(_read_which, request)
        cancelled = await self._service.cancel(app, task_id=task_id, task_no=task_no)
        if cancelled is None:
            return _UNKNOWN_COROUTINE
        return done(
            {
                "coroutine_id": cancelled.task_id,
                "state": TaskState.CANCELLED,
                "delivery": cancelled.certainty,
            }
        )

    async def detail(self, request: Request, app: App) -> Answer:
        """Answer ``GET`` and ``POST /task/detail``."""
        if request.method == "GET":
            task_id, task_no = _which(parse_query(request.query, numbers=_NUMBERS))
        else:
            task_id, task_no = await self._reader.read(_read_which, request)
        view = await self._service.detail(app, task_id=task_id, task_no=task_no)
        return done(UNKNOWN if view is None else describe(view))


def kept(task: NewTask, task_id: int) -> dict[str, object]:
    """The answer's data on a task that was stored under this id."""
    return {"taskId": task_id, "coroutine_id": task_id, "dueAt": iso_utc(task.due_at)}


def parse_task(values: dict[str, object], *, app_id: int, now: int, zone: ZoneInfo) -> NewTask:
    """The task that the fields of a create describe.

    Args:
        values: as `read_object` gives them.
        app_id: of the application that it will belong to.
        now: milliseconds. A delay counts from it, and a task whose runtime has passed or is
            absent is due then.
        zone: the timezone of a runtime that has no offset.

    Raises:
        InvalidFields: they break their rules.
    """
    fields = Fields(values, _CREATE)
    task_no = fields.text("taskNo", least=1, most=_MAX_TASK_NO, printable=True)
    name = fields.text("name", least=1, most=_MAX_NAME)
    content = fields.parsed("content", parse_content, b"")
    timeout_ms = fields.integer("timeout", 1, MAX_TIMEOUT_MS, unit="milliseconds")
    runtime = _runtime(fields, now, zone)
    step = retry_total = None
    if fields.has("step"):
        step = fields.integer("step", 0, MAX_STEP_S, unit="seconds")
    if fields.has("retryTotal"):
        retry_total = fields.integer("retryTotal", 0, MAX_RETRY_TOTAL)
    fields.check()
    return NewTask(
        app_id=app_id,
        task_no=task_no,
        name=name,
        content=content,
        timeout_ms=timeout_ms,
        due_at=max(runtime, now),
        runtime=runtime if runtime < now else None,
        step=step,
        retry_total=retry_total,
        created_at=now,
    )


def _runtime(fields: Fields, now: int, zone: ZoneInfo) -> int:
    """The moment that a create asks for, in milliseconds."""
    if fields.has("delay"):
        if fields.has("runtime"):
            fields.note("delay", "must not be given together with runtime")
        return fields.parsed("delay", lambda value: parse_delay(value, now), now)
    if fields.has("runtime"):
        return fields.parsed("runtime", lambda value: parse_runtime(value, zone), now)
    return now


def parse_content(value: object) -> bytes:
    """The JSON text that the callback will carry.

    A string is that text already, byte for byte; another value is serialised.

    Raises:
        InvalidInput: it holds no JSON text, is null, or has a number that would
            not survive.
    """
    if isinstance(value, str):
        try:
            return check_text(value)
        except NotJSON as error:
            raise InvalidInput(
                "content",
                f"must be a string that holds JSON text, or another JSON value but null: {error}",
            ) from error
    if value is None:
        raise InvalidInput("content", "must not be null")
    try:
        check_survives(value)
    except ValueError as error:
        raise InvalidInput("content", str(error)) from error
    return _encode(value).encode()


def _existing(task: ExistingTask) -> bytes:
    return f"{task.id} {task.state}".encode()


def _read_which(body: bytes | bytearray, _until: float) -> tuple[int | None, str | None]:
    return _which(read_object(body))


def _which(values: dict[str, object]) -> tuple[int | None, str | None]:
    """The task id or the taskNo that a cancel or a detail is about: exactly one."""
    fields = Fields(values, _NAMED, ignored=_ANCESTORS)
    given = [name for name in _WAYS if fields.has(name)]
    for name in given[1:]:
        fields.note(name, f"must not be given together with {given[0]}")
    task_id = task_no = None
    if given[:1] == ["taskNo"]:
        task_no = fields.text("taskNo", least=1, most=_MAX_TASK_NO, printable=True)
    elif given:
        task_id = fields.integer(given[0], 1, MAX_COROUTINE_ID)
    else:
        fields.note(_WAYS[0], f"is required, or {_WAYS[1]} or {_WAYS[2]} in its place")
    fields.check()
    return task_id, task_no

"""Moves applications and unfinished tasks from one Store to another, by a file.

The file is lines of JSON: a header, the applications, the tasks by id, and a line that counts
them, so that a file that was cut is noticed. It holds the applications' secret keys. Ids stay
the same, and so do coroutine_ids; ids that were ever given are not given again.

An import may be run again after it was interrupted: it passes over entries that are in the
Store as they are in the file, and refuses entries that clash with the Store's.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, NoReturn

from taskd.clock import iso_utc
from taskd.domain.model import App, Attempt, Outcome, StoredTask, SuccessRule, TaskState
from taskd.domain.record import record
from taskd.errors import TaskdError, TransferClash
from taskd.ports.store import Archive
from taskd.runtime.json_depth import load_json

FORMAT = "taskd-export"
VERSION = 2
"""Since version 2, an application has ``success``."""

_KNOWN_VERSIONS = (1, VERSION)

_BATCH = 500
_MAX_ID = 2**53 - 1
_MAX_TIME = 253_402_300_799_999
_WAITING = {TaskState.SCHEDULED.value, TaskState.RETRYING.value}


class TransferError(TaskdError):
    """The file is no whole export, or it clashes with the Store's entries. Batches before the
    line that is named are kept."""


@dataclass(frozen=True, slots=True)
class Counts:
    """How many entries were exported, or imported."""

    apps: int
    tasks: int


async def export(archive: Archive, *, now: int) -> AsyncIterator[str]:
    """Yield the lines of an export, without line ends.

    Args:
        archive: no node works on it, and no lease is held.
        now: the moment of the export, for the header.

    Raises:
        StoreUnavailable: the Store can't be read; the last line is then missing.
    """
    yield _line(
        format=FORMAT,
        version=VERSION,
        exportedAt=iso_utc(now),
        highestTaskId=await archive.highest_task_id(),
    )
    apps = tasks = 0
    last = 0
    while batch := await archive.apps_after(last, limit=_BATCH):
        for app in batch:
            yield _line(app=asdict(app))
        apps += len(batch)
        last = batch[-1].id
    last = 0
    while found := await archive.tasks_after(last, limit=_BATCH):
        for task in found:
            yield _line(task=asdict(task) | {"content": task.content.decode()})
        tasks += len(found)
        last = found[-1].id
    yield _line(apps=apps, tasks=tasks)


async def import_lines(archive: Archive, lines: Iterable[str]) -> Counts:
    """Put an export's entries into a Store.

    Args:
        archive: no node works on it.
        lines: the file's.

    Raises:
        TransferError: a line can't be used, or clashes.
        StoreUnavailable: the Store can't be written; run the import again later.
    """
    numbered = iter(enumerate(lines, start=1))
    highest = _header(numbered)
    apps = tasks = 0
    for batch in _batches(_entries(numbered)):
        first = batch[0].number
        try:
            await archive.put_apps([entry.value for entry in batch if isinstance(entry.value, App)])
            await archive.put_tasks(
                [entry.value for entry in batch if isinstance(entry.value, StoredTask)]
            )
        except TransferClash as error:
            raise TransferError(f"from line {first} on: {error}") from error
        for entry in batch:
            if isinstance(entry.value, App):
                apps += 1
            elif isinstance(entry.value, StoredTask):
                tasks += 1
                highest = max(highest, entry.value.id)
            elif entry.value != Counts(apps, tasks):
                raise TransferError(
                    f"line {entry.number}: counts {entry.value.apps} applications and "
                    f"{entry.value.tasks} tasks, but {apps} and {tasks} came before it"
                )
    await archive.put_highest_task_id(highest)
    return Counts(apps, tasks)


@record
class _Entry:
    number: int
    value: App | StoredTask | Counts


def _line(**values: object) -> str:
    return json.dumps(values, ensure_ascii=False)


def _header(numbered: Iterator[tuple[int, str]]) -> int:
    """Check the first line; returns the highest task id ever given."""
    read = _Reader(1, {})
    if (first := next(numbered, None)) is not None:
        read = _Reader(1, _object(*first))
    if read.values.get("format") != FORMAT:
        raise TransferError("line 1: this is no export of taskd's")
    if read.values.get("version") not in _KNOWN_VERSIONS:
        raise TransferError(
            f"line 1: version {read.values.get('version')!r} of the format is not known here: "
            "use the taskd that wrote it, or a newer one"
        )
    return read.integer("highestTaskId", 0, _MAX_ID)


def _entries(numbered: Iterator[tuple[int, str]]) -> Iterator[_Entry]:
    for number, line in numbered:
        values = _object(number, line)
        if values.keys() == {"app"}:
            yield _Entry(number, _app(_Reader(number, values["app"])))
        elif values.keys() == {"task"}:
            yield _Entry(number, _task(_Reader(number, values["task"])))
        elif values.keys() == {"apps", "tasks"}:
            read = _Reader(number, values)
            counts = Counts(read.integer("apps", 0, _MAX_ID), read.integer("tasks", 0, _MAX_ID))
            yield _Entry(number, counts)
            if (more := next(numbered, None)) is not None:
                raise TransferError(f"line {more[0]}: comes after the last one")
            return
        else:
            raise TransferError(f"line {number}: is neither an application nor a task")
    raise TransferError("the file was cut: its last line, which counts the others, is missing")


def _batches(entries: Iterator[_Entry]) -> Iterator[list[_Entry]]:
    while batch := list(islice(entries, _BATCH)):
        yield batch


def _object(number: int, line: str) -> dict[str, Any]:
    try:
        values = load_json(line)
    except ValueError as error:
        raise TransferError(f"line {number}: is not JSON") from error
    if not isinstance(values, dict):
        raise TransferError(f"line {number}: is no JSON object")
    return values


class _Reader:
    """Takes values out of a line's object, and checks each by its rule."""

    def __init__(self, number: int, values: object) -> None:
        self.number = number
        self.values: dict[str, Any] = values if isinstance(values, dict) else {}

    def integer(self, name: str, low: int, high: int) -> int:
        value = self.values.get(name)
        if type(value) is not int or not low <= value <= high:
            self._refuse(name, f"must be an integer from {low} to {high}")
        return int(value)

    def maybe_integer(self, name: str, low: int, high: int) -> int | None:
        return None if self.values.get(name) is None else self.integer(name, low, high)

    def text(self, name: str, most: int, *, least: int = 0) -> str:
        value = self.values.get(name)
        if not isinstance(value, str) or not least <= len(value) <= most or not _is_utf8(value):
            self._refuse(name, f"must be a string of {least} to {most} characters")
        return str(value)

    def maybe_text(self, name: str, most: int) -> str | None:
        return None if self.values.get(name) is None else self.text(name, most)

    def time(self, name: str) -> int:
        return self.integer(name, 0, _MAX_TIME)

    def word(self, name: str, known: Iterable[str], otherwise: str | None = None) -> str:
        value = self.values.get(name, otherwise)
        if not isinstance(value, str) or value not in set(known):
            self._refuse(name, "has an unknown value")
        return str(value)

    def flag(self, name: str) -> bool:
        value = self.values.get(name)
        if not isinstance(value, bool):
            self._refuse(name, "must be true or false")
        return bool(value)

    def _refuse(self, name: str, problem: str) -> NoReturn:
        raise TransferError(f"line {self.number}: {name} {problem}")


def _app(read: _Reader) -> App:
    return App(
        id=read.integer("id", 1, _MAX_ID),
        app_key=read.text("app_key", 128, least=1),
        secret_key=read.text("secret_key", 1024, least=1),
        name=read.text("name", 1024),
        link_url=read.text("link_url", 4096, least=1),
        step=read.integer("step", 0, 86_400 * 365),
        retry_total=read.integer("retry_total", 0, 1_000_000),
        remark=read.text("remark", 65_536),
        created_at=read.time("created_at"),
        success=SuccessRule(read.word("success", set(SuccessRule), SuccessRule.BODY)),
    )


def _task(read: _Reader) -> StoredTask:
    content = read.values.get("content")
    if not isinstance(content, str) or not _is_utf8(content):
        raise TransferError(f"line {read.number}: content must be a string")
    attempts = read.values.get("attempts")
    if not isinstance(attempts, list):
        raise TransferError(f"line {read.number}: attempts must be a list")
    return StoredTask(
        id=read.integer("id", 1, _MAX_ID),
        app_id=read.integer("app_id", 1, _MAX_ID),
        state=TaskState(read.word("state", _WAITING)),
        due_at=read.time("due_at"),
        token=read.integer("token", 0, _MAX_ID),
        attempt=read.integer("attempt", 0, _MAX_ID),
        failures=read.integer("failures", 0, _MAX_ID),
        abandoned=read.integer("abandoned", 0, _MAX_ID),
        sent=read.flag("sent"),
        timeout_ms=read.integer("timeout_ms", 1, 86_400_000),
        step=read.maybe_integer("step", 0, 86_400 * 365),
        retry_total=read.maybe_integer("retry_total", 0, 1_000_000),
        runtime=read.time("runtime"),
        created_at=read.time("created_at"),
        task_no=read.text("task_no", 1024, least=1),
        name=read.text("name", 1024),
        content=content.encode(),
        attempts=tuple(_attempt(_Reader(read.number, attempt)) for attempt in attempts),
    )


def _attempt(read: _Reader) -> Attempt:
    return Attempt(
        attempt=read.integer("attempt", 1, _MAX_ID),
        started_at=read.time("started_at"),
        ended_at=read.time("ended_at"),
        outcome=Outcome(read.word("outcome", {outcome.value for outcome in Outcome})),
        http_status=read.maybe_integer("http_status", 0, 999),
        response=read.maybe_text("response", 65_536),
        error=read.maybe_text("error", 65_536),
    )


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True

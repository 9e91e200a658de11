"""Writes, lane by lane: what waits in one becomes one transaction.

```
 execute(operation, argument) ──►  queue ──► take all that waits (up to BATCH)
   waits, cancellable                        batch's number · each operation, once,
                                             with all its arguments · COMMIT
   result or error            ◄── woken, all of the batch at once
```

A lane is a task of its own with a connection from the pool, so a caller that is
cancelled never ends a statement in its middle: it leaves before its batch begins,
or the batch is carried out without anybody to tell.

Failure. Before COMMIT was sent, whatever breaks takes the whole transaction with it.
A deadlock: the batch is repeated, after a while drawn at random, and then each of it
alone. A lock that was not given in time: each of it alone. A broken connection: once
more on a new one. A value that the server refuses: each of it alone, so that only the
culprit fails. All else: `StoreUnavailable` for all of the batch; the next one tries
afresh.

A COMMIT that was not answered. Every transaction writes its number into the lane's row
of ``batches``. That row is locked until the transaction is over, one way or the other;
so a new connection that gets the lock reads there what became of it. Only if that
can't be read for `FIND_OUT_S` either, the callers are told that nobody knows.
"""

from __future__ import annotations

import logging
import random
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import trio

from taskd.errors import StoreError, StoreUnavailable
from taskd.stores.mysql.connection import MySQLConnection
from taskd.stores.mysql.errors import Conflict, ConnectionLost, Refused
from taskd.stores.mysql.pool import Pool

logger = logging.getLogger("taskd.stores.mysql")

BATCH = 500
"""Calls that share a transaction at most."""

_WEIGHT = 8 * 1_048_576
"""Bytes of content that share a transaction, about."""

_REPEATS = 4
_PAUSE_S = 0.02
GIVE_UP_S = 15.0
"""What of a batch was not tried after so long is not tried at all."""

FIND_OUT_S = 20.0
_FIND_OUT_PAUSE_S = 0.2

_NUMBER = (
    "INSERT INTO batches (lane, number, seen_at) VALUES ('{lane}', {number}, UNIX_TIMESTAMP()) "
    "ON DUPLICATE KEY UPDATE number = {number}, seen_at = UNIX_TIMESTAMP()"
)
_WHICH_NUMBER = "SELECT number FROM batches WHERE lane = '{lane}' FOR UPDATE"

A = TypeVar("A")
R = TypeVar("R")


_PENDING: Any = object()


def _light(_argument: object) -> int:
    return 0


@dataclass(frozen=True, slots=True)
class Operation(Generic[A, R]):
    """A kind of write.

    ``run`` is awaited in a transaction with the arguments of all callers and answers
    as many results, in order; an error among them is raised at its caller, and must
    have written nothing. It may be run again in another transaction, and keeps
    nothing of the one before. ``weigh`` tells an argument's bytes.
    """

    name: str
    run: Callable[[MySQLConnection, Sequence[A]], Awaitable[Sequence[R | StoreError]]]
    weigh: Callable[[A], int] = _light


@dataclass(slots=True, eq=False)
class _Call:
    operation: Operation[Any, Any]
    argument: Any
    task: trio.lowlevel.Task
    cancelled: bool = False
    result: Any = _PENDING


@dataclass(frozen=True, kw_only=True, slots=True)
class LaneStatistics:
    """What a lane has done since it was started."""

    calls: int
    """Calls that were carried out, refused ones included."""
    batches: int
    """Transactions that were committed."""
    repeats: int
    """Transactions that were repeated, after a conflict or a broken connection."""
    failures: int
    """Times that callers were told `StoreUnavailable`."""
    busy_s: float
    """Seconds spent on transactions, waiting for the server included."""
    waiting: int
    """Calls in the queue now."""


class Lane:
    """See the module.

    Args:
        name: for the log.
        pool: of connections without autocommit.
    """

    def __init__(self, name: str, pool: Pool) -> None:
        self._name = name
        self._pool = pool
        self._id = secrets.token_hex(12)
        self._number = 0
        self._queue: deque[_Call] = deque()
        self._arrival = trio.Event()
        self._closing = False
        self._calls = self._batches = self._repeats = self._failures = 0
        self._busy_s = 0.0

    async def execute(self, operation: Operation[A, R], argument: A) -> R:
        """Carry out one write and wait until it is durable.

        Raises:
            StoreError: what the operation answered.
            StoreUnavailable: the database failed or is closed. Nothing was written,
                unless its message says that nobody knows.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._closing:
            raise StoreUnavailable("the store is closed")
        call = _Call(operation, argument, trio.lowlevel.current_task())
        self._queue.append(call)
        self._arrival.set()

        def abandon(_raise_cancel: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
            call.cancelled = True
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abandon)
        result = call.result
        if isinstance(result, Exception):
            try:
                raise result
            finally:
                del result, call  # the traceback would keep itself alive
        written: R = result
        return written

    def close(self) -> None:
        """Take no more calls; `run` returns once those that wait are done."""
        self._closing = True
        self._arrival.set()

    def statistics(self) -> LaneStatistics:
        """What it has done, and how much waits."""
        return LaneStatistics(
            calls=self._calls,
            batches=self._batches,
            repeats=self._repeats,
            failures=self._failures,
            busy_s=self._busy_s,
            waiting=len(self._queue),
        )

    async def run(self) -> None:
        """Carry out what is asked for, until closed. Cancelled, it tells those who
        wait that it was closed."""
        try:
            while True:
                while not self._queue:
                    if self._closing:
                        return
                    self._arrival = trio.Event()
                    await self._arrival.wait()
                await self._carry_out(self._collect())
        finally:
            self._closing = True
            left = list(self._queue)
            self._queue.clear()
            _fail(left, StoreUnavailable("the store is closed"))
            _wake(left)

    def _collect(self) -> list[_Call]:
        batch: list[_Call] = []
        weight = 0
        while self._queue and len(batch) < BATCH and weight < _WEIGHT:
            call = self._queue.popleft()
            if not call.cancelled:
                batch.append(call)
                weight += call.operation.weigh(call.argument)
        return batch

    async def _carry_out(self, calls: list[_Call]) -> None:
        started = trio.current_time()
        try:
            await self._write(calls)
        except Exception as error:
            logger.exception("the store's %s lane failed", self._name)
            _fail(calls, StoreUnavailable(f"the store failed: {error!r}"))
        finally:
            self._busy_s += trio.current_time() - started
            _wake(calls)

    async def _write(self, calls: list[_Call]) -> None:
        give_up_at = trio.current_time() + GIVE_UP_S
        groups = [calls] if calls else []
        while groups:
            group = groups.pop()
            try:
                await self._repeatedly(group, give_up_at)
            except StoreUnavailable as error:
                failed = [*group, *(call for rest in groups for call in rest)]
                self._failures += 1
                logger.warning("%d writes could not be made: %s", len(failed), error)
                _fail(failed, error)
                return
            except Exception as error:  # noqa: BLE001 - it is raised at its caller
                if len(group) > 1:
                    groups += [[call] for call in reversed(group)]
                elif isinstance(error, Conflict):
                    group[0].result = _locked()
                    group[0].result.__cause__ = error
                elif isinstance(error, Refused):
                    group[0].result = StoreUnavailable(f"the database refuses it: {error}")
                    group[0].result.__cause__ = error
                else:
                    group[0].result = error
            else:
                self._calls += len(group)
                self._batches += 1

    async def _repeatedly(self, calls: list[_Call], give_up_at: float) -> None:
        if trio.current_time() > give_up_at:
            raise _locked()
        reconnected = False
        for repeat in range(_REPEATS):
            try:
                await self._transact(calls)
            except Conflict as conflict:
                if conflict.waited or repeat == _REPEATS - 1:
                    raise
                await trio.sleep(_PAUSE_S * 2**repeat * random.uniform(0.5, 1.5))  # noqa: S311
            except ConnectionLost:
                await self._pool.forget_idle()
                if reconnected:
                    raise
                reconnected = True
            else:
                return
            self._repeats += 1
        raise StoreUnavailable("the database can't be used now: connections to it keep breaking")

    async def _transact(self, calls: list[_Call]) -> None:
        self._number += 1
        groups: dict[str, list[_Call]] = {}
        for call in calls:
            groups.setdefault(call.operation.name, []).append(call)
        results: list[tuple[_Call, Any]] = []
        async with self._pool.connection() as connection:
            try:
                await connection.execute(_NUMBER.format(lane=self._id, number=self._number))
                for group in groups.values():
                    answers = await group[0].operation.run(
                        connection, [call.argument for call in group]
                    )
                    results += zip(group, answers, strict=True)
            except BaseException:
                await _roll_back(connection)
                raise
            committed = await self._commit(connection)
        if not committed:
            committed = await self._find_out()
            if not committed:
                raise ConnectionLost("the database can't be used now: its COMMIT failed")
        for call, result in results:
            call.result = result

    async def _commit(self, connection: MySQLConnection) -> bool:
        """False: what became of the transaction is to be found out."""
        try:
            await connection.commit()
        except Conflict:
            await _roll_back(connection)
            raise
        except StoreError as error:
            logger.warning("a COMMIT was not answered, looking for what became of it: %s", error)
            return False
        return True

    async def _find_out(self) -> bool:
        """Whether the last transaction was committed."""
        statement = _WHICH_NUMBER.format(lane=self._id)
        end = trio.current_time() + FIND_OUT_S
        while True:
            try:
                await self._pool.forget_idle()
                async with self._pool.connection() as connection:
                    try:
                        rows = (await connection.execute(statement)).rows
                    finally:
                        await _roll_back(connection)
                return bool(rows) and rows[0][0] == self._number
            except (StoreError, Conflict) as error:
                if trio.current_time() > end:
                    raise StoreUnavailable(
                        "the database was lost in the middle of a write, and whether that was "
                        "made is not known"
                    ) from error
            await trio.sleep(_FIND_OUT_PAUSE_S)


async def _roll_back(connection: MySQLConnection) -> None:
    try:
        await connection.rollback()
    except (StoreError, Conflict) as error:
        logger.warning("a rollback failed, its connection is closed: %s", error)


def _locked() -> StoreUnavailable:
    return StoreUnavailable("the database can't be used now: others hold its locks for too long")


def _fail(calls: Sequence[_Call], error: StoreUnavailable) -> None:
    for call in calls:
        if call.result is _PENDING:
            call.result = StoreUnavailable(str(error))
            call.result.__cause__ = error


def _wake(calls: Sequence[_Call]) -> None:
    _fail(
        calls, StoreUnavailable("the store was closed, and whether this was written is not known")
    )
    for call in calls:
        if not call.cancelled:
            trio.lowlevel.reschedule(call.task)

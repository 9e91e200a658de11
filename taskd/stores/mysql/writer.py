"""The writers: the calls that wait at one become one transaction (`batching`).

```
 execute(operation, argument) ──►  queue ──► take all that waits (up to BATCH)
   waits, cancellable                        batch's number · the operations · COMMIT
   result or error            ◄── woken, all of the batch at once
```

A writer is a Trio task of its own with a connection from the pool. So the cancel of a caller
never cuts a statement off: its call is left out if the batch has not begun, and carried out
otherwise, with nobody to tell.

Failure. Until COMMIT is sent, any failure undoes the whole transaction.

- A deadlock: the batch is repeated after random pauses, then each of its calls alone.
- A lock that was not given in time: each call alone.
- A value that the server refuses: each call alone, so that only the culprit fails.
- A broken connection: the batch once more, on a new one.
- All else: `StoreUnavailable` for the whole batch; the next one tries afresh.

An unanswered COMMIT. Every transaction writes its number into the writer's row of ``batches``,
and locks that row until it has ended, committed or not. So a new connection waits for
the lock, and then finds the number there if it was committed. Only if that fails for
`FIND_OUT_S` as well are the callers told that nobody knows.
"""

from __future__ import annotations

import logging
import secrets
from collections import deque
from collections.abc import Callable, Sequence

import trio

from taskd.errors import StoreError, StoreUnavailable
from taskd.runtime.backoff import Backoff
from taskd.stores.batching import BATCH, Answers, BatchingWriter, Call, answers, fail, wake
from taskd.stores.mysql.connection import MySQLConnection
from taskd.stores.mysql.errors import Conflict, ConnectionLost, Refused
from taskd.stores.mysql.pool import Pool
from taskd.stores.operations.session import Session

logger = logging.getLogger("taskd.stores.mysql")


_WEIGHT_BYTES = 8 * 1_048_576
"""About how many bytes of content share a transaction."""

_REPEATS = 4
_FIRST_PAUSE_S = 0.03
_LONGEST_PAUSE_S = 0.12
_JITTER = 2 / 3
GIVE_UP_S = 15.0
"""Seconds after which the calls of a batch that were not tried yet are given up."""

FIND_OUT_S = 20.0
_FIND_OUT_PAUSE_S = 0.2

_NUMBER = (
    "INSERT INTO batches (lane, number, seen_at) VALUES ('{lane}', {number}, UNIX_TIMESTAMP()) "
    "ON DUPLICATE KEY UPDATE number = {number}, seen_at = UNIX_TIMESTAMP()"
)
_WHICH_NUMBER = "SELECT number FROM batches WHERE lane = '{lane}' FOR UPDATE"


class MySQLWriter(BatchingWriter):
    """See the module.

    Args:
        name: for the log.
        pool: of connections without autocommit.
        session: makes an operation's session of a connection.
    """

    def __init__(
        self, name: str, pool: Pool, session: Callable[[MySQLConnection], Session]
    ) -> None:
        super().__init__(self._put)
        self._name = name
        self._pool = pool
        self._session = session
        self._id = secrets.token_hex(12)
        self._number = 0
        self._queue: deque[Call] = deque()
        self._arrival = trio.Event()
        self._give_up_at = 0.0
        self._backoff = Backoff(_FIRST_PAUSE_S, _LONGEST_PAUSE_S, jitter=_JITTER)

    def _put(self, call: Call) -> None:
        self._queue.append(call)
        self._arrival.set()

    def close(self) -> None:
        """Take no more calls; `run` returns once those that wait are done."""
        self._closing = True
        self._arrival.set()

    async def run(self) -> None:
        """Carry out calls until closed. If this is cancelled, the waiting calls fail: the store
        is closed."""
        try:
            while True:
                while not self._queue:
                    if self._closing:
                        return
                    self._arrival = trio.Event()
                    await self._arrival.wait()
                await self._carry_out_or_fail(self._collect())
        finally:
            self._closing = True
            left = list(self._queue)
            self._queue.clear()
            fail(left, StoreUnavailable("the store is closed"))
            wake(left)
            self._deadlines.close()

    def _collect(self) -> list[Call]:
        batch: list[Call] = []
        weight = 0
        while self._queue and len(batch) < BATCH and weight < _WEIGHT_BYTES:
            call = self._queue.popleft()
            if not call.cancelled:
                batch.append(call)
                weight += call.operation.weigh(call.argument)
        return batch

    def _waiting(self) -> int:
        return len(self._queue)

    async def _carry_out_or_fail(self, batch: list[Call]) -> None:
        self._give_up_at = trio.current_time() + GIVE_UP_S
        try:
            await self.carry_out(batch)
        except Exception as error:
            logger.exception("the store's %s lane failed", self._name)
            fail(batch, StoreUnavailable(f"the store failed: {error!r}"))
        finally:
            fail(
                batch,
                StoreUnavailable("the store was closed, and whether this was written is not known"),
            )
            wake(batch)

    def _reason(self, error: Exception) -> Exception:
        if isinstance(error, Conflict):
            reason = _locked()
        elif isinstance(error, Refused):
            reason = StoreUnavailable(f"the database refuses it: {error}")
        else:
            return error
        reason.__cause__ = error
        return reason

    def _failed(self, writes: int, error: StoreUnavailable) -> None:
        logger.warning("%d writes could not be made: %s", writes, error)

    async def _commit(self, calls: Sequence[Call]) -> Answers:
        if trio.current_time() > self._give_up_at:
            raise _locked()
        self._backoff.reset()
        reconnected = False
        for repeat in range(_REPEATS):
            try:
                return await self._transact(calls)
            except Conflict as conflict:
                if conflict.waited or repeat == _REPEATS - 1:
                    raise
                await trio.sleep(self._backoff.next_s())
            except ConnectionLost:
                await self._pool.forget_idle()
                if reconnected:
                    raise
                reconnected = True
            self._repeats += 1
        raise StoreUnavailable("the database can't be used now: connections to it keep breaking")

    async def _transact(self, calls: Sequence[Call]) -> Answers:
        self._number += 1
        async with self._pool.connection() as connection:
            try:
                await connection.execute(_NUMBER.format(lane=self._id, number=self._number))
                answered = await answers(calls, self._session(connection))
            except BaseException:
                await _roll_back(connection)
                raise
            committed = await self._committed(connection)
        if not committed and not await self._find_out():
            raise ConnectionLost("the database can't be used now: its COMMIT failed")
        return answered

    async def _committed(self, connection: MySQLConnection) -> bool:
        """Commit; return False if the transaction's outcome has to be found out."""
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

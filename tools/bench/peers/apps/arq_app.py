"""arq: one process of asyncio, polling every 5 ms instead of every 500."""

from __future__ import annotations

import datetime
from typing import Any

from arq import create_pool
from arq.connections import RedisSettings
from arq.worker import run_worker
from callback import BROKER, RECOVERY_S, deliver_async
from uvloop import EventLoopPolicy

_SETTINGS = RedisSettings.from_dsn(BROKER)


async def callback(_: dict[str, Any], number: int, content: str) -> None:
    """One delivery."""
    await deliver_async(number, content)


class WorkerSettings:
    """What the worker goes by."""

    functions = [callback]  # noqa: RUF012 - arq reads it so
    redis_settings = _SETTINGS
    max_jobs = 64
    poll_delay = 0.005
    keep_result = 0
    log_results = False
    # A dead worker's job is taken up again 10 s after this.
    job_timeout = 1 if RECOVERY_S else 300


class Submitter:
    """``enqueue_job``, one by one: it has no bulk call."""

    asynchronous = True

    async def open(self) -> None:
        """Connect."""
        self.pool = await create_pool(_SETTINGS)

    async def one(self, number: int, content: str, due: float | None) -> None:
        """Enqueue one job."""
        until = None if due is None else datetime.datetime.fromtimestamp(due, datetime.UTC)
        await self.pool.enqueue_job("callback", number, content, _defer_until=until)


if __name__ == "__main__":
    import asyncio

    asyncio.set_event_loop_policy(EventLoopPolicy())
    asyncio.set_event_loop(asyncio.new_event_loop())
    run_worker(WorkerSettings)

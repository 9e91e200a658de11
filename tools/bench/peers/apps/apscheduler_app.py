"""APScheduler 3: scheduler, store and submitter are one process, for two schedulers
may not share a store. In memory, or with a job store on Redis."""

from __future__ import annotations

import datetime

from apscheduler.executors.asyncio import AsyncIOExecutor
from apscheduler.jobstores.memory import MemoryJobStore
from apscheduler.jobstores.redis import RedisJobStore
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from callback import BROKER, deliver_async
from redis.connection import parse_url


def _store() -> MemoryJobStore | RedisJobStore:
    return RedisJobStore(**parse_url(BROKER)) if BROKER else MemoryJobStore()


async def callback(number: int, content: str) -> None:
    """One delivery."""
    await deliver_async(number, content)


class Submitter:
    """``add_job`` in the process that runs the jobs."""

    asynchronous = True

    async def open(self) -> None:
        """Start the scheduler, and go on with what its store holds."""
        self.scheduler = AsyncIOScheduler(
            jobstores={"default": _store()},
            executors={"default": AsyncIOExecutor()},
            # Any lateness is taken, and none is merged.
            job_defaults={"misfire_grace_time": None, "coalesce": False, "max_instances": 1},
            timezone=datetime.UTC,
        )
        self.scheduler.start()

    async def one(self, number: int, content: str, due: float | None) -> None:
        """Add one job."""
        at = None if due is None else datetime.datetime.fromtimestamp(due, datetime.UTC)
        self.scheduler.add_job(callback, "date", run_date=at, args=(number, content))

"""Procrastinate on PostgreSQL, woken by LISTEN/NOTIFY; done jobs are deleted."""

from __future__ import annotations

import datetime
import sys

import uvloop
from callback import BROKER, deliver_async
from procrastinate import App, PsycopgConnector, RetryStrategy

app = App(connector=PsycopgConnector(conninfo=BROKER, min_size=4, max_size=20))


@app.task(name="callback", retry=RetryStrategy(max_attempts=3, wait=1))
async def callback(number: int, content: str) -> None:
    """One delivery."""
    await deliver_async(number, content)


class Submitter:
    """``defer_async``, and ``batch_defer_async``, which is one statement."""

    asynchronous = True

    async def open(self) -> None:
        """Connect."""
        await app.open_async()

    async def one(self, number: int, content: str, due: float | None) -> None:
        """Insert one job."""
        at = None if due is None else datetime.datetime.fromtimestamp(due, datetime.UTC)
        await callback.configure(schedule_at=at).defer_async(number=number, content=content)

    async def batch(self, numbers: list[int], content: str) -> None:
        """Insert many."""
        await callback.batch_defer_async(
            *({"number": number, "content": content} for number in numbers)
        )


async def work() -> None:
    """Run the only worker, which first takes back what a killed one had in hand."""
    async with app.open_async():
        for job in await app.job_manager.get_stalled_jobs(seconds_since_heartbeat=0):
            await app.job_manager.retry_job(job)
        await app.run_worker_async(
            concurrency=32,
            fetch_job_polling_interval=0.2,
            listen_notify=True,
            delete_jobs="always",
        )


async def prepare() -> None:
    """Make the tables."""
    async with app.open_async():
        await app.schema_manager.apply_schema_async()


if __name__ == "__main__":
    uvloop.run(prepare() if sys.argv[1:] == ["prepare"] else work())

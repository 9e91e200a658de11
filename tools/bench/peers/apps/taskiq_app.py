"""taskiq on Redis streams, which acknowledge, and its scheduler for what is due later."""

from __future__ import annotations

import datetime

from callback import BROKER, RECOVERY_S, deliver_async
from taskiq import TaskiqScheduler
from taskiq_redis import ListRedisScheduleSource, RedisStreamBroker

# The group reads from the stream's beginning, so that no task is missed that was sent
# before a worker first came.
_RECOVERING = {"idle_timeout": RECOVERY_S * 1000} if RECOVERY_S else {}

broker = RedisStreamBroker(BROKER, consumer_id="0", **_RECOVERING)
source = ListRedisScheduleSource(BROKER)
scheduler = TaskiqScheduler(broker, [source])


@broker.task(task_name="callback")
async def callback(number: int, content: str) -> None:
    """One delivery."""
    await deliver_async(number, content)


class Submitter:
    """``kiq``, one by one: it has no bulk call."""

    asynchronous = True

    async def open(self) -> None:
        """Connect."""
        await broker.startup()
        await source.startup()

    async def one(self, number: int, content: str, due: float | None) -> None:
        """Send one message."""
        if due is None:
            await callback.kiq(number, content)
        else:
            at = datetime.datetime.fromtimestamp(due, datetime.UTC)
            await callback.schedule_by_time(source, at, number, content)

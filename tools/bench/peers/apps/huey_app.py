"""Huey, on Redis or on SQLite with an fsync for each commit."""

from __future__ import annotations

import time

from callback import BROKER, deliver
from huey import RedisHuey, SqliteHuey

if BROKER.startswith("redis:"):
    huey = RedisHuey("peers", url=BROKER, results=False)
else:
    huey = SqliteHuey("peers", filename=BROKER, fsync=True, results=False)


@huey.task(retries=3, retry_delay=1)
def callback(number: int, content: str) -> None:
    """One delivery."""
    deliver(number, content)


class Submitter:
    """A call enqueues; ``schedule`` takes the delay."""

    asynchronous = False

    def one(self, number: int, content: str, due: float | None) -> None:
        """Enqueue one task."""
        if due is None:
            callback(number, content)
        else:
            # A delay and no time, which Huey would cut down to whole seconds.
            callback.schedule((number, content), delay=max(0.0, due - time.time()))

"""RQ: workers that do not fork for each job, as its docs advise for short ones."""

from __future__ import annotations

import datetime

from callback import BROKER, deliver
from redis import Redis
from rq import Queue, SimpleWorker


def callback(number: int, content: str) -> None:
    """One delivery."""
    deliver(number, content)


class Submitter:
    """``enqueue``, ``enqueue_at`` and ``enqueue_many``, which is a pipeline."""

    asynchronous = False

    def __init__(self) -> None:
        self.queue = Queue(connection=Redis.from_url(BROKER))

    def one(self, number: int, content: str, due: float | None) -> None:
        """Enqueue one job, which leaves no result."""
        if due is None:
            self.queue.enqueue(callback, number, content, result_ttl=0)
        else:
            at = datetime.datetime.fromtimestamp(due, datetime.UTC)
            self.queue.enqueue_at(at, callback, number, content, result_ttl=0)

    def batch(self, numbers: list[int], content: str) -> None:
        """Enqueue many in one pipeline."""
        self.queue.enqueue_many(
            [
                Queue.prepare_data(callback, args=(number, content), result_ttl=0)
                for number in numbers
            ]
        )


if __name__ == "__main__":
    SimpleWorker(["default"], connection=Redis.from_url(BROKER), maintenance_interval=5).work(
        with_scheduler=True, logging_level="WARNING"
    )

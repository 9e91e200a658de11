"""Dramatiq on Redis, with its default middleware but the metrics' one."""

from __future__ import annotations

import time

import dramatiq
from callback import BROKER, RECOVERY_S, deliver
from dramatiq.brokers.redis import RedisBroker

_RECOVERING = {"heartbeat_timeout": RECOVERY_S * 1000, "maintenance_chance": 100_000}

broker = RedisBroker(url=BROKER, **(_RECOVERING if RECOVERY_S else {}))
dramatiq.set_broker(broker)


@dramatiq.actor(max_retries=3, min_backoff=1000)
def callback(number: int, content: str) -> None:
    """One delivery."""
    deliver(number, content)


class Submitter:
    """``send``; the delay is a number of milliseconds."""

    asynchronous = False

    def one(self, number: int, content: str, due: float | None) -> None:
        """Enqueue one message."""
        if due is None:
            callback.send(number, content)
        else:
            delay = max(0, round((due - time.time()) * 1000))
            callback.send_with_options(args=(number, content), delay=delay)

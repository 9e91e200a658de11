"""Celery on Redis: late acknowledgement, so that a task outlives its worker; no results."""

from __future__ import annotations

import datetime

from callback import BROKER, RECOVERY_S, deliver
from celery import Celery

app = Celery("celery_app", broker=BROKER)
app.conf.update(
    task_ignore_result=True,
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=16,
    worker_disable_rate_limits=True,
    worker_send_task_events=False,
    broker_connection_retry_on_startup=True,
    broker_pool_limit=16,
)
if RECOVERY_S:
    # It looks for what was not acknowledged every 2 s instead of every 100.
    app.conf.broker_transport_options = {
        "visibility_timeout": RECOVERY_S,
        "unacked_restore_interval": 2,
        "unacked_restore_throttle": 1,
    }


@app.task(name="callback")
def callback(number: int, content: str) -> None:
    """One delivery."""
    deliver(number, content)


class Submitter:
    """``apply_async``, over the pool of producers."""

    asynchronous = False

    def one(self, number: int, content: str, due: float | None) -> None:
        """Publish one message."""
        eta = None if due is None else datetime.datetime.fromtimestamp(due, datetime.UTC)
        callback.apply_async((number, content), eta=eta)

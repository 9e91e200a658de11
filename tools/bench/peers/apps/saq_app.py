"""SAQ on Redis; it looks for due jobs once a second, and can not do so more often."""

from __future__ import annotations

from typing import Any

from callback import BROKER, RECOVERY_S, deliver_async
from saq import Queue

queue = Queue.from_url(BROKER)


async def callback(_: dict[str, Any], *, number: int, content: str) -> None:
    """One delivery."""
    await deliver_async(number, content)


settings = {
    "queue": queue,
    "functions": [callback],
    "concurrency": 32,
    "timers": {"schedule": 1, "sweep": RECOVERY_S or 60},
}


class Submitter:
    """``enqueue``, one by one: it has no bulk call."""

    asynchronous = True

    async def open(self) -> None:
        """Connect."""
        await queue.connect()

    async def one(self, number: int, content: str, due: float | None) -> None:
        """Enqueue one job, which leaves no result."""
        await queue.enqueue(
            "callback",
            number=number,
            content=content,
            scheduled=0 if due is None else due,
            ttl=-1,
            retries=3,
            timeout=RECOVERY_S or 10,
        )


if __name__ == "__main__":
    import asyncio

    import uvloop
    from saq.worker import start

    # saq's own command does this, but for uvloop.
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    start("saq_app.settings")

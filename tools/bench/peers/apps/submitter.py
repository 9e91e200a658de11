"""The process that submits: ``python submitter.py APP``, told what to do by lines of
JSON on standard input, and answering each with one on standard output.

An app's module has a class `Submitter`. Where its ``asynchronous`` is false, its
methods block, and 16 in flight are 16 threads; where it is true they are coroutines,
and 16 in flight are 16 tasks of one loop.

    one(number, content, due)    submit one task, due at Unix seconds or now (None)
    batch(numbers, content)      100 by the peer's own bulk call; absent without one
    flight(numbers, content)     instead of the threads, where the app knows better
"""

from __future__ import annotations

import asyncio
import importlib
import json
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import uvloop

IN_FLIGHT = 16
BATCH = 100


class Run:
    """One order: which numbers to submit, until when, and how it went."""

    def __init__(self, order: dict[str, Any]) -> None:
        self.mode: str = order["mode"]
        self.content: str = order["content"]
        self.numbers = range(order["first"], order["first"] + order["count"])
        self.rate: float = order.get("rate", 0)
        self.due_s: float = order.get("due_s", 0)
        self.over_s: float = order.get("over_s", 0)
        self.stop_at = time.monotonic() + order["within_s"]
        self.acknowledged: list[int] = []
        self.sent_us: dict[int, int] = {}
        self.errors: list[str] = []

    def due_of(self, number: int) -> float:
        """When a delayed task is due: all are spread evenly."""
        return self.due_s + (number - self.numbers.start) * self.over_s / len(self.numbers)

    def while_time(self, items: Iterable[Any]) -> Iterator[Any]:
        """The items, until the time is up."""
        for item in items:
            if time.monotonic() > self.stop_at:
                return
            yield item

    def failed(self, error: Exception) -> None:
        """Note it, and give the broker a moment to come back."""
        if len(self.errors) < 5:
            self.errors.append(f"{type(error).__name__}: {error}"[:200])

    def batches(self) -> Iterator[list[int]]:
        """The numbers, a hundred at a time."""
        for start in range(0, len(self.numbers), BATCH):
            yield list(self.numbers[start : start + BATCH])

    def pace(self, began: float, index: int) -> float:
        """Seconds until the paced task of this index is to be sent."""
        return max(0.0, began + index / self.rate - time.monotonic())


def submit(submitter: Any, run: Run) -> None:  # noqa: ANN401 - apps have no common class
    """Carry the order out with an app whose calls block."""

    def one(number: int, due: float | None = None) -> None:
        try:
            submitter.one(number, run.content, due)
        except Exception as error:  # noqa: BLE001 - counted, and told
            run.failed(error)
            time.sleep(0.05)
        else:
            run.acknowledged.append(number)

    def share(numbers: Iterator[int], lock: threading.Lock) -> None:
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            one(number)

    if run.mode == "flight" and hasattr(submitter, "flight"):
        submitter.flight(run, IN_FLIGHT)
    elif run.mode == "flight":
        numbers, lock = run.while_time(run.numbers), threading.Lock()
        threads = [threading.Thread(target=share, args=(numbers, lock)) for _ in range(IN_FLIGHT)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    elif run.mode == "batch":
        for numbers in run.while_time(run.batches()):
            try:
                run.acknowledged += submitter.batch(numbers, run.content) or numbers
            except Exception as error:  # noqa: BLE001 - counted, and told
                run.failed(error)
                time.sleep(0.05)
    else:
        began = time.monotonic()
        for index, number in enumerate(run.while_time(run.numbers)):
            if run.rate:
                time.sleep(run.pace(began, index))
                run.sent_us[number] = time.time_ns() // 1000
            one(number, run.due_of(number) if run.due_s else None)


async def submit_async(submitter: Any, run: Run) -> None:  # noqa: ANN401 - as above
    """Carry the order out with an app of coroutines."""

    async def one(number: int, due: float | None = None) -> None:
        try:
            await submitter.one(number, run.content, due)
        except Exception as error:  # noqa: BLE001 - counted, and told
            run.failed(error)
            await asyncio.sleep(0.05)
        else:
            run.acknowledged.append(number)

    async def share(numbers: Iterator[int]) -> None:
        for number in numbers:
            await one(number)

    if run.mode == "flight":
        numbers = run.while_time(run.numbers)
        await asyncio.gather(*(share(numbers) for _ in range(IN_FLIGHT)))
    elif run.mode == "batch":
        for hundred in run.while_time(run.batches()):
            try:
                await submitter.batch(hundred, run.content)
            except Exception as error:  # noqa: BLE001 - counted, and told
                run.failed(error)
                await asyncio.sleep(0.05)
            else:
                run.acknowledged += hundred
    else:
        began = time.monotonic()
        for index, number in enumerate(run.while_time(run.numbers)):
            if run.rate:
                await asyncio.sleep(run.pace(began, index))
                run.sent_us[number] = time.time_ns() // 1000
            await one(number, run.due_of(number) if run.due_s else None)


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def report(run: Run, began: float, ended: float, cpu_s: float) -> dict[str, Any]:
    """What is told of an order that was carried out."""
    return {
        "began_s": began,
        "ended_s": ended,
        "cpu_s": cpu_s,
        "acknowledged": run.acknowledged,
        "sent_us": list(run.sent_us.items()),
        "errors": run.errors,
    }


def serve(submitter: Any, tell: Callable[[dict[str, Any]], None]) -> None:  # noqa: ANN401 - as above
    """Carry out orders until standard input ends."""
    for line in sys.stdin:
        run = Run(json.loads(line))
        cpu, began = _cpu_s(), time.time()
        submit(submitter, run)
        tell(report(run, began, time.time(), _cpu_s() - cpu))


async def serve_async(submitter: Any, tell: Callable[[dict[str, Any]], None]) -> None:  # noqa: ANN401 - as above
    """The same for coroutines."""
    await submitter.open()
    while line := await asyncio.to_thread(sys.stdin.readline):
        run = Run(json.loads(line))
        cpu, began = _cpu_s(), time.time()
        await submit_async(submitter, run)
        tell(report(run, began, time.time(), _cpu_s() - cpu))


def main() -> None:
    """Begin with the app that is named."""
    submitter = importlib.import_module(sys.argv[1]).Submitter()
    # What a library prints must not get between the answers.
    answers, sys.stdout = sys.stdout, sys.stderr

    def tell(answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    tell({"batch": hasattr(submitter, "batch")})
    if submitter.asynchronous:
        uvloop.run(serve_async(submitter, tell))
    else:
        serve(submitter, tell)


if __name__ == "__main__":
    main()

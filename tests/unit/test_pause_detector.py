"""A process that was stopped, as seen by its event loop."""

from __future__ import annotations

import time

import pytest
import trio
import trio.lowlevel

from taskd.delivery.egress import Egress
from taskd.delivery.progress import Progress
from taskd.delivery.transport import Transport, parse_target
from taskd.runtime.pause_detector import LONG_S, noticed
from tests.support.receiver import Receiver


def stop_here(seconds: float = LONG_S + 0.3) -> None:
    """Keep the loop from its turn, as SIGSTOP does."""
    time.sleep(seconds)  # noqa: TID251 - what is to be noticed


async def test_a_pause_is_noticed_before_a_deadline_that_passed_meanwhile() -> None:
    went_on = False
    with trio.CancelScope(deadline=trio.current_time() + 1) as scope:

        def then() -> None:
            scope.deadline = trio.current_time() + 60

        with noticed(then):
            await trio.lowlevel.checkpoint()
            stop_here()
            await trio.lowlevel.checkpoint()
            went_on = True
    assert went_on


async def test_a_loop_that_waits_is_not_paused() -> None:
    noticed_at: list[float] = []
    with noticed(lambda: noticed_at.append(trio.current_time())):
        await trio.sleep(LONG_S + 0.3)
        await trio.sleep(0.1)
    assert len(noticed_at) == 0


async def test_a_pause_while_nothing_was_due_for_long_is_noticed_late_only_by_that() -> None:
    count = 0

    def then() -> None:
        nonlocal count
        count += 1

    with noticed(then):
        await trio.sleep(0.05)
        stop_here()
        await trio.sleep(0.05)
        stop_here()
        await trio.sleep(0.05)
    assert count == 2


async def test_nothing_is_sent_once_the_deadline_has_passed_unseen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The process is stopped between the last look of the loop and the send."""
    with Receiver() as receiver:
        transport = Transport(egress=Egress())
        target = parse_target(receiver.url)
        await transport.post(target, _HEADERS, b"{}", Progress())
        kept = transport._pool.take

        def take(origin: str, now: float) -> object:
            connection = kept(origin, now)
            stop_here(0.5)
            return connection

        monkeypatch.setattr(transport._pool, "take", take)
        progress = Progress()
        with trio.move_on_after(0.3) as scope:
            await transport.post(target, _HEADERS, b"{}", progress)
        assert scope.cancelled_caught
        assert not progress.sent
        await transport.aclose()
        assert len(receiver.ledger()) == 1


_HEADERS = [("Taskd-Task-Id", "1"), ("Taskd-Task-No", "n"), ("Taskd-Attempt", "1")]

"""How many bytes of contents are in memory, and who gets room for theirs."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from taskd.domain.model import SHORT_CONTENT
from taskd.engine.contents import Contents, counted_bytes
from tests.support.virtual import on_virtual_clock

MB = 1_000_000


def test_short_contents_count_for_nothing() -> None:
    assert counted_bytes(b"x" * SHORT_CONTENT) == 0
    assert counted_bytes(b"x" * (SHORT_CONTENT + 1)) == SHORT_CONTENT + 1


def test_one_application_gets_two_thirds_and_another_finds_room() -> None:
    contents = Contents(90 * MB)
    taken = sum(contents.take_now(1, MB) for _ in range(90))
    assert taken == 60
    assert sum(contents.take_now(2, MB) for _ in range(90)) >= 15
    assert contents.take_now(3, MB)
    assert contents.used <= 90 * MB


@pytest.mark.parametrize("apps", [1, 4, 40, 400])
def test_however_many_hold_theirs_the_bound_holds(apps: int) -> None:
    contents = Contents(64 * MB)
    for _ in range(64):
        for app_id in range(apps):
            contents.take_now(app_id, MB)
    assert 40 * MB <= contents.used <= 64 * MB


def test_what_is_longer_than_the_bound_goes_alone() -> None:
    contents = Contents(2 * MB)
    assert contents.take_now(1, 5 * MB)
    assert not contents.take_now(2, SHORT_CONTENT + 1)
    contents.give_back(1, 5 * MB)
    assert contents.take_now(2, MB)
    assert not contents.take_now(1, 5 * MB)


def test_a_loan_is_small_and_given_only_while_plenty_is_free() -> None:
    contents = Contents(64 * MB)
    lent = contents.lend()
    assert 0 < lent <= 10 * MB
    contents.end_loan(lent, {1: 3 * MB, 2: MB})
    assert contents.used == 4 * MB
    while contents.take_now(3, MB):
        pass
    assert contents.lend() == 0
    assert Contents(4 * MB).lend() == 0


@pytest.mark.virtual_clock
async def test_applications_that_wait_are_let_in_in_turns() -> None:
    contents = Contents(10 * MB)
    assert contents.take_now(9, 10 * MB)
    order: list[int] = []

    async def wait(app_id: int) -> None:
        await contents.take(app_id, 3 * MB)
        order.append(app_id)
        await trio.sleep(1)
        contents.give_back(app_id, 3 * MB)

    async with trio.open_nursery() as nursery:
        for app_id in (1, 1, 1, 1, 1, 2, 2, 3):
            nursery.start_soon(wait, app_id)
            await trio.sleep(0.001)
        assert contents.waiting == 8
        contents.give_back(9, 10 * MB)
    assert set(order[:3]) == {1, 2, 3}
    assert contents.used == contents.waiting == 0


@pytest.mark.virtual_clock
async def test_nobody_goes_before_those_who_wait() -> None:
    contents = Contents(10 * MB)
    assert contents.take_now(1, 9 * MB)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(contents.take, 2, 2 * MB)
        await trio.testing.wait_all_tasks_blocked()
        assert not contents.take_now(3, 1)
        contents.give_back(1, 9 * MB)
    assert contents.take_now(3, MB)


@pytest.mark.virtual_clock
async def test_a_larger_bound_lets_those_in_who_wait() -> None:
    contents = Contents(10 * MB)
    assert contents.take_now(1, 10 * MB)
    with trio.fail_after(1):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(contents.take, 2, 2 * MB)
            await trio.testing.wait_all_tasks_blocked()
            contents.limit(20 * MB)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_whatever_is_cancelled_the_counts_hold_and_all_get_their_turn(seed: int) -> None:
    async def main() -> None:
        rng = random.Random(seed)
        contents = Contents(10 * MB)
        ended: Counter[str] = Counter()

        async def one(app_id: int, size: int) -> None:
            with trio.move_on_after(rng.choice([0.0, 1.0, 2.0, 1e6])) as scope:
                await contents.take(app_id, size)
            if scope.cancelled_caught:
                ended["cancelled"] += 1
                return
            assert contents.used <= max(10 * MB, size)
            # At the same instants as others are cancelled.
            await trio.sleep(rng.choice([0.0, 1.0, 2.0]))
            contents.give_back(app_id, size)
            ended["done"] += 1

        with trio.fail_after(10_000):
            async with trio.open_nursery() as nursery:
                for _ in range(200):
                    nursery.start_soon(one, rng.randrange(6), rng.randrange(1, 12 * MB))
                    await trio.sleep(rng.choice([0.0, 0.5]))
        assert contents.used == contents.waiting == 0
        assert ended.total() == 200

    on_virtual_clock(main)

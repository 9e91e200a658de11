"""The Queue port when what carries the wake-ups hangs, dies, or is not there: a node works on
what it knows, says what is wrong, and finds back by itself."""

from __future__ import annotations

import trio

from tests.support.nodes import until
from tests.support.queue_kinds import NsqKind, QueueKind, Taker, due


async def test_a_carrier_that_hangs_holds_up_nobody_and_loses_nothing(
    frozen_queues: QueueKind,
) -> None:
    async with frozen_queues.at_work():
        a, b = await frozen_queues.begin("a"), await frozen_queues.begin("b")
        await frozen_queues.settled()
        takers = [Taker(node.port) for node in (a, b)]
        for taker in takers:
            frozen_queues.nursery.start_soon(taker.run)

        def had(ids: set[int]) -> bool:
            return ids <= {*takers[0].ids, *takers[1].ids}

        a.port.publish(due(n, 1 + n % 3) for n in range(1, 101))
        await until(lambda: had(set(range(1, 101))))
        frozen_queues.freeze()
        try:
            a.port.publish(due(n, 1 + n % 3) for n in range(101, 201))
            a.port.backfill(due(n) for n in range(201, 221))
            await until(lambda: set(range(201, 221)) <= set(takers[0].ids))
            if frozen_queues.tells:
                await until(lambda: a.port.degraded() and b.port.degraded())
                assert a.port.in_flight_grace_ms() == 0, (
                    "nothing is under way that others should await"
                )
                a.port.publish([due(221)])
                await until(lambda: takers[0].has(221))
        finally:
            frozen_queues.thaw()
        await until(lambda: not a.port.degraded() and not b.port.degraded())
        await frozen_queues.settled()
        b.port.publish(due(n, 1 + n % 3) for n in range(301, 401))
        await until(lambda: had({*range(1, 221), *range(301, 401)}))
        assert {*takers[0].ids, *takers[1].ids} <= set(range(1, 401))


async def test_a_server_that_is_killed_is_told_of_and_found_again(nsq_queues: NsqKind) -> None:
    nsqd = nsq_queues.nsqd
    async with nsq_queues.at_work():
        a, b = await nsq_queues.begin("a"), await nsq_queues.begin("b")
        takers = [Taker(node.port) for node in (a, b)]
        for taker in takers:
            nsq_queues.nursery.start_soon(taker.run)
        for round_ in range(2):
            await until(lambda: not a.port.degraded() and not b.port.degraded())
            await trio.to_thread.run_sync(nsqd.kill)
            await until(lambda: a.port.degraded() and b.port.degraded())
            assert nsqd.address in (a.port.degraded() or "")
            assert (a.port.in_flight_grace_ms(), b.port.in_flight_grace_ms()) == (0, 0)
            first = 1000 * (1 + round_)
            a.port.publish(due(n, 1 + n % 3) for n in range(first, first + 50))
            b.port.backfill([due(first + 60)])
            # Nobody can be asked for help: each works on what it knows.
            await until(lambda: set(range(first, first + 50)) <= set(takers[0].ids))  # noqa: B023
            await until(lambda: takers[1].has(first + 60))  # noqa: B023 - it is waited for here
            await trio.to_thread.run_sync(nsqd.start)
        await until(lambda: not a.port.degraded() and not b.port.degraded())
        a.port.room(0)
        published = set(range(9001, 9101))
        a.port.publish(due(n) for n in sorted(published))
        await until(lambda: published <= {*takers[0].ids, *takers[1].ids})
        assert published & set(takers[1].ids), "nothing was carried"


async def test_a_node_begins_where_no_server_is_and_finds_it_when_it_comes(
    nsq_queues: NsqKind,
) -> None:
    await trio.to_thread.run_sync(nsq_queues.nsqd.kill)
    async with nsq_queues.at_work():
        a = await nsq_queues.begin("a")
        assert a.port.degraded()
        taker = Taker(a.port)
        nsq_queues.nursery.start_soon(taker.run)
        a.port.publish([due(1)])
        a.port.backfill([due(2)])
        await until(lambda: set(taker.ids) == {1, 2})
        await trio.to_thread.run_sync(nsq_queues.nsqd.start)
        await until(lambda: not a.port.degraded())
        b = await nsq_queues.begin("b")
        other = Taker(b.port)
        nsq_queues.nursery.start_soon(other.run)
        a.port.publish(due(n) for n in range(10, 60))
        await until(lambda: set(range(10, 60)) <= {*taker.ids, *other.ids})


async def test_run_may_be_cancelled_while_the_server_hangs_and_nothing_is_lost(
    frozen_queues: QueueKind,
) -> None:
    async with frozen_queues.at_work():
        a = await frozen_queues.begin("a")
        await frozen_queues.settled()
        taker = Taker(a.port)
        frozen_queues.freeze()
        try:
            a.port.publish(due(n) for n in range(1, 51))
            await trio.sleep(0.05)
            with trio.fail_after(5):
                a.scope.cancel()
                await a.ended.wait()
            a.port.publish([due(51)])
            taker.take_all()
            assert set(range(1, 52)) == set(taker.ids)
        finally:
            frozen_queues.thaw()

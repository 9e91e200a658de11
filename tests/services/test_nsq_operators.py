"""What an operator does to NSQ: limits that are too low, certificates, an nsqd more or
less, and how a node finds its way."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import pytest
import trio

from taskd.queues.nsq.queue import NsqQueue
from tests.support.nsq_queue import due, queue_on, until, until_idle
from tests.support.services import StandInNsqd, StandInNsqlookupd

pytestmark = pytest.mark.deadline(30)

MakeNsqd = Callable[..., StandInNsqd]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--max-msg-timeout=30s"], "its --max-msg-timeout is under 60s"),
        (["--max-heartbeat-interval=3s"], "its --max-heartbeat-interval is under 5s"),
    ],
)
async def test_a_limit_that_is_too_low_is_named(
    stand_in_nsqd: MakeNsqd,
    caplog: pytest.LogCaptureFixture,
    options: list[str],
    told: str,
) -> None:
    nsqd = stand_in_nsqd(options=options)
    caplog.set_level(logging.WARNING)

    async with queue_on(nsqd.address, heartbeat_s=5.0) as queue:
        await until(lambda: told in (queue.degraded() or ""))
        assert nsqd.address in (queue.degraded() or "")
        assert queue.statistics().connected == 0
    assert any(told in repr(record.__dict__) for record in caplog.records)


async def test_a_limit_that_is_just_high_enough_is_none(stand_in_nsqd: MakeNsqd) -> None:
    nsqd = stand_in_nsqd(options=["--max-msg-timeout=1m", "--max-heartbeat-interval=5s"])

    async with queue_on(nsqd.address, heartbeat_s=5.0) as queue:
        await until(lambda: queue.statistics().connected == 1)


async def test_an_nsqd_that_wants_a_certificate_is_shown_one(stand_in_nsqd: MakeNsqd) -> None:
    nsqd = stand_in_nsqd(tls=True, client_certificates=True)
    files = nsqd.certificates
    assert files is not None
    tls = f"tls=true&ca_file={files.ca}"

    async with queue_on(nsqd.address, query=tls) as queue:
        await until(lambda: "cert_file and key_file" in (queue.degraded() or ""))
    shown = f"{tls}&cert_file={files.certificate}&key_file={files.key}"
    async with queue_on(nsqd.address, query=shown) as queue:
        await until(lambda: queue.statistics().connected == 1)


def registered(lookup: StandInNsqlookupd) -> list[str]:
    return [f"--lookupd-tcp-address={lookup.address}", "--ping-s=0.2"]


async def test_an_nsqd_that_is_added_later_is_used_beside_the_one_with_the_topic(
    stand_in_nsqd: MakeNsqd, nsqlookupd: StandInNsqlookupd
) -> None:
    first = stand_in_nsqd(options=registered(nsqlookupd))

    async with queue_on(query=f"lookupd={nsqlookupd.http}", lookup_every_s=0.3) as queue:
        await until(lambda: queue.statistics().connected == 1)
        queue.publish([due(1)])
        await until_idle(lambda: first.channel("taskd", "taskd"))
        await trio.to_thread.run_sync(lambda: stand_in_nsqd(options=registered(nsqlookupd)))
        await until(lambda: queue.statistics().connected == 2)


async def test_when_an_nsqd_is_lost_another_is_looked_for_at_once(
    stand_in_nsqd: MakeNsqd, nsqlookupd: StandInNsqlookupd
) -> None:
    first = stand_in_nsqd(options=registered(nsqlookupd))

    # Asked every ten minutes, so only at once can it be in time.
    async with queue_on(query=f"lookupd={nsqlookupd.http}", lookup_every_s=600.0) as queue:
        await until(lambda: queue.statistics().connected == 1)
        await trio.to_thread.run_sync(lambda: stand_in_nsqd(options=registered(nsqlookupd)))
        await trio.to_thread.run_sync(first.kill)
        await until(lambda: queue.statistics().connected == 0)
        await until(lambda: queue.statistics().connected == 1, within_s=20)


async def test_an_nsqd_with_a_tombstone_is_not_come_to(
    stand_in_nsqd: MakeNsqd, nsqlookupd: StandInNsqlookupd
) -> None:
    staying, going = (stand_in_nsqd(options=registered(nsqlookupd)) for _ in range(2))
    for nsqd in (staying, going):
        nsqd.operate("create")

    where = f"lookupd={nsqlookupd.http}"
    async with queue_on(query=where, lookup_every_s=0.2) as queue:
        await until(lambda: queue.statistics().connected == 2)
    nsqlookupd.tombstone(going)
    async with queue_on(query=where, lookup_every_s=0.2) as queue:
        await until(lambda: queue.statistics().connected == 1)
        await trio.sleep(0.6)
        assert queue.statistics().connected == 1
        assert (await trio.to_thread.run_sync(going.channel, "taskd", "taskd"))["client_count"] == 0


def _connected_again(queue: NsqQueue, times: int) -> bool:
    return queue.statistics().connects > times


async def test_a_deleted_channel_and_topic_are_made_again(stand_in_nsqd: MakeNsqd) -> None:
    nsqd = stand_in_nsqd()

    async with queue_on(nsqd.address) as queue:
        await until(lambda: queue.statistics().connected == 1)
        for deletion, channel in enumerate(("taskd", None), start=1):
            await trio.to_thread.run_sync(nsqd.operate, "delete", "taskd", channel)
            await until(partial(_connected_again, queue, deletion))
            await until_idle(lambda: nsqd.channel("taskd", "taskd").get("client_count"))
            assert queue.degraded() is None or "is back" in (queue.degraded() or "")

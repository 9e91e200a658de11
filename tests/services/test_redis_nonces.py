"""Nonces on Redis: used once, and never again, whatever Redis forgets."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio

from taskd.buses.redis.health import Health
from taskd.buses.redis.link import Answer, Command, Link
from taskd.buses.redis.nonces import NONCES, SETTLE, Nonces, kept_alone
from taskd.buses.redis.target import parse_redis_url
from taskd.domain.model import NonceUse
from taskd.errors import BusUnavailable
from tests.support.clocks import SteppableClock
from tests.support.proxy import Proxy
from tests.support.redis_bus import (
    WINDOW_MS,
    bus_on,
    fresh_nonce,
    nonce_at,
    pass_the_epoch,
    told,
    until,
)
from tools.servers import Redis

MakeRedis = Callable[..., Redis]

FRESH = "store too"
"""Of a nonce that was not used, as long as the epoch is young."""

AT_ONCE = ["--repl-diskless-sync-delay", "0"]
"""A replica need not wait five seconds for others."""


async def test_a_nonce_is_used_up_for_its_key_on_every_node(redis_url: str) -> None:
    clock = SteppableClock()
    async with bus_on(redis_url, clock, "a") as a, bus_on(redis_url, clock, "b") as b:
        nonce = fresh_nonce(clock)
        assert await told(a, nonce) == FRESH
        assert await told(a, nonce) == "used"
        assert await told(b, nonce) == "used"
        now = clock.now_ms()
        for app_key in ("other", "key:", "ke"):
            other = nonce_at(now, now, nonce=nonce.nonce, app_key=app_key)
            assert await told(b, other) == FRESH


async def test_what_belongs_to_key_and_what_to_nonce_is_never_mistaken(redis_url: str) -> None:
    clock = SteppableClock()
    async with bus_on(redis_url, clock) as bus:
        now = clock.now_ms()
        assert await told(bus, nonce_at(now, now, app_key="a", nonce="b:c")) == FRESH
        assert await told(bus, nonce_at(now, now, app_key="a:b", nonce="c")) == FRESH


async def test_of_many_at_once_one_gets_a_nonce(redis_url: str) -> None:
    clock = SteppableClock()
    async with bus_on(redis_url, clock, "a") as a, bus_on(redis_url, clock, "b") as b:
        nonces = [fresh_nonce(clock) for _ in range(40)]
        words: dict[str, list[str]] = {nonce.nonce: [] for nonce in nonces}

        async def use(bus: object, nonce: NonceUse) -> None:
            words[nonce.nonce].append(await told(bus, nonce))  # type: ignore[arg-type] # a or b

        async with trio.open_nursery() as nursery:
            for nonce in nonces:
                for bus in (a, b, a, b, a):
                    nursery.start_soon(use, bus, nonce)
        assert all(sorted(told_) == [FRESH, *["used"] * 4] for told_ in words.values())
        both = a.statistics(), b.statistics()
        assert sum(statistics.nonces for statistics in both) == 200
        assert sum(statistics.nonce_trips for statistics in both) <= 20


async def test_a_nonce_is_kept_until_it_expires_and_no_longer(
    redis_url: str, redis_server: Redis
) -> None:
    clock = SteppableClock()
    async with bus_on(redis_url, clock) as bus:
        now = clock.now_ms()
        await bus.use_nonce(nonce_at(now, now, nonce="n" * 16))
        left = int(redis_server.execute("PTTL", f"taskd:nonce:3:key:{'n' * 16}"))
        assert 2 * WINDOW_MS - 5_000 < left <= 2 * WINDOW_MS
        short = NonceUse(
            app_key="key", nonce="short", expires_at=clock.now_ms() + 50, signed_at=now
        )
        await bus.use_nonce(short)
        name = "taskd:nonce:3:key:short"
        await until(lambda: redis_server.execute("EXISTS", name).endswith("0"))


async def test_clusters_that_share_a_server_share_nothing(
    redis_url: str, redis_server: Redis
) -> None:
    clock = SteppableClock()
    async with (
        bus_on(f"{redis_url}?prefix=one", clock) as one,
        bus_on(f"{redis_url}?prefix=two", clock) as two,
        bus_on(redis_server.database_url(3), clock) as three,
    ):
        nonce = fresh_nonce(clock)
        assert [await told(bus, nonce) for bus in (one, two, three)] == [FRESH] * 3
        assert [bus.leads_timer() for bus in (one, two, three)] == [True] * 3
    assert int(redis_server.execute("-n", "3", "DBSIZE").split()[-1]) >= 2


# What Redis forgets.


async def test_after_a_flush_what_was_signed_before_is_refused(
    redis_url: str, redis_server: Redis
) -> None:
    clock = SteppableClock()
    async with bus_on(redis_url, clock) as bus:
        used = fresh_nonce(clock)
        assert await told(bus, used) == FRESH
        redis_server.execute("FLUSHALL")
        assert await told(bus, used) == "early"
        assert "began to keep" in (bus.unready() or "")
        # What is signed now may have been signed, and used, by a clock a bit ahead.
        assert await told(bus, fresh_nonce(clock)) == "early"
        await pass_the_epoch(bus, clock)
        assert await told(bus, used) == "early"
        assert await told(bus, fresh_nonce(clock)) == FRESH
        assert bus.unready() is None


async def test_after_a_flush_the_epoch_begins_without_a_request(
    redis_url: str, redis_server: Redis
) -> None:
    clock = SteppableClock()
    async with bus_on(redis_url, clock) as bus:
        before = bus.statistics().epoch
        redis_server.execute("FLUSHALL")
        await until(lambda: bus.statistics().epoch not in {before, None}, within_s=2)


async def test_a_server_back_from_an_old_snapshot_begins_a_new_epoch(
    private_redis: MakeRedis,
) -> None:
    server = private_redis()

    clock = SteppableClock()
    async with bus_on(server.url, clock) as bus:
        server.execute("SAVE")  # with the epoch, without the nonce
        used = fresh_nonce(clock)
        assert await told(bus, used) == FRESH
        server.kill()
        server.start()
        await until(lambda: "began to keep" in (bus.unready() or ""))
        assert server.execute("EXISTS", "taskd:epoch").endswith("1")
        assert await told(bus, used) == "early"
        await pass_the_epoch(bus, clock)
        assert await told(bus, used) == "early"
        assert await told(bus, fresh_nonce(clock)) == FRESH


async def test_a_server_that_kept_all_refuses_used_nonces_after_a_restart(
    private_redis: MakeRedis,
) -> None:
    server = private_redis(append_only=True)

    clock = SteppableClock()
    async with bus_on(server.url, clock) as bus:
        used = fresh_nonce(clock)
        assert await told(bus, used) == FRESH
        server.kill()
        server.start()
        await until(lambda: "began to keep" in (bus.unready() or ""))
        assert await told(bus, used) == "early"


async def test_a_replica_that_takes_over_begins_a_new_epoch(private_redis: MakeRedis) -> None:
    first, second = private_redis(options=AT_ONCE), private_redis(options=AT_ONCE)

    clock = SteppableClock()
    with Proxy((first.host, first.port)) as proxy:
        url = f"redis://127.0.0.1:{proxy.port}/0"
        await _replicate(second, first)
        async with bus_on(url, clock) as bus:
            second.execute("REPLICAOF", "NO", "ONE")
            used = fresh_nonce(clock)  # which the replica never hears of
            assert await told(bus, used) == FRESH
            proxy._target = (second.host, second.port)
            proxy.cut()
            proxy.heal()
            await until(lambda: "began to keep" in (bus.unready() or ""))
            assert await told(bus, used) == "early"


async def test_a_server_that_took_over_anothers_data_and_is_back_begins_a_new_epoch(
    private_redis: MakeRedis,
) -> None:
    first, second = private_redis(options=AT_ONCE), private_redis(options=AT_ONCE)

    clock = SteppableClock()
    # A server's first replica begins a new history, so it is there before the bus.
    await _replicate(second, first)
    async with bus_on(first.url, clock) as bus:
        epoch = bus.statistics().epoch
        await until(lambda: second.execute("HGET", "taskd:epoch", "from") == str(epoch))
        second.execute("REPLICAOF", "NO", "ONE")
        used = fresh_nonce(clock)
        assert await told(bus, used) == FRESH
        await _replicate(first, second)  # its own data are thrown away
        first.execute("REPLICAOF", "NO", "ONE")
        # The same process, with an epoch that is its own: but the nonce is gone.
        run = server_id(first, "server", "run_id")
        assert first.execute("HGET", "taskd:epoch", "server").startswith(run)
        await until(lambda: bus.statistics().epoch not in {epoch, None}, within_s=2)
        assert await told(bus, used) == "early"


def server_id(server: Redis, section: str, name: str) -> str:
    lines = server.execute("INFO", section).splitlines()
    return next(line for line in lines if line.startswith(name)).partition(":")[2]


async def _replicate(replica: Redis, primary: Redis) -> None:
    replica.execute("REPLICAOF", primary.host, str(primary.port))
    await until(lambda: "master_link_status:up" in replica.execute("INFO", "replication"), 10)


async def test_an_epoch_begins_after_the_forgetting_however_slow_the_node_that_begins_it(
    redis_url: str, redis_server: Redis
) -> None:
    class SlowLink(Link):
        clock: SteppableClock

        async def call(self, *commands: Command) -> list[Answer]:
            self.clock.step(7_000)  # under way, while others use nonces and Redis is flushed
            answers = await super().call(*commands)
            if isinstance(answers[0], list) and answers[0][0] == b"pending":
                times.append(self.clock.now_ms())
            return answers

    times: list[int] = []

    clock = SteppableClock()
    target = parse_redis_url(redis_url)
    link = SlowLink(target, trio.CapacityLimiter(2))
    link.clock = clock
    nonces = Nonces(link, clock, Health(), prefix="taskd")
    await nonces.ensure_epoch(link)
    assert nonces.epoch is not None
    assert times
    assert nonces.epoch >= times[0] + 1_000
    assert redis_server.execute("HGET", "taskd:epoch", "from") == str(nonces.epoch)
    link.close()


async def test_nobody_settles_an_epoch_that_he_did_not_see_pending(redis_url: str) -> None:
    link = Link(parse_redis_url(redis_url), trio.CapacityLimiter(2))

    async def call(*command: str | int) -> Answer:
        (answer,) = await link.call(command)
        return answer

    assert await call("EVAL", NONCES, 1, "e", "first") == [b"pending", b"first"]
    assert await call("EVAL", NONCES, 1, "e", "second") == [b"pending", b"first"]
    await call("FLUSHALL")
    assert await call("EVAL", SETTLE, 1, "e", "first", 5) == 0
    assert await call("EVAL", NONCES, 1, "e", "third") == [b"pending", b"third"]
    assert await call("EVAL", SETTLE, 1, "e", "first", 5) == 0
    assert await call("EVAL", SETTLE, 1, "e", "third", 7) == 1
    assert await call("EVAL", SETTLE, 1, "e", "third", 9) == 0
    assert await call("EVAL", NONCES, 1, "e", "fourth") == [b"kept", b"7"]
    link.close()


@pytest.mark.parametrize("part", [0, 1], ids=["process", "history"])
async def test_an_epoch_of_another_process_or_history_is_none(
    redis_url: str, redis_server: Redis, part: int
) -> None:
    clock = SteppableClock()
    async with bus_on(redis_url, clock) as bus:
        assert await told(bus, fresh_nonce(clock)) == FRESH
        ids = redis_server.execute("HGET", "taskd:epoch", "server").split()
        ids[part] = "0" * 40
        redis_server.execute("HSET", "taskd:epoch", "server", " ".join(ids))
        assert await told(bus, fresh_nonce(clock)) == "early"


# What is signed by a clock that is ahead.


async def test_of_what_is_signed_in_the_future_the_store_keeps_a_record(redis_url: str) -> None:
    clock = SteppableClock()
    async with bus_on(redis_url, clock) as bus:
        clock.step(3 * WINDOW_MS)
        now = clock.now_ms()
        assert await told(bus, nonce_at(now, now)) == "alone"
        assert await told(bus, nonce_at(now + 5_000, now)) == "store too"
        twice = nonce_at(now - 1_000, now)
        doubled = NonceUse(
            app_key="key",
            nonce="doubled-hour",
            expires_at=twice.expires_at,
            signed_at=now - 1_000,
            signed_latest=now + 3_600_000,
        )
        assert await told(bus, doubled) == "store too"


async def test_the_store_is_asked_about_all_that_may_have_been_used_in_its_future(
    redis_url: str, redis_server: Redis
) -> None:
    clock = SteppableClock()
    async with bus_on(redis_url, clock) as bus:
        clock.step(3 * WINDOW_MS)
        now = clock.now_ms()
        ahead = nonce_at(now + WINDOW_MS, now)
        assert await told(bus, ahead) == "store too"
        redis_server.execute("FLUSHALL")
        await until(lambda: "began to keep" in (bus.unready() or ""))
        # By now it is signed after the epoch, and not ahead any more.
        clock.step(WINDOW_MS + 1_000)
        assert await told(bus, ahead) == "store too"


@pytest.mark.parametrize(
    ("signed_at", "expires_at", "alone"),
    [
        (1_000_000, 1_600_000, True),  # signed now, long after the epoch
        (1_000_001, 1_600_001, False),  # signed ahead: the Store keeps a record
        (700_000, 1_600_000, True),
        (699_999, 1_600_000, False),  # may have been used ahead, before the epoch
    ],
)
def test_when_redis_word_is_enough(signed_at: int, expires_at: int, alone: bool) -> None:
    nonce = NonceUse(app_key="k", nonce="n", expires_at=expires_at, signed_at=signed_at)
    assert kept_alone(nonce, now=1_000_000, epoch=100_000) is alone


# Servers that can't be trusted with nonces.


async def test_a_server_that_evicts_is_refused_until_it_is_set_right(
    private_redis: MakeRedis,
) -> None:
    server = private_redis(options=["--maxmemory", "100mb", "--maxmemory-policy", "noeviction"])

    clock = SteppableClock()
    async with bus_on(server.url, clock) as bus:
        used = fresh_nonce(clock)
        assert await told(bus, used) == FRESH
        server.execute("CONFIG", "SET", "maxmemory-policy", "volatile-ttl")
        with pytest.raises(BusUnavailable, match=r"maxmemory-policy volatile-ttl.*noeviction"):
            await bus.use_nonce(fresh_nonce(clock))
        assert "noeviction" in (bus.unready() or "")
        assert bus.leads_timer()
        server.execute("CONFIG", "SET", "maxmemory-policy", "noeviction")
        # What was evicted meanwhile is not known.
        await until(lambda: "began to keep" in (bus.unready() or ""), within_s=2)
        assert await told(bus, used) == "early"


async def test_a_server_without_a_limit_of_memory_may_have_any_policy(
    private_redis: MakeRedis,
) -> None:
    server = private_redis(options=["--maxmemory-policy", "allkeys-lru"])

    clock = SteppableClock()
    async with bus_on(server.url, clock) as bus:
        assert await told(bus, fresh_nonce(clock)) == FRESH


@pytest.mark.parametrize("prefix", ["taskd", "{taskd}"])
@pytest.mark.parametrize("slots", [True, False])
async def test_a_server_in_cluster_mode_is_refused(
    private_redis: MakeRedis, prefix: str, slots: bool
) -> None:
    """Whether its keys lie in one slot or in several, and whether it serves any."""
    server = private_redis(options=["--cluster-enabled", "yes"])
    if slots:
        server.execute("CLUSTER", "ADDSLOTSRANGE", "0", "16383")

    clock = SteppableClock()
    async with bus_on(f"{server.url}?prefix={prefix}", clock) as bus:
        await until(lambda: "cluster mode" in (bus.unready() or ""))
        assert await told(bus, fresh_nonce(clock)) == "unavailable"


async def test_a_server_without_memory_left_takes_no_nonce(private_redis: MakeRedis) -> None:
    server = private_redis()

    clock = SteppableClock()
    async with bus_on(server.url, clock) as bus:
        server.execute("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(BusUnavailable, match="out of memory: raise its maxmemory"):
            await bus.use_nonce(fresh_nonce(clock))
        assert "out of memory" in (bus.unready() or "")
        server.execute("CONFIG", "SET", "maxmemory", "0")
        await until(lambda: bus.unready() is None, within_s=2)
        assert await told(bus, fresh_nonce(clock)) == FRESH


async def test_a_replica_is_refused(private_redis: MakeRedis) -> None:
    primary, replica = private_redis(options=AT_ONCE), private_redis()

    clock = SteppableClock()
    await _replicate(replica, primary)
    async with bus_on(replica.url, clock) as bus:
        assert "is a replica" in (bus.unready() or "")
        assert await told(bus, fresh_nonce(clock)) == "unavailable"

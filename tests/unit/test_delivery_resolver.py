from __future__ import annotations

import socket
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
import trio.testing

from taskd.delivery import resolver as resolver_module
from taskd.delivery.hosts import HostsFile
from taskd.delivery.resolver import SHORT_LASTS_S, SLOW_LASTS_S, Resolver, system_lookup
from taskd.errors import SystemShort, Unreachable

pytestmark = pytest.mark.deadline(20)


class Names:
    """A lookup that hangs until it is let go, name by name."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.hanging: dict[str, threading.Event] = {}

    def hang(self, name: str) -> None:
        self.hanging[name] = threading.Event()

    def __call__(self, host: str) -> Sequence[str]:
        self.asked.append(host)
        if host in self.hanging:
            self.hanging[host].wait(10)
        return [f"10.0.0.{len(self.asked)}"]


async def until(condition: object) -> None:
    assert callable(condition)
    while not condition():
        await trio.sleep(0.002)


async def test_concurrent_resolutions_of_a_name_share_one_lookup() -> None:
    names = Names()
    names.hang("a")
    resolver = Resolver(names)
    answers: list[tuple[str, ...]] = []

    async def ask() -> None:
        answers.append(await resolver.resolve("a"))

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        names.hanging["a"].set()
    assert answers == [("10.0.0.1",)] * 20
    assert names.asked == ["a"]
    assert resolver.busy == 0
    assert await resolver.resolve("a") == ("10.0.0.2",)  # nothing is cached


async def test_a_hung_name_holds_one_thread_and_neither_the_loop_nor_other_names() -> None:
    names = Names()
    names.hang("hung")
    resolver = Resolver(names, max_threads=2)

    async def ask_in_vain() -> None:
        with trio.move_on_after(0.05):
            await resolver.resolve("hung")
            pytest.fail("a hung name was resolved")

    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(ask_in_vain)
    assert resolver.busy == 1
    for _ in range(10):
        await resolver.resolve("fine")
    await ask_in_vain()  # joins the lookup that still hangs
    assert names.asked.count("hung") == 1
    assert resolver.busy == 1
    names.hanging["hung"].set()
    await until(lambda: resolver.busy == 0)


async def test_names_wait_for_a_thread_and_those_no_longer_wanted_are_dropped() -> None:
    names = Names()
    names.hang("one")
    names.hang("two")
    resolver = Resolver(names, max_threads=2)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(resolver.resolve, "one")
        nursery.start_soon(resolver.resolve, "two")
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(0.02):
            await resolver.resolve("dropped")
        nursery.start_soon(resolver.resolve, "three")
        await trio.testing.wait_all_tasks_blocked()
        assert resolver.busy == 2
        names.hanging["one"].set()
        await until(lambda: "three" in names.asked)
        names.hanging["two"].set()
    assert sorted(names.asked) == ["one", "three", "two"]
    assert resolver.busy == 0


async def test_a_name_that_cannot_be_resolved_is_unreachable_for_all_who_wait() -> None:
    def fail(host: str) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    resolver = Resolver(fail)
    for _ in range(2):
        with pytest.raises(Unreachable, match=r"x\.test can't be resolved: Name or service not"):
            await resolver.resolve("x.test")


async def test_a_name_without_addresses_is_unreachable() -> None:
    with pytest.raises(Unreachable, match="has no address"):
        await Resolver(lambda _: []).resolve("x.test")


async def test_a_system_without_threads_fails_the_lookup_and_recovers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    resolver = Resolver(lambda _: ["10.0.0.1"])
    with monkeypatch.context() as patch:
        patch.setattr(trio.lowlevel, "start_thread_soon", refuse)
        with pytest.raises(SystemShort, match="can't start new thread"):
            await resolver.resolve("a")
    assert await resolver.resolve("a") == ("10.0.0.1",)


def test_the_system_knows_localhost() -> None:
    addresses = system_lookup("localhost")
    assert set(addresses) <= {"127.0.0.1", "::1"}
    assert len(set(addresses)) == len(addresses) > 0


async def hang_all(resolver: Resolver, nursery: trio.Nursery, names: list[str]) -> None:
    """Ask for names that hang, until those that may have a thread have one."""
    for name in names:
        nursery.start_soon(resolver.resolve, name)
    await trio.testing.wait_all_tasks_blocked()


def let_go(lookup: Names) -> None:
    for event in lookup.hanging.values():
        event.set()


async def test_200_names_that_hang_leave_threads_to_one_that_nobody_knows() -> None:
    lookup = Names()
    hung = [f"hung-{number}" for number in range(200)]
    for name in hung:
        lookup.hang(name)
    resolver = Resolver(lookup, max_threads=256)

    async with trio.open_nursery() as nursery:
        await hang_all(resolver, nursery, hung)
        assert resolver.busy == 200
        assert await resolver.resolve("another")
        let_go(lookup)


async def test_however_many_hang_names_that_were_answered_lately_have_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("taskd.delivery.resolver.PROMPT_S", 60.0)  # on a busy machine, too
    lookup = Names()
    hung = [f"hung-{number}" for number in range(100)]
    for name in hung:
        lookup.hang(name)
    resolver = Resolver(lookup, max_threads=16)

    await resolver.resolve("known")
    async with trio.open_nursery() as nursery:
        await hang_all(resolver, nursery, hung)
        assert resolver.busy == 14  # an eighth is kept
        assert await resolver.resolve("known")
        with trio.move_on_after(0.02):
            await resolver.resolve("another")
            pytest.fail("a name that nobody knows had a thread of those that are kept")
        let_go(lookup)


async def test_names_that_were_slow_leave_most_threads_to_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lookup = Names()
    hung = [f"hung-{number}" for number in range(20)]
    resolver = Resolver(lookup, max_threads=16)

    with monkeypatch.context() as patch:
        patch.setattr("taskd.delivery.resolver.PROMPT_S", -1.0)
        for name in hung:
            await resolver.resolve(name)
    for name in hung:
        lookup.hang(name)
    async with trio.open_nursery() as nursery:
        await hang_all(resolver, nursery, hung)
        assert resolver.busy == 4
        assert await resolver.resolve("another")
        let_go(lookup)
    assert resolver.busy == 0


async def test_names_of_one_domain_leave_half_of_what_is_free_to_others() -> None:
    lookup = Names()
    silent = [f"{number}.silent.test" for number in range(100)]
    others = [f"{number}.other.test" for number in range(3)]
    for name in (*silent, *others):
        lookup.hang(name)
    resolver = Resolver(lookup, max_threads=32)

    async with trio.open_nursery() as nursery:
        await hang_all(resolver, nursery, silent)
        assert resolver.busy == 14  # of the 28 that are left to names like these
        await hang_all(resolver, nursery, others)
        assert resolver.busy == 17
        assert await resolver.resolve("a.third.test")
        let_go(lookup)
    assert resolver.busy == 0
    assert sorted(lookup.asked) == sorted([*silent, *others, "a.third.test"])


async def test_domains_are_served_in_turns() -> None:
    lookup = Names()
    lookup.hang("first")
    resolver = Resolver(lookup, max_threads=1)

    async with trio.open_nursery() as nursery:
        await hang_all(resolver, nursery, ["first"])
        for name in ("1.a.test", "2.a.test", "3.a.test", "1.b.test", "1.c.test"):
            await hang_all(resolver, nursery, [name])
        let_go(lookup)
    assert lookup.asked[1:4] == ["1.a.test", "1.b.test", "1.c.test"]


def test_a_name_that_was_slow_once_is_as_any_other_after_a_while() -> None:
    standings = resolver_module._Standings()
    standings.note("a", answered=True, took_s=2.0, now=10.0)
    standings.note("b", answered=True, took_s=0.5, now=10.0)
    standings.note("c", answered=False, took_s=0.5, now=10.0)
    lanes = {name: standings.of(name, 10.1).name for name in "abcd"}
    assert lanes == {"a": "SLOW", "b": "PROMPT", "c": "NEW", "d": "NEW"}
    assert standings.of("a", 10.0 + SLOW_LASTS_S).name == "NEW"
    standings.note("a", answered=True, took_s=0.5, now=11.0)
    standings.note("b", answered=False, took_s=9.0, now=11.0)
    assert {name: standings.of(name, 11.1).name for name in "ab"} == {"a": "PROMPT", "b": "SLOW"}


async def test_a_name_of_the_hosts_file_waits_for_no_thread(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("127.0.0.1 here.test\n")
    lookup = Names()
    hung = [f"hung-{number}" for number in range(10)]
    for name in hung:
        lookup.hang(name)
    resolver = Resolver(lookup, max_threads=1, hosts=HostsFile(path))

    async with trio.open_nursery() as nursery:
        await hang_all(resolver, nursery, hung)
        assert resolver.busy == 1
        assert await resolver.resolve("here.test")
        assert await resolver.resolve("localhost")
        let_go(lookup)


async def test_where_the_system_gives_no_more_threads_names_wait_for_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lookup = Names()
    lookup.hang("hung")
    resolver = Resolver(lookup, max_threads=16)

    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    answers: list[tuple[str, ...]] = []

    async def ask() -> None:
        answers.append(await resolver.resolve("a"))

    async with trio.open_nursery() as nursery:
        await hang_all(resolver, nursery, ["hung"])
        with monkeypatch.context() as patch:
            patch.setattr(trio.lowlevel, "start_thread_soon", refuse)
            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            assert not answers
        let_go(lookup)
    assert len(answers) == 1
    assert resolver.busy == 0


async def test_a_name_that_hangs_makes_no_shortage_of_threads_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lookup = Names()
    lookup.hang("hung")
    resolver = Resolver(lookup, max_threads=16)

    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    async with trio.open_nursery() as nursery:
        await hang_all(resolver, nursery, ["hung"])
        with monkeypatch.context() as patch:
            patch.setattr(trio.lowlevel, "start_thread_soon", refuse)
            nursery.start_soon(resolver.resolve, "a")
            await trio.testing.wait_all_tasks_blocked()
        await trio.sleep(SHORT_LASTS_S)
        with trio.fail_after(5):
            assert await resolver.resolve("b")
        let_go(lookup)

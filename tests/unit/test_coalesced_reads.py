"""Calls that are made together."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from taskd.runtime import coalesced_reads
from taskd.runtime.coalesced_reads import CoalescedReads


class Source:
    """Answers with the keys in capitals, after a second, but for those that are odd."""

    def __init__(self) -> None:
        self.calls: list[set[str]] = []
        self.failures: list[Exception] = []
        self.values: dict[str, str] = {}

    async def read(self, keys: Collection[str]) -> Mapping[str, str]:
        self.calls.append(set(keys))
        await trio.sleep(1)
        if self.failures:
            raise self.failures.pop()
        return {key: self.values[key] for key in keys if key in self.values}


class Askers:
    """Asks for keys, each in a task of its own."""

    def __init__(self, nursery: trio.Nursery, source: Source) -> None:
        self.values: CoalescedReads[str, str] = CoalescedReads(source.read)
        self.answers: dict[str, str | Exception | None] = {}
        self.scopes: dict[str, trio.CancelScope] = {}
        self._nursery = nursery

    async def ask(self, *keys: str) -> None:
        for key in keys:
            self._nursery.start_soon(self._ask, key)
            await wait_all_tasks_blocked()

    async def _ask(self, key: str) -> None:
        with trio.CancelScope() as self.scopes[key]:
            try:
                self.answers[key] = await self.values.get(key)
            except ValueError as error:
                self.answers[key] = error


@pytest.mark.virtual_clock
async def test_what_is_asked_meanwhile_is_read_together_and_later() -> None:
    source = Source()
    async with trio.open_nursery() as nursery:
        askers = Askers(nursery, source)
        await askers.ask("a")
        source.values = {"a": "A", "b": "B", "c": "C"}
        await askers.ask("b", "c", "d")
        assert source.calls == [{"a"}]
    assert source.calls == [{"a"}, {"b", "c", "d"}]
    assert askers.answers == {"a": "A", "b": "B", "c": "C", "d": None}
    source.values.clear()
    assert await askers.values.get("a") is None  # nothing is remembered


@pytest.mark.virtual_clock
async def test_who_leads_a_round_may_give_up() -> None:
    source = Source()
    source.values = {"b": "B", "c": "C"}
    async with trio.open_nursery() as nursery:
        askers = Askers(nursery, source)
        await askers.ask("a", "b", "c")
        askers.scopes["a"].cancel()
        await wait_all_tasks_blocked()
        askers.scopes["b"].cancel()
    assert askers.answers == {"c": "C"}
    assert source.calls == [{"a"}, {"b", "c"}, {"b", "c"}]


@pytest.mark.virtual_clock
async def test_a_failure_is_each_ones_of_its_round_and_nobody_elses() -> None:
    source = Source()
    source.values = {"d": "D"}
    async with trio.open_nursery() as nursery:
        askers = Askers(nursery, source)
        await askers.ask("a", "b", "c")
        source.failures = [ValueError("second"), ValueError("first")]
        await trio.sleep(1.5)
        await askers.ask("d")
    told = {key: str(answer) for key, answer in askers.answers.items()}
    assert told == {"a": "first", "b": "second", "c": "second", "d": "D"}
    assert source.calls == [{"a"}, {"b", "c"}, {"d"}]


@pytest.mark.virtual_clock
async def test_a_round_has_only_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coalesced_reads, "MAX_KEYS", 2)

    source = Source()
    async with trio.open_nursery() as nursery:
        askers = Askers(nursery, source)
        await askers.ask(*"abcdef")
    assert source.calls == [{"a"}, {"b", "c"}, {"d", "e"}, {"f"}]
    assert askers.answers == dict.fromkeys("abcdef")

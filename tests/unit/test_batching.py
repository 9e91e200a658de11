"""Calls that share transactions, with a database that does as it is told."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from taskd.errors import StoreError, StoreUnavailable
from taskd.stores import batching
from taskd.stores.batching import Answers, BatchingWriter, Call, Operation, answers, fail, wake
from taskd.stores.operations.session import at_once


class Refused(StoreError):
    """An operation does not take this argument."""


class Poison(Exception):
    """An operation breaks over this argument."""


class Culprit(Exception):
    """What is told of one that broke alone."""


class Database(BatchingWriter):
    """Carries out a batch when a test says so.

    Attributes:
        commits: what becomes of each COMMIT, an error or None; beyond the last, they go well.
        gate: until it is set, no COMMIT ends.
        waits: whether a COMMIT takes time at all.
        kept: what was committed.
        told: how many writes the database failed at a time, and why.
        transactions: the arguments of each that was begun.
    """

    def __init__(self, *commits: Exception | None) -> None:
        self.queue: list[Call] = []
        super().__init__(self.queue.append)
        self.commits = list(commits)
        self.kept: list[str] = []
        self.told: list[tuple[int, str]] = []
        self.transactions: list[list[str]] = []
        self.gate = trio.Event()
        self.gate.set()
        self.waits = True

    def take(self) -> list[Call]:
        batch = self.queue.copy()
        self.queue.clear()
        return batch

    async def step(self) -> None:
        batch = self.take()
        await self.carry_out(batch)
        wake(batch)

    def close(self) -> None:
        self._closing = True

    async def _commit(self, calls: Sequence[Call]) -> Answers:
        session: list[str] = []
        self.transactions.append([call.argument for call in calls])
        answered = await answers(calls, session)
        if self.waits:
            await self.gate.wait()
        error = self.commits.pop(0) if self.commits else None
        if error is not None:
            raise error
        self.kept += session
        return answered

    def _waiting(self) -> int:
        return len(self.queue)

    def _reason(self, error: Exception) -> Exception:
        return Culprit(str(error)) if isinstance(error, Poison) else error

    def _failed(self, writes: int, error: StoreUnavailable) -> None:
        self.told.append((writes, str(error)))


async def put(session: list[str], arguments: Sequence[str]) -> list[str | StoreError]:
    if "poison" in arguments:
        raise Poison("it broke")
    taken = [argument for argument in arguments if not argument.startswith("no")]
    session += taken
    return [argument.upper() if argument in taken else Refused(argument) for argument in arguments]


PUT = Operation("put", put)


class Callers:
    """Call, each in a task of its own, and keep what they are told."""

    def __init__(self, nursery: trio.Nursery, database: Database) -> None:
        self.told: dict[str, str | Exception] = {}
        self.scopes: dict[str, trio.CancelScope] = {}
        self._nursery = nursery
        self._database = database

    async def call(
        self,
        *arguments: str,
        operation: Operation[str, str] = PUT,
        within_s: float | None = None,
    ) -> None:
        for argument in arguments:
            self._nursery.start_soon(self._call, operation, argument, within_s)
            await wait_all_tasks_blocked()

    async def _call(
        self, operation: Operation[str, str], argument: str, within_s: float | None
    ) -> None:
        with trio.CancelScope() as scope:
            self.scopes[argument] = scope
            try:
                result = await self._database.execute(operation, argument, within_s=within_s)
                self.told[argument] = result
            except Exception as error:  # noqa: BLE001 - it is looked at
                self.told[argument] = error

    def kinds(self) -> dict[str, str | type[Exception]]:
        return {
            argument: told if isinstance(told, str) else type(told)
            for argument, told in self.told.items()
        }


async def test_each_operation_is_run_once_and_each_caller_has_its_own_result() -> None:
    runs: list[tuple[str, list[str]]] = []

    def named(name: str) -> Operation[str, str]:
        async def run(session: list[str], arguments: Sequence[str]) -> Sequence[str | StoreError]:
            runs.append((name, list(arguments)))
            session += arguments
            return [f"{name} {argument}" for argument in arguments]

        return Operation(name, run)

    database = Database()
    async with trio.open_nursery() as nursery:
        callers = Callers(nursery, database)
        one, other = named("one"), named("other")
        for argument, operation in (("a", one), ("b", other), ("c", one), ("d", other)):
            await callers.call(argument, operation=operation)
        await database.step()
    assert runs == [("one", ["a", "c"]), ("other", ["b", "d"])]
    assert callers.told == {"a": "one a", "b": "other b", "c": "one c", "d": "other d"}
    assert database.kept == ["a", "c", "b", "d"]


async def test_an_operation_may_wait_for_its_server() -> None:
    async def slow(session: list[str], arguments: Sequence[str]) -> list[str | StoreError]:
        await trio.lowlevel.checkpoint()
        return await put(session, arguments)

    database = Database()
    async with trio.open_nursery() as nursery:
        callers = Callers(nursery, database)
        await callers.call("a", "no", operation=Operation("slow", slow))
        await database.step()
    assert callers.kinds() == {"a": "A", "no": Refused}


async def test_a_refused_call_fails_alone_and_shares_the_transaction() -> None:
    database = Database()
    async with trio.open_nursery() as nursery:
        callers = Callers(nursery, database)
        await callers.call("a", "no", "b")
        await database.step()
    assert callers.kinds() == {"a": "A", "no": Refused, "b": "B"}
    assert database.transactions == [["a", "no", "b"]]
    done = database.statistics()
    assert (done.calls, done.batches, done.failures) == (3, 1, 0)


async def test_a_call_that_breaks_its_transaction_fails_alone_and_the_others_are_written() -> None:
    database = Database()
    async with trio.open_nursery() as nursery:
        callers = Callers(nursery, database)
        await callers.call("a", "poison", "no", "b")
        await database.step()
    assert callers.kinds() == {"a": "A", "poison": Culprit, "no": Refused, "b": "B"}
    # In the order in which they came.
    assert database.transactions[1:] == [["a"], ["poison"], ["no"], ["b"]]
    assert database.kept == ["a", "b"]
    done = database.statistics()
    assert (done.calls, done.batches, done.failures) == (3, 3, 0)


async def test_an_operation_with_too_few_results_writes_nothing() -> None:
    async def forgetful(session: list[str], arguments: Sequence[str]) -> list[str | StoreError]:
        session += arguments
        return []

    database = Database()
    async with trio.open_nursery() as nursery:
        callers = Callers(nursery, database)
        await callers.call("a", "b", operation=Operation("forgetful", forgetful))
        await database.step()
    assert callers.kinds() == {"a": ValueError, "b": ValueError}
    assert database.kept == []


async def test_if_the_database_fails_each_caller_has_an_error_of_its_own() -> None:
    error = StoreUnavailable("the disk is full")
    database = Database(error)
    async with trio.open_nursery() as nursery:
        callers = Callers(nursery, database)
        await callers.call("a", "b")
        await database.step()
        await wait_all_tasks_blocked()
        told = list(callers.told.values())
        assert [str(one) for one in told] == ["the disk is full"] * 2
        assert all(isinstance(one, StoreUnavailable) and one.__cause__ is error for one in told)
        assert told[0] is not told[1]
        assert database.transactions == [["a", "b"]]
        assert database.kept == []
        # The next batch tries afresh.
        await callers.call("c")
        await database.step()
    assert callers.told["c"] == "C"
    done = database.statistics()
    assert (done.calls, done.batches, done.failures) == (1, 1, 1)
    assert database.told == [(2, "the disk is full")]


async def test_if_the_database_fails_while_each_is_tried_alone_the_rest_is_not_tried() -> None:
    database = Database(None, StoreUnavailable("it went away"))
    async with trio.open_nursery() as nursery:
        callers = Callers(nursery, database)
        await callers.call("a", "poison", "b", "c")
        await database.step()
    assert callers.kinds() == {
        "a": "A",
        "poison": Culprit,
        "b": StoreUnavailable,
        "c": StoreUnavailable,
    }
    assert database.kept == ["a"]
    assert database.transactions[1:] == [["a"], ["poison"], ["b"]]
    assert database.told == [(2, "it went away")]


async def test_who_is_cancelled_before_its_batch_begins_is_left_out_and_may_call_again() -> None:
    database = Database()
    async with trio.open_nursery() as nursery:
        callers = Callers(nursery, database)
        await callers.call("a", "b")
        callers.scopes["a"].cancel()
        await wait_all_tasks_blocked()
        await callers.call("a")
        await database.step()
    assert callers.told == {"a": "A", "b": "B"}
    assert database.kept == ["b", "a"]


async def test_a_batch_that_nobody_waits_for_is_none() -> None:
    database = Database()
    async with trio.open_nursery() as nursery:
        callers = Callers(nursery, database)
        await callers.call("a")
        callers.scopes["a"].cancel()
        await wait_all_tasks_blocked()
        await database.step()
    assert database.transactions == []


async def test_who_is_cancelled_later_is_written_and_not_told() -> None:
    database = Database()
    database.gate = trio.Event()
    async with trio.open_nursery() as nursery:
        callers = Callers(nursery, database)
        await callers.call("a", "b")
        nursery.start_soon(database.step)
        await wait_all_tasks_blocked()
        callers.scopes["a"].cancel()
        await wait_all_tasks_blocked()
        assert callers.scopes["a"].cancelled_caught
        database.gate.set()
    assert callers.told == {"b": "B"}
    assert database.kept == ["a", "b"]


async def test_who_is_cancelled_once_it_was_woken_still_has_its_result() -> None:
    database = Database()
    async with trio.open_nursery() as nursery:
        callers = Callers(nursery, database)
        await callers.call("a")
        await database.step()
        callers.scopes["a"].cancel()
    assert callers.told == {"a": "A"}


async def test_who_is_cancelled_already_asks_for_nothing() -> None:
    database = Database()
    with trio.CancelScope() as scope:
        scope.cancel()
        await database.execute(PUT, "a")
    assert scope.cancelled_caught
    assert database.statistics().waiting == 0


async def test_a_closed_writer_takes_no_call_and_finishes_those_it_has() -> None:
    database = Database()
    async with trio.open_nursery() as nursery:
        callers = Callers(nursery, database)
        await callers.call("a")
        database.close()
        await callers.call("b")
        assert callers.kinds() == {"b": StoreUnavailable}
        assert database.statistics().waiting == 1
        await database.step()
    assert callers.told["a"] == "A"


async def test_a_batch_that_is_cancelled_keeps_the_results_that_are_certain() -> None:
    database = Database()
    async with trio.open_nursery() as nursery:
        callers = Callers(nursery, database)
        await callers.call("a", "poison", "b")
        batch = database.take()
        with trio.CancelScope() as scope:

            async def cut(_session: list[str], _arguments: Sequence[str]) -> list[str | StoreError]:
                scope.cancel()
                return ["B"]

            batch[2].operation = Operation("cut", cut)
            await database.carry_out(batch)
        assert scope.cancelled_caught
        fail(batch, StoreUnavailable("nobody knows"))
        wake(batch)
    assert callers.kinds() == {"a": "A", "poison": Culprit, "b": StoreUnavailable}
    assert str(callers.told["b"]) == "nobody knows"
    assert database.kept == ["a"]


UNKNOWN_AT_ALL = "the store did not answer in time; whether this was written is not known"
NOTHING_AT_ALL = "the store did not answer in time; nothing was written"
UNKNOWN = "the store did not answer within 5 s; whether this was written is not known"
NOTHING = "the store did not answer within 5 s; nothing was written"


@pytest.mark.virtual_clock
async def test_who_is_late_before_the_batch_began_is_left_out_and_may_call_again() -> None:
    database = Database()
    async with trio.open_nursery() as nursery:
        callers = Callers(nursery, database)
        began = trio.current_time()
        await callers.call("a", within_s=5)
        await trio.sleep(1)
        await callers.call("b", within_s=5)
        await trio.sleep_until(began + 5.5)
        assert str(callers.told.pop("a")) == NOTHING
        await callers.call("a", within_s=5)
        await database.step()
    assert callers.told == {"a": "A", "b": "B"}
    assert database.kept == ["b", "a"]
    assert trio.current_time() == began + 5.5


@pytest.mark.virtual_clock
async def test_who_is_late_once_the_batch_has_begun_is_told_so_and_its_result_is_nobodys() -> None:
    database = Database()
    database.gate = trio.Event()
    async with trio.open_nursery() as nursery:
        callers = Callers(nursery, database)
        await callers.call("a", within_s=5)
        await callers.call("b", within_s=9)
        nursery.start_soon(database.step)
        await trio.sleep(6)
        error = callers.told["a"]
        assert isinstance(error, StoreUnavailable)
        assert str(error) == UNKNOWN
        database.gate.set()
        await wait_all_tasks_blocked()
        assert callers.told == {"a": error, "b": "B"}
        assert database.kept == ["a", "b"]
        await callers.call("c", within_s=5)
        await database.step()
    assert callers.told["c"] == "C"
    await trio.sleep(20)  # their deadlines pass unheard


@pytest.mark.virtual_clock
async def test_who_is_late_while_others_break_the_batch_is_written_like_the_rest() -> None:
    async def slow(session: list[str], arguments: Sequence[str]) -> list[str | StoreError]:
        await trio.sleep(6)
        return await put(session, arguments)

    database = Database()
    async with trio.open_nursery() as nursery:
        callers = Callers(nursery, database)
        breaks_late = Operation("slow", slow)
        await callers.call("a", operation=breaks_late, within_s=5)
        await callers.call("poison", "b", operation=breaks_late)
        await database.step()
    assert str(callers.told.pop("a")) == UNKNOWN
    assert callers.kinds() == {"poison": Culprit, "b": "B"}
    assert database.kept == ["a", "b"]


@pytest.mark.virtual_clock
async def test_a_call_with_a_deadline_can_not_be_cancelled() -> None:
    database = Database()
    async with trio.open_nursery() as nursery:
        callers = Callers(nursery, database)
        await callers.call("a", "b", within_s=5)
        for scope in callers.scopes.values():
            scope.cancel()
        await wait_all_tasks_blocked()
        assert callers.told == {}
        await database.step()
        await wait_all_tasks_blocked()
        assert callers.told == {"a": "A", "b": "B"}
        nursery.cancel_scope.cancel()  # even one that came before it
        trio.lowlevel.spawn_system_task(database.step)
        await callers._call(PUT, "c", 5)
    assert callers.told["c"] == "C"


@pytest.mark.virtual_clock
async def test_who_was_woken_at_the_moment_of_the_deadline_has_its_result() -> None:
    database = Database()
    async with trio.open_nursery() as nursery:
        callers = Callers(nursery, database)
        await callers.call("a", within_s=5)
        batch = database.take()
        await database.carry_out(batch)
        wake(batch)
        database._be_late((batch[0], trio.current_time() - 5))
        await callers.call("b", within_s=5)
        (late,) = batch = database.take()
        await database.carry_out(batch)
        database._be_late((late, trio.current_time() - 5))
        wake(batch)
    assert callers.told["a"] == "A"
    assert str(callers.told["b"]) == UNKNOWN
    assert database.kept == ["a", "b"]


@pytest.mark.virtual_clock
async def test_the_end_brings_deadlines_forward_and_leaves_calls_without_one_alone() -> None:
    database = Database()
    async with trio.open_nursery() as nursery:
        callers = Callers(nursery, database)
        began = trio.current_time()
        await callers.call("a", within_s=9)
        await callers.call("b")
        await trio.sleep(1)
        database.end_by(began + 5)
        await callers.call("c", within_s=9)
        await trio.sleep_until(began + 5.1)
        assert str(callers.told.pop("a")) == NOTHING
        assert "within 4 s; nothing was written" in str(callers.told.pop("c"))
        await callers.call("d", within_s=9)
        told = "there was no time left to write this: nothing was written"
        assert str(callers.told.pop("d")) == told
        await database.step()
    assert callers.told == {"b": "B"}
    assert database.kept == ["b"]


class Watched(Call):
    """Lets something happen at a certain step of who looks at it: what another thread does."""

    at_step = -1

    def __getattribute__(self, name: str) -> Any:  # noqa: ANN401 - whatever a call has
        if name in {"begun", "cancelled"}:
            self._step()
        return super().__getattribute__(name)

    def __setattr__(self, name: str, value: object) -> None:
        if name in {"begun", "cancelled"}:
            self._step()
        super().__setattr__(name, value)

    def _step(self) -> None:
        Watched.at_step -= 1
        if Watched.at_step == 0:
            Watched.happens()

    @staticmethod
    def happens() -> None:
        raise NotImplementedError


@pytest.mark.parametrize("step", range(1, 5))
async def test_at_whatever_step_a_caller_is_late_it_is_told_the_truth(
    step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "Call", Watched)
    database = Database()
    async with trio.open_nursery() as nursery:
        callers = Callers(nursery, database)
        await callers.call("a", within_s=60)
        batch = database.take()
        monkeypatch.setattr(Watched, "happens", lambda: database._be_late((batch[0], 0.0)))
        monkeypatch.setattr(Watched, "at_step", step)
        await database.carry_out(batch)
        monkeypatch.setattr(Watched, "at_step", -1)
        wake(batch)
    expected: dict[int, tuple[str, list[str]]]
    expected = {1: (NOTHING_AT_ALL, []), 2: (UNKNOWN_AT_ALL, [])}
    told, kept = expected.get(step, ("A", ["a"]))
    assert re.sub("within .* s;", "in time;", str(callers.told["a"])) == told
    assert database.kept == kept


@pytest.mark.parametrize("step", range(1, 6))
async def test_at_whatever_step_of_a_late_caller_its_batch_begins_it_is_told_the_truth(
    step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "Call", Watched)
    database = Database()
    database.waits = False
    async with trio.open_nursery() as nursery:
        callers = Callers(nursery, database)
        await callers.call("a", within_s=60)
        batch = database.take()
        monkeypatch.setattr(Watched, "happens", lambda: at_once(database.carry_out(batch)))
        monkeypatch.setattr(Watched, "at_step", step)
        database._be_late((batch[0], 0.0))
        monkeypatch.setattr(Watched, "at_step", -1)
        await database.carry_out(batch)
        wake(batch)
    told = re.sub("within .* s;", "in time;", str(callers.told["a"]))
    assert (told, database.kept) in [
        (NOTHING_AT_ALL, []),
        (UNKNOWN_AT_ALL, ["a"]),
        (UNKNOWN_AT_ALL, []),
    ]


@given(
    arguments=st.lists(st.sampled_from(["good", "no", "poison"]), min_size=1, max_size=8),
    commits=st.lists(
        st.sampled_from([None, StoreUnavailable("gone"), ValueError("broken")]), max_size=9
    ),
)
def test_whoever_is_told_so_is_written_once_and_nobody_else(
    arguments: list[str], commits: list[Exception | None]
) -> None:
    async def main() -> None:
        database = Database(*commits)
        told: list[str | Exception] = [Exception("nothing")] * len(arguments)

        async def call(number: int, argument: str) -> None:
            name = argument if argument == "poison" else f"{argument}-{number}"
            try:
                result = await database.execute(PUT, name)
                told[number] = result
            except Exception as error:  # noqa: BLE001 - it is looked at
                told[number] = error

        async with trio.open_nursery() as nursery:
            for number, argument in enumerate(arguments):
                nursery.start_soon(call, number, argument)
            await wait_all_tasks_blocked()
            await database.step()
        assert sorted(one for one in told if isinstance(one, str)) == sorted(
            one.upper() for one in database.kept
        )
        kinds = {
            "good": (str, StoreUnavailable, ValueError),
            "no": (Refused, StoreUnavailable, ValueError),
            "poison": (Culprit, StoreUnavailable),
        }
        for argument, one in zip(arguments, told, strict=True):
            assert isinstance(one, kinds[argument]), (argument, one)

    trio.run(main)

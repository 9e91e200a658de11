"""Calls that share transactions, with a database that does as it is told."""

from __future__ import annotations

from collections.abc import Sequence

import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from taskd.errors import StoreError, StoreUnavailable
from taskd.stores.batching import Answers, BatchingWriter, Call, Operation, answers, fail, wake


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

    async def call(self, *arguments: str, operation: Operation[str, str] = PUT) -> None:
        for argument in arguments:
            self._nursery.start_soon(self._call, operation, argument)
            await wait_all_tasks_blocked()

    async def _call(self, operation: Operation[str, str], argument: str) -> None:
        with trio.CancelScope() as scope:
            self.scopes[argument] = scope
            try:
                result = await self._database.execute(operation, argument)
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

"""The hook that runs async tests: each is run, on its clock and under its deadline."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager

import pytest
import trio

from tests.support.on_trio import pytest_pyfunc_call


def remaining_s() -> float:
    return trio.current_effective_deadline() - trio.current_time()


async def test_a_test_has_a_minute() -> None:
    assert 59 < remaining_s() <= 60


@pytest.mark.deadline(7)
async def test_a_test_may_have_another_deadline() -> None:
    assert 6 < remaining_s() <= 7


@pytest.mark.virtual_clock
async def test_on_the_virtual_clock_hours_pass_at_once() -> None:
    began = time.monotonic()
    await trio.sleep(36_000)
    assert time.monotonic() - began < 3_600


@pytest.mark.parametrize("given", [1, 2])
async def test_arguments_and_fixtures_are_given(
    given: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIVEN", str(given))
    assert given in {1, 2}


@pytest.fixture
def opened() -> Iterator[list[str]]:
    names: list[str] = []
    yield names
    assert names == ["entered", "left"]


@pytest.fixture
@asynccontextmanager
async def within(opened: list[str]) -> AsyncIterator[str]:
    opened.append("entered")
    await trio.lowlevel.checkpoint()
    yield "what it yields"
    await trio.lowlevel.checkpoint()
    opened.append("left")


async def test_a_fixture_that_is_an_async_context_manager_is_open_while_the_test_runs(
    within: str, opened: list[str]
) -> None:
    assert within == "what it yields"
    assert opened == ["entered"]


async def fails() -> None:
    raise LookupError


async def hangs() -> None:
    await trio.sleep_forever()


@pytest.mark.parametrize(("test", "error"), [(fails, LookupError), (hangs, trio.TooSlowError)])
def test_a_test_that_fails_or_takes_too_long_is_told(
    request: pytest.FixtureRequest, test: Callable[[], Awaitable[None]], error: type[Exception]
) -> None:
    item = pytest.Function.from_parent(request.node.parent, name="other", callobj=test)
    item.add_marker(pytest.mark.deadline(0.01))
    with pytest.raises(error):
        pytest_pyfunc_call(item)

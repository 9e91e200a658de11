"""Runs tests that are ``async def``: each in a Trio loop of its own, under a deadline.

``@pytest.mark.deadline(SECONDS)`` gives it, or a module's ``pytestmark`` all of a module,
another one than 60 s. ``@pytest.mark.virtual_clock`` gives it Trio's mock clock, which
jumps to the next deadline when nothing can happen: hours pass at once.

A fixture whose value is an async context manager (one that is decorated with
``@asynccontextmanager`` below ``@pytest.fixture``) is entered in the test's loop, and left
when the test has ended; the test gets what it yields. The deadline holds for it too.
"""

from __future__ import annotations

import inspect
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any

import pytest
import trio
from trio.testing import MockClock

_DEADLINE_S = 60.0
_VIRTUAL_DEADLINE_S = 200_000.0


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run an async test; other tests are pytest's."""
    test = pyfuncitem.obj
    if not inspect.iscoroutinefunction(test):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    arguments = {name: pyfuncitem.funcargs[name] for name in names}
    virtual = pyfuncitem.get_closest_marker("virtual_clock") is not None

    deadline = pyfuncitem.get_closest_marker("deadline")
    usual_s = _VIRTUAL_DEADLINE_S if virtual else _DEADLINE_S
    deadline_s: float = usual_s if deadline is None else deadline.args[0]

    async def bounded() -> None:
        with trio.fail_after(deadline_s):
            async with AsyncExitStack() as stack:
                for name, value in arguments.items():
                    if isinstance(value, AbstractAsyncContextManager):
                        arguments[name] = await stack.enter_async_context(value)
                await test(**arguments)

    clock: Any = MockClock(autojump_threshold=0) if virtual else None
    trio.run(bounded, clock=clock)
    return True

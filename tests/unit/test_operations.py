"""Operations of a store whose session answers at once."""

from __future__ import annotations

import pytest
import trio

from taskd.stores.operations.session import at_once


async def _answered() -> int:
    return 7


async def test_an_operation_is_carried_out_at_once() -> None:
    async def operation() -> int:
        return await _answered() + 1

    assert at_once(operation()) == 8


async def test_an_operation_that_waits_is_a_defect_and_is_ended() -> None:
    ended = []

    async def operation() -> None:
        try:
            await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.SUCCEEDED)
        finally:
            ended.append(True)

    with pytest.raises(RuntimeError, match="waited"):
        at_once(operation())
    assert ended


async def test_an_operations_error_is_its_own() -> None:
    async def operation() -> None:
        raise KeyError("missing")

    with pytest.raises(KeyError):
        at_once(operation())

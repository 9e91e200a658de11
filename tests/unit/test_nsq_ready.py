"""RDY: how free room is shared among connections."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from taskd.queues.nsq import ready


@given(st.integers(-5, 5000), st.integers(0, 40), st.integers(0, 1000))
def test_the_parts_add_up_to_the_room_and_are_nearly_equal(
    room: int, connections: int, turn: int
) -> None:
    parts = ready.share(room, connections, turn)
    assert len(parts) == connections
    if parts:
        assert sum(parts) == max(room, 0)
        assert max(parts) - min(parts) <= 1


def test_where_there_is_less_room_than_connections_each_gets_its_turn() -> None:
    served = [ready.share(2, 5, turn) for turn in range(5)]
    assert [sum(turns) for turns in zip(*served, strict=True)] == [2] * 5


def test_turns_change_nothing_where_all_have_room() -> None:
    assert {tuple(ready.share(12, 5, turn)) for turn in range(9)} == {(3, 3, 2, 2, 2)}


@given(st.integers(0, 1000), st.integers(0, 100_000))
def test_no_room_is_no_room_and_a_backlog_leaves_some(free: int, waiting: int) -> None:
    spare = ready.spare_room(free=free, waiting=waiting)
    assert spare <= free
    assert (spare == 0) == (free == 0)
    assert spare >= free - waiting


def test_rdy_covers_what_is_in_flight_without_needing_room() -> None:
    assert ready.target(10, 90, 2500) == 100
    assert ready.target(0, 90, 2500) == 0
    assert ready.target(10, 9999, 2500) == 2500


@given(st.integers(0, 2500), st.integers(0, 2500))
def test_only_real_changes_are_worth_a_command(current: int, wanted: int) -> None:
    lower = ready.worth_lowering(current, wanted)
    higher = ready.worth_raising(current, wanted)
    assert not (lower and higher)
    if wanted == 0:
        assert lower == (current > 0)
    if current == 0:
        assert higher == (wanted > 0)
    if not lower and not higher:
        assert abs(current - wanted) <= max(current, wanted) / 4

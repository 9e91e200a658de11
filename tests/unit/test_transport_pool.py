"""Which idle connections are kept, taken and closed, and what is learnt from them."""

from __future__ import annotations

import socket

import pytest

from taskd.delivery.transport import trust
from taskd.delivery.transport.connection import Connection
from taskd.delivery.transport.pool import KEEP_S, MAX_AGE_S, IdlePool
from taskd.delivery.transport.trust import FIRST_PAUSE_S, LONGEST_PAUSE_S, WATCHED_S, TrustBook

LONG_ENOUGH_S = WATCHED_S * 1.01


class Made(Connection):
    """A connection to a socket of the test's."""

    __slots__ = ("has_answered", "theirs")

    def __init__(self, origin: str = "a", now: float = 0.0) -> None:
        ours, self.theirs = socket.socketpair()
        ours.setblocking(False)
        self.theirs.setblocking(False)
        self.has_answered = True
        super().__init__(ours, origin=origin, address="a", opened_at=now)

    @property
    def answered(self) -> bool:
        return self.has_answered

    @property
    def is_closed(self) -> bool:
        try:
            return self.theirs.recv(1) == b""
        except BlockingIOError:
            return False

    def __del__(self) -> None:
        self.close()
        self.theirs.close()


def pool_of(*, keep_s: float = KEEP_S, most: int = 9) -> IdlePool:
    return IdlePool(max_per_origin=most, max_idle=most, keep_s=keep_s)


def keep(pool: IdlePool, connection: Made, now: float) -> Made:
    pool.give_back(connection, now, reusable=True)
    return connection


def prove(pool: IdlePool, now: float = 0.0, origin: str = "a") -> None:
    """Have a kept connection answer, and none left."""
    keep(pool, Made(origin, now), now)
    connection = pool.take(origin, now)
    assert connection is not None
    pool.give_back(connection, now, reusable=False)


def test_the_connection_used_last_is_taken_first_and_only_by_its_origin() -> None:
    pool = pool_of()
    prove(pool)
    first, second, other = (
        keep(pool, Made(origin), n / 10) for n, origin in enumerate(("a", "a", "b"))
    )
    assert pool.take("c", 1.0) is None
    assert [pool.take("a", 1.0), pool.take("a", 1.0)] == [second, first]
    assert pool.take("a", 1.0) is None
    assert len(pool) == 1
    pool.close_all()
    assert [first.is_closed, second.is_closed, other.is_closed] == [False, False, True]


def test_idle_connections_are_bounded_and_the_oldest_go() -> None:
    pool = IdlePool(max_per_origin=2, max_idle=3)
    made = [keep(pool, Made(origin), 1.0) for origin in ("a", "a", "a", "b", "c")]
    assert [each.is_closed for each in made] == [True, True, False, False, False]
    assert len(pool) == 3
    pool.close_all()
    assert all(each.is_closed for each in made[2:])


def test_idle_connections_are_closed_when_their_time_is_over() -> None:
    pool = pool_of()
    old, new = keep(pool, Made(), 0.0), keep(pool, Made(), 1.0)
    pool.close_idle(KEEP_S - 0.1)
    assert len(pool) == 2
    pool.close_idle(KEEP_S)
    assert (old.is_closed, new.is_closed) == (True, False)
    assert pool.take("a", 1.0 + KEEP_S) is None
    assert new.is_closed
    assert len(pool) == 0
    assert pool.discarded == 0  # it was not their receiver who closed them


def test_a_connection_in_steady_use_is_given_up_in_the_end() -> None:
    pool = pool_of()
    ours = keep(pool, Made(), MAX_AGE_S - 0.1)
    assert pool.take("a", MAX_AGE_S) is ours
    keep(pool, ours, MAX_AGE_S)
    assert len(pool) == 0
    assert ours.is_closed


def test_what_may_not_be_used_again_is_closed() -> None:
    pool = pool_of()
    ours = Made()
    pool.give_back(ours, 0.0, reusable=False)
    assert ours.is_closed
    assert len(pool) == 0


def test_with_no_time_to_be_kept_for_none_is() -> None:
    pool = pool_of(keep_s=0.0)
    ours = keep(pool, Made(), 0.0)
    assert ours.is_closed
    assert not pool.keeps("a", 0.0)
    assert pool_of().keeps("a", 0.0)


def test_until_one_has_answered_a_single_kept_connection_is_in_use() -> None:
    pool = pool_of()
    first, second = keep(pool, Made(), 0.0), keep(pool, Made(), 0.0)
    other = keep(pool, Made("b"), 0.0)
    assert pool.take("a", 0.1) is first
    assert pool.take("a", 0.1) is None
    assert pool.take("b", 0.1) is other
    keep(pool, first, 0.2)
    assert {pool.take("a", 0.3), pool.take("a", 0.3)} == {first, second}


def test_a_trial_that_takes_long_is_followed_by_another_each_second() -> None:
    pool = pool_of()
    first, second = keep(pool, Made(), 0.0), keep(pool, Made(), 0.0)
    keep(pool, Made(), 0.0)
    assert pool.take("a", 0.1) is first
    assert pool.take("a", 1.0) is None
    assert pool.take("a", 1.2) is second
    assert pool.take("a", 1.3) is None
    keep(pool, first, 1.4)
    assert pool.take("a", 1.5) is first
    assert pool.take("a", 1.5) is not None


@pytest.mark.parametrize("reusable", [True, False])
def test_a_trial_without_an_answer_proves_nothing_and_the_next_one_is_tried(
    reusable: bool,
) -> None:
    pool = pool_of()
    first, second = keep(pool, Made(), 0.0), keep(pool, Made(), 0.0)
    assert pool.take("a", 0.1) is first
    first.has_answered = False
    pool.give_back(first, 0.2, reusable=False)
    assert pool.take("a", 0.3) is second
    pool.give_back(second, 0.4, reusable=reusable)
    keep(pool, Made(), 0.5)
    keep(pool, Made(), 0.5)
    assert pool.take("a", 0.6) is not None
    assert pool.take("a", 0.6) is not None  # it has answered


@pytest.mark.parametrize("how", ["found closed", "unasked bytes", "lost in use"])
def test_after_a_close_that_came_soon_none_is_kept_for_a_while_and_then_one_is_watched(
    how: str,
) -> None:
    pool = pool_of()
    prove(pool)
    ours, other = keep(pool, Made(), 0.0), keep(pool, Made(), 0.0)
    if how == "lost in use":
        assert pool.take("a", 0.01) is other
        pool.note_closed(other, 0.02)
        pool.give_back(other, 0.02, reusable=False)
    else:
        for each in (ours, other):
            each.theirs.send(b"x") if how == "unasked bytes" else each.theirs.close()
        assert pool.take("a", 0.01) is None
        assert pool.discarded == 1  # the other one was not looked at any more
    assert len(pool) == 0
    assert keep(pool, Made(), 0.02).is_closed
    assert not pool.keeps("a", FIRST_PAUSE_S)
    assert pool.keeps("b", FIRST_PAUSE_S)

    now = FIRST_PAUSE_S + 0.02
    assert pool.keeps("a", now)
    watched = keep(pool, Made("a", now), now)
    assert keep(pool, Made("a", now), now).is_closed  # one is enough to be watched
    assert pool.take("a", now + WATCHED_S / 2) is None
    assert pool.take("a", now + LONG_ENOUGH_S) is watched
    assert pool.take("a", now + LONG_ENOUGH_S) is None
    keep(pool, watched, now + LONG_ENOUGH_S)
    keep(pool, Made("a", now), now + LONG_ENOUGH_S)
    assert pool.take("a", now + LONG_ENOUGH_S) is not None
    assert pool.take("a", now + LONG_ENOUGH_S) is not None


def test_the_while_doubles_with_each_close_up_to_a_bound_and_begins_anew_in_the_end() -> None:
    pool = pool_of()
    now, pauses = 0.0, []
    for _ in range(9):
        ours = keep(pool, Made("a", now), now)
        ours.theirs.close()
        now += LONG_ENOUGH_S
        assert pool.take("a", now) is None
        began = now
        while not pool.keeps("a", now):
            now += FIRST_PAUSE_S
        pauses.append(round(now - began))
    assert pauses == [5, 10, 20, 40, 80, 160, 320, 640, 640]
    prove(pool, now + LONG_ENOUGH_S, origin="b")
    now += LONGEST_PAUSE_S + 1
    keep(pool, Made("a", now), now).theirs.close()
    assert pool.take("a", now + 0.01) is None
    assert pool.keeps("a", now + 0.01 + FIRST_PAUSE_S)


def test_after_a_close_that_came_late_connections_are_kept_for_half_of_that_time() -> None:
    pool = pool_of()
    prove(pool)
    keep(pool, Made(), 0.0).theirs.close()
    assert pool.take("a", 3.0) is None
    assert (pool.keeps("a", 3.0), pool.discarded) == (True, 1)
    first, second = keep(pool, Made(), 4.0), keep(pool, Made(), 4.0)
    assert pool.take("a", 5.4) is second
    assert pool.take("a", 5.6) is None
    assert first.is_closed
    ours = keep(pool, Made(), 3.0 + FIRST_PAUSE_S - 2)
    assert pool.take("a", 3.0 + FIRST_PAUSE_S) is ours  # as long as ever


def test_what_closes_at_once_when_a_receiver_starts_anew_counts_once() -> None:
    pool = pool_of()
    prove(pool)
    for _ in range(5):
        keep(pool, Made(), 0.0)
    taken = [pool.take("a", 0.01) for _ in range(5)]
    for connection in taken:
        assert connection is not None
        pool.note_closed(connection, 0.02)
        pool.give_back(connection, 0.02, reusable=False)
    assert not pool.keeps("a", 1.0)
    assert pool.keeps("a", 0.02 + FIRST_PAUSE_S)


def test_another_time_to_keep_begins_with_nothing_known() -> None:
    pool = pool_of()
    keep(pool, Made(), 0.0).theirs.close()
    assert pool.take("a", 0.01) is None
    ours = keep(pool, Made("b"), 0.01)
    pool.renew(1.0)
    assert ours.is_closed
    assert pool.keeps("a", 0.02)
    ours = keep(pool, Made(), 1.0)
    pool.close_idle(2.0)
    assert ours.is_closed


def test_what_is_known_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "MOST_ORIGINS", 3)
    book = TrustBook(4.0)
    first = book.of("a", 0.0)
    for origin in "bcd":
        book.of(origin, 0.0)
    assert len(book._origins) == 3
    assert book.of("a", 0.0) is not first

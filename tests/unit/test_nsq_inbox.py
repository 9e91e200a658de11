"""What becomes of a message: finished only once the Store has answered for its task."""

from __future__ import annotations

from dataclasses import dataclass, field

from taskd.domain.model import DueTask
from taskd.queues.local import LocalQueue
from taskd.queues.nsq import inbox
from taskd.queues.nsq.inbox import Inbox, Received

NOW_MS = 1_700_000_000_000


@dataclass(eq=False)
class Nsqd:
    """Notes what it is told."""

    message_timeout_s: float = 60.0
    finished: list[bytes] = field(default_factory=list)
    requeued: list[tuple[bytes, int]] = field(default_factory=list)
    touched: list[bytes] = field(default_factory=list)

    def finish(self, message_id: bytes) -> None:
        self.finished.append(message_id)

    def requeue(self, message_id: bytes, delay_ms: int) -> None:
        self.requeued.append((message_id, delay_ms))

    def touch(self, message_id: bytes) -> None:
        self.touched.append(message_id)


class Bench:
    """An inbox with one nsqd and a clock."""

    def __init__(self, lane_bound: int = 100) -> None:
        self.lanes = LocalQueue(lane_bound=lane_bound)
        self.inbox = Inbox(self.lanes)
        self.nsqd = Nsqd()
        self.now = 100.0
        self.now_ms = NOW_MS

    def arrive(
        self,
        message_id: bytes,
        task_id: int,
        *,
        app_id: int = 1,
        due_at: int = NOW_MS,
        attempts: int = 1,
        nsqd: Nsqd | None = None,
    ) -> None:
        task = DueTask(task_id=task_id, app_id=app_id, due_at=due_at)
        message = Received(
            source=nsqd or self.nsqd,
            message_id=message_id,
            attempts=attempts,
            task=task,
            since=self.now,
        )
        self.inbox.arrive(message, now_ms=self.now_ms)

    def take(self, limit: int = 99, refused: tuple[int, ...] = ()) -> list[DueTask]:
        return self.inbox.take(limit, lambda app_id: app_id not in refused, now=self.now)

    def finish(self, tasks: list[DueTask]) -> None:
        for message in self.inbox.finish(tasks, now=self.now):
            message.source.finish(message.message_id)

    def tend(self, seconds: float = 0.0, *, room: bool = True) -> float:
        self.now += seconds
        self.now_ms += round(seconds * 1000)
        return self.inbox.tend(now=self.now, now_ms=self.now_ms, room=room)


def test_a_message_is_finished_only_after_the_store_has_answered() -> None:
    bench = Bench()
    bench.arrive(b"a", 1)
    tasks = bench.take()
    assert [task.task_id for task in tasks] == [1]
    assert bench.nsqd.finished == []
    bench.finish(tasks)
    assert bench.nsqd.finished == [b"a"]
    assert bench.inbox.in_flight() == 0
    assert bench.inbox.occupied(bench.nsqd) == 0


def test_what_the_store_could_not_be_asked_about_goes_back_and_is_taken_again() -> None:
    bench = Bench()
    bench.arrive(b"a", 1)
    bench.inbox.release(bench.take())
    assert bench.nsqd.finished == []
    [(message_id, delay_ms)] = bench.nsqd.requeued
    assert message_id == b"a"
    assert 800 <= delay_ms <= 1200
    bench.arrive(b"a", 1, attempts=2)
    assert len(bench.take()) == 1


def test_a_double_is_finished_without_being_offered_wherever_the_first_is() -> None:
    bench = Bench()
    bench.arrive(b"a", 1)
    bench.arrive(b"b", 1)
    assert bench.nsqd.finished == [b"b"], "while the first waits"
    tasks = bench.take()
    bench.arrive(b"c", 1)
    assert bench.nsqd.finished == [b"b", b"c"], "while the Store is asked"
    bench.finish(tasks)
    bench.arrive(b"d", 1)
    assert bench.nsqd.finished == [b"b", b"c", b"a", b"d"], "once the Store has answered"
    assert bench.take() == []


def test_a_retry_of_a_task_is_no_double_of_its_attempt_before() -> None:
    bench = Bench()
    bench.arrive(b"a", 1)
    bench.finish(bench.take())
    bench.now_ms += 5000
    bench.arrive(b"b", 1, due_at=NOW_MS + 5000)
    assert [task.due_at for task in bench.take()] == [NOW_MS + 5000]


def test_what_was_answered_for_is_forgotten_after_a_minute() -> None:
    bench = Bench()
    bench.arrive(b"a", 1)
    bench.finish(bench.take())
    bench.tend(59)
    bench.arrive(b"b", 1)
    assert bench.take() == []
    bench.tend(2)
    bench.arrive(b"c", 1)
    assert len(bench.take()) == 1


def test_what_is_remembered_is_bounded() -> None:
    bench = Bench()
    bound = inbox.RECENT_BOUND
    tasks = [DueTask(task_id=n, app_id=1, due_at=NOW_MS) for n in range(1, bound + 11)]
    bench.finish(tasks)
    bench.arrive(b"new", bound + 10)
    assert bench.nsqd.finished == [b"new"]
    bench.arrive(b"old", 1)
    assert len(bench.take()) == 1


def test_a_message_for_what_this_node_found_itself_is_finished_with_it() -> None:
    bench = Bench()
    bench.lanes.publish([DueTask(task_id=1, app_id=1, due_at=NOW_MS)])
    bench.arrive(b"a", 1)
    assert bench.nsqd.finished == []
    tasks = bench.take()
    assert len(tasks) == 1
    bench.finish(tasks)
    assert bench.nsqd.finished == [b"a"]


def test_what_comes_early_is_kept_until_its_time() -> None:
    bench = Bench()
    bench.arrive(b"a", 1, due_at=NOW_MS + 300)
    assert bench.take() == []
    assert bench.inbox.occupied(bench.nsqd) == 1, "it needs no room"
    assert bench.tend(0.299) <= 0.002
    assert bench.take() == []
    bench.tend(0.001)
    assert len(bench.take()) == 1
    assert bench.inbox.occupied(bench.nsqd) == 1, "now it is taken"
    bench.tend(0.25)
    assert bench.nsqd.requeued == []


def test_what_was_kept_until_its_time_may_then_wait_as_long_as_any() -> None:
    bench = Bench()
    bench.arrive(b"a", 1, due_at=NOW_MS + 3000)
    bench.tend(3.0)
    assert bench.nsqd.requeued == []
    assert len(bench.take()) == 1


def test_what_comes_far_too_early_is_sent_back_until_its_time_and_for_a_minute_at_most() -> None:
    bench = Bench()
    bench.arrive(b"a", 1, due_at=NOW_MS + 20_000)
    bench.arrive(b"b", 2, due_at=NOW_MS + 90_000_000)
    assert bench.nsqd.requeued == [(b"a", 20_000), (b"b", 60_000)]
    assert bench.inbox.in_flight() == 0


def test_early_messages_are_kept_within_bounds() -> None:
    bench = Bench()
    for n in range(1, 1100):
        bench.arrive(b"%d" % n, n, due_at=NOW_MS + 1000)
    assert bench.inbox.in_flight() == 1000
    assert len(bench.nsqd.requeued) == 99


def test_an_app_that_may_begin_nothing_does_not_keep_the_room_of_others() -> None:
    bench = Bench()
    bench.arrive(b"a", 1, app_id=1)
    bench.arrive(b"b", 2, app_id=2)
    assert [task.app_id for task in bench.take(refused=(1,))] == [2]
    bench.tend(0.2)
    assert bench.nsqd.finished == []
    bench.tend(0.1)
    assert bench.nsqd.finished == [b"a"], "it would come again and again"
    assert bench.nsqd.requeued == []
    bench.lanes.resume([1])
    assert [task.task_id for task in bench.take()] == [1], "this node may still be the first"


def test_a_message_that_comes_again_and_again_stays_away_longer_but_not_for_ever() -> None:
    bench = Bench()
    delays = []
    for attempts in (1, 3, 10, 60_000):
        bench.arrive(b"a", 1, attempts=attempts)
        bench.tend(0.3)
        delays.append(bench.nsqd.requeued.pop()[1])
    assert delays == sorted(delays)
    assert delays[-1] <= 36_000


def test_without_room_a_message_goes_elsewhere_at_once() -> None:
    bench = Bench()
    bench.arrive(b"a", 1)
    bench.tend(0.3, room=False)
    assert bench.nsqd.requeued == [(b"a", 0)]


def test_messages_of_an_app_that_may_begin_nothing_are_not_even_held() -> None:
    bench = Bench(lane_bound=41)
    bench.lanes.publish(DueTask(task_id=n, app_id=1, due_at=NOW_MS) for n in range(1, 41))
    assert bench.take(refused=(1,)) == []
    assert bench.inbox.waiting_without_message() == 0, "they leave the room to others"
    bench.arrive(b"a", 100)
    bench.arrive(b"b", 101)  # its lane is full, too
    assert bench.nsqd.finished == [b"a", b"b"]
    assert bench.nsqd.requeued == []
    assert bench.inbox.in_flight() == 0
    assert bench.inbox.counts.let_go == 2
    bench.lanes.resume([1])
    assert bench.inbox.waiting_without_message() == 41
    bench.take(limit=1)
    bench.arrive(b"c", 102)
    assert bench.inbox.in_flight() == 1, "it is admitted again"


def test_a_full_lane_sends_back() -> None:
    bench = Bench(lane_bound=2)
    for n in (1, 2, 3):
        bench.arrive(b"%d" % n, n)
    assert [message_id for message_id, _ in bench.nsqd.requeued] == [b"3"]
    assert bench.inbox.in_flight() == 2


def test_a_message_is_touched_while_the_store_takes_long() -> None:
    bench = Bench()
    bench.arrive(b"a", 1)
    tasks = bench.take()
    for _ in range(29):
        bench.tend(1)
    assert bench.nsqd.touched == []
    for _ in range(34):
        bench.tend(1)
    assert bench.nsqd.touched == [b"a"] * 2
    bench.finish(tasks)
    assert bench.nsqd.finished == [b"a"]


def test_when_a_connection_ends_its_messages_are_forgotten_and_their_wake_ups_stay() -> None:
    bench = Bench()
    other = Nsqd()
    bench.arrive(b"a", 1)
    taken = bench.take()
    bench.arrive(b"b", 2)
    bench.arrive(b"c", 3, nsqd=other)
    bench.arrive(b"d", 4, due_at=NOW_MS + 100)
    bench.inbox.lose(bench.nsqd)
    assert bench.inbox.occupied(bench.nsqd) == 0
    bench.finish(taken)
    bench.tend(1)
    bench.finish(bench.take())
    assert bench.nsqd.finished == []
    assert bench.nsqd.requeued == []
    assert [message_id for message_id, _ in other.requeued] == [b"c"]


def test_the_message_of_a_new_connection_takes_the_place_of_one_that_was_lost() -> None:
    bench = Bench()
    bench.arrive(b"a", 1)
    bench.inbox.lose(bench.nsqd)
    again = Nsqd()
    bench.arrive(b"b", 1, nsqd=again, attempts=2)
    assert again.finished == []
    bench.finish(bench.take())
    assert again.finished == [b"b"]


def test_a_node_that_ends_sends_back_all_that_is_not_answered_for() -> None:
    bench = Bench()
    other = Nsqd()
    bench.arrive(b"a", 1)
    bench.take()
    bench.arrive(b"b", 2)
    bench.arrive(b"c", 3, due_at=NOW_MS + 1000)
    bench.arrive(b"d", 4, nsqd=other)
    bench.inbox.give_back(bench.nsqd)
    assert sorted(bench.nsqd.requeued) == [(b"a", 0), (b"b", 0), (b"c", 0)]
    assert other.requeued == []

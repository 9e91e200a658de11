"""When an nsqd is said not to bring, or not to take, what it is given; and when not."""

from __future__ import annotations

import logging

import pytest

from taskd.domain.model import DueTask
from taskd.queues.nsq.target import Address
from taskd.queues.nsq.watch import FORGOTTEN_S, LATE_S, QUIET_S, REST_S, SIGNS, Watch

A, B = Address("a", 4150), Address("b", 4150)
DUE_MS = 1_700_000_000_000


def due(task_id: int, app_id: int = 1) -> DueTask:
    return DueTask(task_id=task_id, app_id=app_id, due_at=DUE_MS)


class Node:
    """What a node tells its watch, second by second."""

    def __init__(self) -> None:
        self.watch = Watch(topic="t", channel="c")
        self.now = 100.0
        self.ready = True
        self.refused_apps: set[int] = set()

    def publish(self, *tasks: DueTask, to: Address = A) -> None:
        self.watch.confirmed(to, tasks, began=self.now)

    def receive(self, *tasks: DueTask, of: Address = A) -> None:
        for task in tasks:
            now_ms = DUE_MS + int((self.now - 100.0) * 1000)
            self.watch.arrived(of, task, now=self.now, now_ms=now_ms)

    def find(self, *tasks: DueTask) -> None:
        self.watch.found(
            tasks,
            now=self.now,
            ready=lambda _address, _since: self.ready,
            elsewhere=self.refused_apps.__contains__,
        )

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.watch.tend(now=self.now)

    def lose(self, count: int, *, first: int = 1, to: Address = A) -> None:
        """Publish so many that do not come and are found."""
        for number in range(first, first + count):
            self.publish(due(number), to=to)
            self.wait(1.2)
            self.find(due(number))


@pytest.fixture
def node() -> Node:
    return Node()


def test_what_is_found_by_looking_again_and_again_is_trouble(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    node.lose(SIGNS - 1)
    assert not node.watch.degraded()
    node.lose(1, first=50)
    (told,) = node.watch.degraded()
    for named in ("nsqd a:4150", "topic t", "channel c", "paused", "nsqadmin"):
        assert named in told
    assert node.watch.doubts(A)
    assert not node.watch.doubts(B)
    node.lose(20, first=100)
    assert len(caplog.records) == 1


def test_a_burst_that_is_found_in_one_look_is_trouble(node: Node) -> None:
    node.publish(*map(due, range(1, 10)))
    node.wait(1.2)
    node.find(*map(due, range(1, 10)))
    assert node.watch.degraded()


def test_what_is_under_way_for_a_moment_is_no_sign(node: Node) -> None:
    for number in range(1, 10):
        node.publish(due(number))
        node.wait(LATE_S / 2)
        node.find(due(number))
    assert node.watch.easy


def test_what_was_not_published_here_is_no_sign(node: Node) -> None:
    node.wait(5)
    node.find(*map(due, range(1, 100)))
    assert node.watch.easy


def test_a_node_that_was_not_ready_has_nothing_to_say(node: Node) -> None:
    node.ready = False
    node.lose(10)
    assert node.watch.easy


def test_what_other_nodes_may_have_got_while_messages_come_is_no_sign(node: Node) -> None:
    """One of them hangs, or has died with messages in flight."""
    node.publish(*map(due, range(1, 20)))
    node.wait(0.01)
    node.receive(*map(due, range(1, 20, 2)))
    node.wait(1.2)
    node.find(*map(due, range(2, 20, 2)))
    assert node.watch.easy


def test_a_message_may_come_before_its_confirmation(node: Node) -> None:
    began = node.now
    node.wait(0.001)
    node.receive(due(1))
    node.wait(0.001)
    node.watch.confirmed(A, [due(1), due(2), due(3), due(4)], began=began)
    node.wait(1.2)
    node.find(due(1), due(2), due(3), due(4))
    assert node.watch.easy


def test_messages_in_between_take_the_signs_away(node: Node) -> None:
    for number in range(1, 30, 3):
        node.lose(SIGNS - 1, first=number)
        node.publish(due(1_000 + number))
        node.receive(due(1_000 + number))
    assert not node.watch.degraded()


def test_an_app_at_its_limit_here_is_no_sign(node: Node) -> None:
    node.refused_apps.add(1)
    node.lose(10)
    assert node.watch.easy


def test_a_message_comes_late_but_comes(node: Node) -> None:
    """Held up by two seconds each: late ones are signs as well once it is known."""
    for number in range(1, 8):
        node.publish(due(number))
        node.wait(1.2)
        node.find(due(number))
        node.wait(1.0)
        node.receive(due(number))
    assert node.watch.degraded()
    for number in range(10, 30):
        # Worked on here at once, so found no more; late still.
        node.publish(due(number))
        node.wait(2.0)
        node.receive(due(number))
    assert node.watch.degraded()


def test_trouble_ends_by_a_stretch_without_it(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    node.lose(SIGNS)
    node.publish(due(70))
    node.wait(2 * QUIET_S)
    assert node.watch.degraded(), "nothing has come"
    node.publish(due(71))
    node.receive(due(71), due(70))
    node.wait(QUIET_S / 2)
    assert node.watch.degraded()
    caplog.clear()
    caplog.set_level(logging.INFO)
    node.wait(QUIET_S)
    assert node.watch.easy
    assert [record.getMessage() for record in caplog.records] == ["nsqd brings wake-ups again"]


def test_the_end_of_a_connection_takes_signs_away_and_not_trouble(node: Node) -> None:
    node.lose(SIGNS - 1)
    node.watch.forget(A)
    node.lose(SIGNS - 1, first=20)
    assert not node.watch.degraded()
    node.lose(SIGNS, first=40)
    node.watch.forget(A)
    assert node.watch.degraded()
    node.watch.gone(A)
    assert node.watch.easy


def test_a_refusal_is_trouble_until_something_was_taken_for_a_while(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    node.watch.refused(A, "it answered E_MPUB_FAILED", answered=True, now=node.now)
    (told,) = node.watch.degraded()
    for named in ("nsqd a:4150", "topic t", "E_MPUB_FAILED", "disk", "secret"):
        assert named in told
    assert node.watch.rests(A, now=node.now)
    node.wait(REST_S)
    assert not node.watch.rests(A, now=node.now)
    node.watch.refused(A, "it answered E_MPUB_FAILED", answered=True, now=node.now)
    node.wait(REST_S)
    node.publish(due(1))
    node.wait(QUIET_S / 3)
    assert node.watch.degraded()
    node.wait(QUIET_S)
    assert node.watch.easy
    assert len(caplog.records) == 2


def test_one_that_leaves_a_publish_unconfirmed_once_may_just_have_gone(node: Node) -> None:
    for number in range(1, 5):
        node.watch.refused(A, "it did not confirm a publish", answered=False, now=node.now)
        assert not node.watch.doubts(A)
        assert not node.watch.degraded()
        node.wait(1)
        node.publish(due(number))
    assert node.watch.easy
    for _ in range(2):
        node.watch.refused(A, "it did not confirm a publish", answered=False, now=node.now)
    assert "did not confirm" in node.watch.degraded()[0]


def test_what_is_never_heard_of_again_is_forgotten(node: Node) -> None:
    node.lose(SIGNS)
    node.watch.refused(B, "it answered E_MPUB_FAILED", answered=True, now=node.now)
    node.wait(FORGOTTEN_S + 1)
    assert node.watch.easy


def test_of_very_many_it_remembers_some(node: Node) -> None:
    for start in range(0, 100_000, 1_000):
        node.publish(*map(due, range(start + 1, start + 1_001)))
    assert len(node.watch._sent) == 2_000
    node.wait(60)
    assert not node.watch._sent

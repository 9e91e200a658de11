"""That tasks wait for a receiver in trouble is told once it lasts, and once it is over."""

from __future__ import annotations

import logging

import pytest

from taskd.engine.pace import Sign
from taskd.engine.pace_watch import BEGINS_AFTER, ENDS_AFTER, TOLD_A_MINUTE, PaceWatch
from taskd.engine.slots import Slot, Slots

BEGINS = "a receiver is in trouble and is sent fewer attempts at once: its tasks wait"
ENDS = "no task waits for a receiver that was in trouble any more"


class Origins:
    """Receivers that time out while tasks wait for them, and a watch."""

    def __init__(self) -> None:
        self.slots = Slots(5_000, 125)
        self.watch = PaceWatch(self.slots)
        self.now = 100.0
        self.running: dict[int, list[Slot]] = {}

    def begin(self, app_id: int) -> bool:
        origin = f"http://{app_id}"
        if not self.slots.take(app_id, origin, self.now):
            return False
        place = self.slots.use(app_id, origin)
        place.begin(self.now)
        self.running.setdefault(app_id, []).append(place)
        return True

    def end_all(self, app_id: int, sign: Sign) -> None:
        for place in self.running.pop(app_id, ()):
            place.end(self.now, answered=sign is Sign.WELL, sign=sign, timeout_s=1.0)
            place.leave()

    def trouble(self, app_id: int) -> None:
        """Let it time out, and others wait."""
        while self.begin(app_id):
            pass
        self.now += 0.001
        self.end_all(app_id, Sign.LEFT)
        self.slots.woken(self.now)
        while self.begin(app_id):
            pass

    def look(self, times: int) -> None:
        for _ in range(times):
            self.now += 1.0
            self.watch.look(self.now)


@pytest.fixture(autouse=True)
def _at_info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="taskd.worker")


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records]


def test_what_lasts_is_told_once_and_its_end_too(caplog: pytest.LogCaptureFixture) -> None:
    origins = Origins()
    origins.trouble(1)
    origins.look(BEGINS_AFTER - 1)
    assert not told(caplog)
    origins.look(100)
    (line,) = told(caplog)
    assert line == BEGINS
    fields = caplog.records[0].__dict__["fields"]
    assert (fields["origin"], fields["at_once"]) == ("http://1", 8)
    assert fields["because"] == Sign.LEFT.value
    origins.now += 60
    origins.end_all(1, Sign.WELL)
    assert 1 in origins.slots.woken(origins.now)
    origins.slots.woken(origins.now)  # it has nothing more to begin
    origins.look(ENDS_AFTER - 1)
    assert len(told(caplog)) == 1
    origins.look(1)
    assert told(caplog)[1] == ENDS


def test_what_passes_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    origins = Origins()
    origins.trouble(1)
    origins.look(BEGINS_AFTER - 1)
    origins.end_all(1, Sign.WELL)
    origins.slots.woken(origins.now + 60)
    origins.slots.woken(origins.now + 60)
    origins.look(10)
    assert not told(caplog)


def test_an_unknown_receiver_that_is_only_busy_is_not_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    origins = Origins()
    while origins.begin(1):
        pass
    origins.look(10)
    assert not told(caplog)


def test_many_are_told_a_few_a_minute_and_how_many_more(caplog: pytest.LogCaptureFixture) -> None:
    origins = Origins()
    for app_id in range(100):
        origins.trouble(app_id)
    origins.look(50)
    assert len(told(caplog)) == TOLD_A_MINUTE
    origins.look(60)
    assert TOLD_A_MINUTE < len(told(caplog)) <= 2 * TOLD_A_MINUTE

"""Whose lines in the log are whose, and how many there may be."""

from __future__ import annotations

import logging

import pytest

from taskd.api.http.access_log import LINES, MAX_COUNTED, PERIOD_S, Ration
from taskd.api.http.addresses import origin_of


class _Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def held_back(caplog: pytest.LogCaptureFixture) -> list[tuple[object, ...]]:
    fields = [record.__dict__["fields"] for record in caplog.records]
    caplog.clear()
    return [(f["client"], f["like"], f["number"]) for f in fields]


@pytest.fixture
def heard(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "taskd.api")
    return caplog


def test_each_client_has_some_lines_of_each_kind(heard: pytest.LogCaptureFixture) -> None:
    clock = _Clock()
    ration = Ration(clock)
    for client in ("a", "b"):
        for kind in ("x", "y"):
            admitted = [ration.admits(client, kind) for _ in range(LINES + 2)]
            assert admitted == [True] * LINES + [False] * 2
    ration.settle()
    assert held_back(heard) == []
    clock.now = PERIOD_S
    ration.settle()
    assert held_back(heard) == [("a", "x", 2), ("a", "y", 2), ("b", "x", 2), ("b", "y", 2)]
    assert ration.admits("a", "x")
    ration.settle(all_of_them=True)
    assert held_back(heard) == []


def test_a_period_that_is_over_is_told_of_before_the_next_line(
    heard: pytest.LogCaptureFixture,
) -> None:
    clock = _Clock()
    ration = Ration(clock)
    for _ in range(LINES + 1):
        ration.admits("a", "x")
    clock.now = PERIOD_S + 1
    assert ration.admits("a", "x")
    assert held_back(heard) == [("a", "x", 1)]


def test_those_who_are_too_many_to_be_counted_share_what_one_has(
    heard: pytest.LogCaptureFixture,
) -> None:
    clock = _Clock()
    ration = Ration(clock)
    admitted = sum(ration.admits(str(client), "x") for client in range(10 * MAX_COUNTED))
    assert admitted == MAX_COUNTED + LINES
    assert len(ration._counts) == MAX_COUNTED + 1
    ration.settle(all_of_them=True)
    assert held_back(heard) == [("many", "x", 9 * MAX_COUNTED - LINES)]


@pytest.mark.parametrize(
    ("address", "origin"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("", ""),
    ],
)
def test_an_origin_is_an_ipv4_address_or_a_64(address: str, origin: str) -> None:
    assert origin_of(address) == origin

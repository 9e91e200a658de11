"""What the errors of a MySQL server mean: which a node waits out, which it is told of at
once, and what it says."""

from __future__ import annotations

import pytest
from trio_mysql import err  # type: ignore[import-untyped] # it has no types

from taskd.errors import StoreRefused, StoreUnavailable
from taskd.stores.mysql.errors import Conflict, ConnectionLost, Refused, refusal, translated


def told(code: int, text: str = "what the server says") -> Exception:
    raised = err.OperationalError(code, text)
    error = translated(raised, database="d")
    error.__cause__ = raised
    return error


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (1021, "its disk is full"),
        (1040, "too many connections (max_connections)"),
        (1054, "run `taskd migrate`"),
        (1129, "blocked this host"),
        (1146, "run `taskd migrate`"),
        (1203, "max_user_connections"),
        (1226, "max_user_connections"),
        (1290, "it is read-only"),
        (1792, "it is read-only"),
        (1836, "it is read-only"),
        (3032, "offline mode"),
        (3100, "its replication group takes no writes"),
        (3955, "too many wrong passwords"),
        (9999, "what the server says (9999)"),
    ],
)
def test_what_passes_is_unavailable(code: int, words: str) -> None:
    error = told(code)
    assert type(error) is StoreUnavailable
    assert words in str(error)
    assert refusal(error) is error


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (1044, "no right to use the database d: GRANT it"),
        (1045, "user or password is wrong"),
        (1049, "there is no database d"),
        (1130, "this host may not connect"),
        (1142, "lacks a right"),
        (1143, "lacks a right"),
        (1227, "lacks a right"),
        (1251, "way to authenticate is not known here"),
        (1524, "way to authenticate is not known there"),
        (1698, "user or password is wrong"),
        (1820, "password has expired"),
        (1862, "password has expired"),
        (3118, "account is locked"),
        (3159, "add tls=true to the URL"),
        (4151, "account is locked"),
    ],
)
def test_what_trying_again_does_not_change_ends_a_start(code: int, words: str) -> None:
    error = told(code)
    assert isinstance(error, StoreUnavailable)
    refused = refusal(error)
    assert isinstance(refused, StoreRefused)
    assert words in str(refused)


@pytest.mark.parametrize(
    ("code", "waited"), [(1205, True), (1213, False), (1020, False), (3101, False), (3572, False)]
)
def test_what_others_are_in_the_way_of_is_repeated(code: int, waited: bool) -> None:
    error = told(code)
    assert isinstance(error, Conflict)
    assert error.waited is waited


@pytest.mark.parametrize("code", [1053, 1927, 2006, 2013, 4031])
def test_what_broke_the_connection_is_tried_on_another(code: int) -> None:
    assert isinstance(told(code), ConnectionLost)


@pytest.mark.parametrize("code", [1264, 1366, 1406])
def test_a_value_that_is_refused_is_nobody_elses_affair(code: int) -> None:
    assert isinstance(told(code), Refused)

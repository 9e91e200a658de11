"""What a Redis server's answers mean, in one sentence with what to do."""

from __future__ import annotations

import pytest
from redis._parsers.base import BaseParser

from taskd.buses.redis.link import explained
from taskd.buses.redis.target import parse_redis_url

TARGET = parse_redis_url("redis://h")
CLUSTER = "runs in cluster mode, which the bus can't use: give it a server of its own"


def explanation(answer: str) -> str:
    """What is told of a server's error, which redis-py has read."""
    error = BaseParser.parse_error(answer)  # type: ignore[no-untyped-call] # the library's
    return str(explained(TARGET, error))


@pytest.mark.parametrize(
    ("answer", "meaning"),
    [
        ("NOAUTH Authentication required.", "wants a password: give it in [bus] url"),
        (
            "WRONGPASS invalid username-password pair or user is disabled.",
            "refuses the user or the password of [bus] url",
        ),
        (
            "ERR AUTH <password> called without any password configured for the default user.",
            "has no password for this user: leave it out of [bus] url",
        ),
        (
            "NOPERM User taskd has no permissions to run the 'eval' command",
            "does not let this user do what a bus needs: User taskd has no",
        ),
        (
            "LOADING Redis is loading the dataset in memory",
            "is loading its data",
        ),
        (
            "READONLY You can't write against a read only replica.",
            "is a replica, which takes no writes: give the primary's address",
        ),
        (
            "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
            "is a replica, whose primary is lost: give the primary's address",
        ),
        ("OOM command not allowed when used memory > 'maxmemory'.", "is out of memory"),
        (
            "MISCONF Redis is configured to save RDB snapshots, but it's unable to.",
            "can't save its data, so it takes no writes (MISCONF)",
        ),
        ("NOREPLICAS Not enough good replicas to write.", "has fewer replicas than it asks for"),
        ("BUSY Redis is busy running a script.", "is busy with somebody's script"),
        ("DENIED Redis is running in protected mode because", "lets no other machine in"),
        ("ERR max number of clients reached", "has as many clients as it takes"),
        ("ERR unknown command 'EVAL', with args beginning with: ", "refuses: unknown command"),
        ("ERR DB index is out of range", "refuses: DB index is out of range"),
        ("MOVED 3999 127.0.0.1:6381", CLUSTER),
        ("ASK 3999 127.0.0.1:6381", CLUSTER),
        ("TRYAGAIN Multiple keys request during rehashing of slot", CLUSTER),
        ("CLUSTERDOWN Hash slot not served", CLUSTER),
        ("CROSSSLOT Keys in request don't hash to the same slot", CLUSTER),
    ],
)
def test_an_answer_is_told_with_what_to_do(answer: str, meaning: str) -> None:
    assert explanation(answer).startswith(f"Redis at h:6379 {meaning}")


def test_a_long_answer_is_cut_and_stays_one_line() -> None:
    told = explanation(f"ERR a\r\nb {'x' * 5_000}")
    assert len(told) < 300
    assert "\n" not in told

"""Thousands of connections that say half of something, and those who want an answer
meanwhile."""

from __future__ import annotations

import http.client
import json
import secrets
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import pytest

from taskd.domain import signing
from tests.support.daemon import Daemon
from tests.support.flood import Flood
from tests.support.workers import workers_at

_HEAD = b"POST /task/create HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
_HALF = _HEAD + b"Content-Length: 100\r\n\r\n{"
_FOR_S = 2.0
_ANSWER_S = 20.0
"""What a single answer may take: a test's machine has other work."""

_SOON_S = 5.0
"""And what most may: within a second, where it has none."""


class Asker:
    """Asks a daemon, each time on a new connection, or on one that it keeps."""

    def __init__(self, daemon: Daemon) -> None:
        self._place = urlsplit(daemon.url)
        self.keys = daemon.create_keys("http://127.0.0.1:9/")
        self._kept = self._connection()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._kept.close()

    def _connection(self) -> http.client.HTTPConnection:
        host, port = self._place.hostname, self._place.port
        assert host is not None
        return http.client.HTTPConnection(host, port, timeout=_ANSWER_S)

    def signed(self, body: bytes) -> dict[str, str]:
        now_ms = time.time_ns() // 1_000_000
        return signing.sign_headers(*self.keys, body, now_ms=now_ms, nonce=secrets.token_hex(12))

    def _create(self, connection: http.client.HTTPConnection) -> None:
        values = {"taskNo": secrets.token_hex(8), "name": "a", "content": "{}", "timeout": 1000}
        body = json.dumps(values | {"runtime": 4_000_000_000}).encode()
        headers = {"Content-Type": "application/json"} | self.signed(body)
        connection.request("POST", "/task/create", body, headers)
        self._check(connection)

    def _check(self, connection: http.client.HTTPConnection) -> None:
        response = connection.getresponse()
        assert (response.status, json.load(response)["code"]) == (200, 0)

    def create_on_the_kept(self) -> None:
        self._create(self._kept)

    def create(self) -> None:
        connection = self._connection()
        self._create(connection)
        connection.close()

    def health(self) -> None:
        for path in ("/healthz", "/readyz"):
            connection = self._connection()
            connection.request("GET", path)
            self._check(connection)
            connection.close()


def all_are_answered(asker: Asker, flood: Flood, for_s: float = _FOR_S) -> None:
    """Ask while a flood lasts: every answer has to come, and most soon."""
    asks: list[Callable[[], None]] = [asker.create_on_the_kept, asker.create, asker.health]
    took: dict[str, list[float]] = {ask.__name__: [] for ask in asks}
    asker.create_on_the_kept()
    with flood:
        until = time.monotonic() + for_s
        while time.monotonic() < until:
            for ask in asks:
                began = time.monotonic()
                ask()
                took[ask.__name__].append(time.monotonic() - began)
    assert all(statistics.median(times) < _SOON_S for times in took.values()), took


@pytest.fixture(params=["alone", "two workers"])
def daemon(request: pytest.FixtureRequest, tmp_path: Path) -> Daemon:
    return Daemon(tmp_path) if request.param == "alone" else workers_at(tmp_path)


def test_half_sent_requests_keep_nobody_out(daemon: Daemon) -> None:
    with daemon, Asker(daemon) as asker:
        for addresses in (1, 200):
            all_are_answered(asker, Flood(daemon.url, _HALF, addresses=addresses))
        assert daemon.stop() == 0
    assert "Traceback" not in daemon.log()


def test_nor_does_anything_else_that_is_half(tmp_path: Path) -> None:
    with Daemon(tmp_path) as daemon, Asker(daemon) as asker:
        captured = "".join(f"{name}: {value}\r\n" for name, value in asker.signed(b"").items())
        floods = [
            Flood(daemon.url, b""),
            Flood(daemon.url, _HEAD, adds=b"a: b\r\n", addresses=200),
            Flood(daemon.url, _HEAD + b"Transfer-Encoding: chunked\r\n\r\n", adds=b"1\r\n \r\n"),
            Flood(daemon.url, _HEAD + b"Content-Length: 9\r\nExpect: 100-continue\r\n\r\n"),
            Flood(
                daemon.url,
                _HEAD + captured.encode() + b"Content-Length: 100\r\n\r\n{",
                addresses=200,
            ),
            Flood(daemon.url, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 50, deaf=True),
        ]
        for flood in floods:
            all_are_answered(asker, flood, for_s=0.5)
        assert daemon.stop() == 0
    assert "Traceback" not in daemon.log()


def test_where_files_are_few_strangers_make_room_for_each_other(tmp_path: Path) -> None:
    """A flood that does not fit is turned over and over."""
    limited = ("prlimit", "--nofile=1024:1024", *Daemon(tmp_path).command)
    with Daemon(tmp_path, command=limited) as daemon, Asker(daemon) as asker:
        asks = (asker.create_on_the_kept, asker.create, asker.health)
        with Flood(daemon.url, _HALF, addresses=200) as flood:
            for _ in range(2):
                for ask in asks:
                    ask()
            # Nor does a flood keep it from its end.
            assert daemon.stop() == 0
        assert flood.made > 2000
    assert "can't accept" not in daemon.log()
    assert "Traceback" not in daemon.log()

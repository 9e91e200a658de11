"""Bodies made to be slow, from strangers: the daemon answers others, and stops."""

from __future__ import annotations

import http.client
import signal
import threading
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from taskd.client import Client
from tests.support.daemon import Daemon

_MEGABYTE = 1024 * 1024
_STRANGERS = 20

BODIES = {
    "a string without end": b'{"a":' + b"[" * 65 + b'"' + b'\\"' * (_MEGABYTE // 2 - 50),
    "fractions": b'{"a":[' + b"1.5," * (_MEGABYTE // 4 - 50) + b"1]}",
    "lists": b'{"a":[' + b"[]," * (_MEGABYTE // 3 - 50) + b"1]}",
}


def post(url: str, body: bytes, statuses: list[int], begun: threading.Semaphore) -> None:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=60)
    try:
        connection.request(
            "POST", "/application/create", body, {"Content-Type": "application/json"}
        )
        begun.release()
        statuses.append(connection.getresponse().status)
    except (OSError, http.client.HTTPException):
        begun.release()
    finally:
        connection.close()


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("kind", BODIES)
def test_strangers_with_slow_bodies_stop_nobody(tmp_path: Path, kind: str, workers: int) -> None:
    sections: dict[str, dict[str, object]] = {
        "auth": {"open_registration": True},
        "server": {"workers": workers},
    }
    with Daemon(tmp_path, sections=sections) as daemon:
        keys = daemon.create_keys("http://8.8.8.8:9/")
        statuses: list[int] = []
        begun = threading.Semaphore(0)
        arguments = (daemon.url, BODIES[kind], statuses, begun)
        strangers = [threading.Thread(target=post, args=arguments) for _ in range(_STRANGERS)]
        for stranger in strangers:
            stranger.start()
        for _ in strangers:
            assert begun.acquire(timeout=60)
        with Client(daemon.url, *keys, timeout=10) as app:
            for number in range(10):
                assert app.healthy()
                app.create_task(task_no=str(number), name="n", content="1", timeout=1, delay=9_000)
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0
        for stranger in strangers:
            stranger.join(60)
        assert set(statuses) <= {400, 422, 503}

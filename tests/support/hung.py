"""Applications whose receivers take connections and never answer."""

from __future__ import annotations

import json
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from tests.support.daemon import Daemon

TIMEOUT_MS = 3_600_000


@contextmanager
def hung_receivers(count: int) -> Iterator[list[str]]:
    """The URLs of so many; the kernel takes their connections."""
    with ExitStack() as stack:
        listeners = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=512))
            for _ in range(count)
        ]
        yield [f"http://127.0.0.1:{one.getsockname()[1]}/callback" for one in listeners]


def create_hung(
    daemon: Daemon, urls: list[str], *, tasks: int, timeout_ms: int = TIMEOUT_MS
) -> None:
    """An application for each of the URLs, with so many due tasks."""
    for url in urls:
        with daemon.create_app(url) as client:
            client.create_tasks(
                [
                    {
                        "taskNo": f"hung-{number}",
                        "name": "t",
                        "content": "{}",
                        "timeout": timeout_ms,
                    }
                    for number in range(tasks)
                ]
            )


def degraded(daemon: Daemon) -> list[str]:
    """What ``/readyz`` says is not as it should be."""
    with urllib.request.urlopen(f"{daemon.url}/readyz", timeout=10) as answer:
        data: Any = json.load(answer)["data"]
    return list(data["degraded"]) if data else []

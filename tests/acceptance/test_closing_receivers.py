"""Receivers that close each connection soon after their answer, and say so to nobody."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.support.daemon import Daemon
from tests.support.scripted import SUCCESS

_TASKS = 120
_AT_A_TIME = 4
_MOST_FAILED = 4
"""One for each time that a connection is tried again: at first, 5 s later, and so on. It
was more than half of the tasks."""


class Closing:
    """Answers one request of each connection, and closes it some time later.

    Args:
        after_s: how long after.
        reads_on: whether what comes in between is read, and thrown away.
    """

    def __init__(self, after_s: float, *, reads_on: bool) -> None:
        self._after_s = after_s
        self._reads_on = reads_on
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.executed: Counter[bytes] = Counter()

    @contextmanager
    def listening(self) -> Iterator[str]:
        threading.Thread(target=self._accept, daemon=True).start()
        with self._listener:
            yield f"http://127.0.0.1:{self._listener.getsockname()[1]}/callback"
            # What waits for a connection does not end when its socket is closed.
            self._listener.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            data = b""
            while not data.endswith(b'{"data":1}'):
                more = connection.recv(65536)
                if not more:
                    return
                data += more
            (task_id,) = re.findall(rb"Taskd-Task-Id: ([0-9]+)\r\n", data)
            with self._lock:
                self.executed[task_id] += 1
            connection.sendall(SUCCESS)
            until = time.monotonic() + self._after_s
            while (left := until - time.monotonic()) > 0:
                if not self._reads_on:
                    time.sleep(left)  # noqa: TID251 - what this receiver is about
                    return
                connection.settimeout(left)
                if not connection.recv(65536):
                    return


@pytest.mark.parametrize("reads_on", [False, True], ids=["unread", "thrown away"])
def test_hardly_an_attempt_fails_and_no_task_is_executed_twice(
    tmp_path: Path, reads_on: bool
) -> None:
    receiver = Closing(0.05, reads_on=reads_on)
    with (
        receiver.listening() as url,
        Daemon(tmp_path) as daemon,
        daemon.create_app(url, step=1, retry_total=5) as client,
    ):
        ids: list[int] = []
        while len(ids) < _TASKS:
            tasks = [
                {"taskNo": f"{len(ids)}-{n}", "name": "n", "content": "1", "timeout": 10_000}
                for n in range(_AT_A_TIME)
            ]
            ids += [result["coroutine_id"] for result in client.create_tasks(tasks)]
            time.sleep(0.01)  # noqa: TID251 - so that connections are idle in between
        details = []
        deadline = time.monotonic() + 60
        for task_id in ids:
            while (task := client.detail(task_id)["task"])["state"] != "succeeded":
                assert time.monotonic() < deadline, task
                time.sleep(0.02)  # noqa: TID251 - under the deadline
            details.append(task)
    failed = [
        attempt["error"]
        for task in details
        for attempt in task["attempts"]
        if attempt["outcome"] != "succeeded"
    ]
    assert len(failed) <= _MOST_FAILED, failed
    assert set(receiver.executed) == {b"%d" % task_id for task_id in ids}
    assert set(receiver.executed.values()) == {1}

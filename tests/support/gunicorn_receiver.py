"""A real gunicorn with sync workers, whose application takes a fixed time for each request."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Self

from tests.support.daemon import wait_until

_START_S = 30.0
_LISTENS = re.compile(r"Listening at: (http://127\.0\.0\.1:\d+)")

_APPLICATION = """
import os, time

def application(environ, start_response):
    environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    task = environ["HTTP_TASKD_TASK_ID"].encode()
    ledger = os.open({ledger!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(ledger, task + b"\\n")
    os.close(ledger)
    time.sleep({each_s})
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"success"]
"""


class GunicornReceiver:
    """Serves on a free port of 127.0.0.1 while it is entered.

    Args:
        folder: for its files.
        workers: how many processes, of one request at a time each.
        each_s: how long each request takes.
    """

    def __init__(self, folder: Path, *, workers: int, each_s: float) -> None:
        self._ledger = folder / "ledger"
        self._log = folder / "gunicorn.log"
        (folder / "slow_application.py").write_text(
            _APPLICATION.format(ledger=str(self._ledger), each_s=each_s)
        )
        self._command = [
            *(sys.executable, "-m", "gunicorn", "--bind", "127.0.0.1:0"),
            *("--workers", str(workers), "--worker-class", "sync"),
            *("--chdir", str(folder), "--worker-tmp-dir", str(folder), "slow_application"),
        ]
        self._environ = {**os.environ, "HOME": str(folder)}  # where it keeps a socket
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    def executions(self) -> Counter[int]:
        """How often each task's request was worked on."""
        if not self._ledger.exists():
            return Counter()
        return Counter(map(int, self._ledger.read_text().split()))

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            process = subprocess.Popen(self._command, stdout=log, stderr=log, env=self._environ)
        self._process = process
        wait_until(
            lambda: self._listens() or process.poll() is not None, within_s=_START_S, what="a start"
        )
        found = self._listens()
        assert found is not None, self._log.read_text()
        self.url = f"{found[1]}/callback"
        return self

    def _listens(self) -> re.Match[str] | None:
        return _LISTENS.search(self._log.read_text())

    def __exit__(self, *exc_info: object) -> None:
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

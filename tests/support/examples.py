"""The programs of examples/, as processes."""

from __future__ import annotations

import http.client
import os
import queue
import re
import secrets
import shutil
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Self

import pytest

from taskd.clock import SystemClock
from taskd.domain import signing

EXAMPLES = Path(__file__).parents[2] / "examples"
_START_S = 20.0
_ADDRESS = re.compile(r"http://127\.0\.0\.1:(\d+)")
_INSTALL = {"php": "apt-get install php-cli", "node": "apt-get install nodejs"}
_COMMANDS = {
    "python": ("python3", "receiver.py", "{port}"),
    "node": ("node", "receiver.mjs", "{port}"),
    "php": ("php", "-S", "127.0.0.1:{port}", "receiver.php"),
}
LANGUAGES = tuple(_COMMANDS)


def program(name: str) -> str:
    """The path of an interpreter or tool; skips where there is none."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"no {name} here: {_INSTALL.get(name, f'apt-get install {name}')}")
    return path


def signed(
    app_key: str, secret_key: str, body: bytes, *, age_s: int = 0, attempt: int = 1
) -> dict[str, str]:
    """The headers of a callback for the task 7, with app_key in one spelling."""
    now_ms = SystemClock().now_ms() - age_s * 1000
    nonce = "cb-" + secrets.token_hex(13)
    return {
        **signing.sign_headers(app_key, secret_key, body, now_ms=now_ms, nonce=nonce),
        "Content-Type": "application/json",
        "Taskd-Task-Id": "7",
        "Taskd-Attempt": str(attempt),
    }


def post(port: int, headers: Mapping[str, str], body: bytes) -> tuple[int, str]:
    """Status and text of a receiver's answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("POST", "/", body=body, headers=dict(headers))
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


class ExampleReceiver:
    """One of the example receivers, while it is entered."""

    def __init__(
        self, language: str, folder: Path, *, app_key: str, secret_key: str, port: int = 0
    ) -> None:
        interpreter, *arguments = _COMMANDS[language]
        self._command = [program(interpreter), *(part.format(port=port) for part in arguments)]
        self._environ = {
            **os.environ,
            "TASKD_APP_KEY": app_key,
            "TASKD_SECRET_KEY": secret_key,
            "RECEIVER_STATE": str(folder / "receiver.json"),
        }
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.port = 0

    def wait_for_line(self, pattern: str) -> str:
        """The next line of its output in which the pattern is found."""
        try:
            while True:
                line = self._lines.get(timeout=_START_S)
                if re.search(pattern, line):
                    return line
        except queue.Empty:
            raise AssertionError(f"the receiver did not say {pattern!r}") from None

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command,
            cwd=EXAMPLES,
            env=self._environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self._process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,))
        self._reader.start()
        address = _ADDRESS.search(self.wait_for_line(_ADDRESS.pattern))
        assert address is not None
        self.port = int(address[1])
        return self

    def _read(self, output: IO[str]) -> None:
        with output:
            for line in output:
                self._lines.put(line)

    def __exit__(self, *exc_info: object) -> None:
        self._process.terminate()
        self._process.wait()
        self._reader.join()

"""The real daemon as a subprocess, in a folder of its own, on a free port."""

from __future__ import annotations

import json
import os
import queue
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from taskd.client import Client

ADMIN_KEY = "admin"
_START_S = 20.0
_READY = "taskd is listening on "


class Daemon:
    """A ``taskd serve`` that a test starts, signals, kills and starts again."""

    def __init__(
        self,
        folder: Path,
        *,
        sections: Mapping[str, Mapping[str, object]] | None = None,
        environ: Mapping[str, str] | None = None,
        command: tuple[str, ...] = (sys.executable, "-m", "taskd"),
        port: int = 0,
    ) -> None:
        self.folder = folder
        self.command = command
        self.admin_secret = secrets.token_hex(16)
        self.config_path = folder / "taskd.toml"
        self.log_path = folder / "taskd.log"
        self.url = ""
        self._environ = {**os.environ, **(environ or {})}
        self._process: subprocess.Popen[str] | None = None
        self.write_config(sections or {}, port=port)

    def write_config(self, sections: Mapping[str, Mapping[str, object]], *, port: int = 0) -> None:
        tables: dict[str, dict[str, object]] = {
            "server": {"port": port, "drain_timeout": 5},
            "auth": {"admin_key": ADMIN_KEY, "admin_secret": self.admin_secret},
            "log": {"format": "json"},
        }
        for name, values in sections.items():
            tables.setdefault(name, {}).update(values)
        lines = []
        for name, table in tables.items():
            lines.append(f"[{name}]")
            lines += [f"{key} = {_toml(value)}" for key, value in table.items()]
        self.config_path.write_text("\n".join(lines) + "\n")
        self.config_path.chmod(0o600)

    @property
    def process(self) -> subprocess.Popen[str]:
        assert self._process is not None, "the daemon was not started"
        return self._process

    @property
    def pid(self) -> int:
        return self.process.pid

    def launch(self) -> None:
        """Start the process without waiting until it accepts."""
        with self.log_path.open("a") as log:
            self._process = subprocess.Popen(
                [*self.command, "serve", "--config", str(self.config_path)],
                cwd=self.folder,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def start(self) -> Self:
        """Start it and wait until it accepts."""
        self.launch()
        stdout = self.process.stdout
        assert stdout is not None
        lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        reader = threading.Thread(target=lambda: lines.put(stdout.readline()), daemon=True)
        reader.start()
        try:
            line = lines.get(timeout=_START_S)
        except queue.Empty:
            self.kill()
            raise AssertionError(f"the daemon did not start:\n{self.log()}") from None
        told = json.loads(line)["message"] if line.startswith("{") else line
        if not told.startswith(_READY):
            self.kill()
            raise AssertionError(f"the daemon ended:\n{line}{self.log()}")
        self.url = told.removeprefix(_READY).strip()
        return self

    def log(self) -> str:
        return self.log_path.read_text() if self.log_path.exists() else ""

    def admin(self) -> Client:
        return Client(self.url, ADMIN_KEY, self.admin_secret)

    def create_keys(self, link_url: str, *, step: int = 0, retry_total: int = 3) -> tuple[str, str]:
        """Create an application; its app_key and secret_key."""
        with self.admin() as admin:
            data = admin.create_app(
                name="an app", link_url=link_url, step=step, retry_total=retry_total
            )
        return str(data["appKey"]), str(data["secretKey"])

    def create_app(self, link_url: str, *, step: int = 0, retry_total: int = 3) -> Client:
        """Create an application; a client that signs as it."""
        keys = self.create_keys(link_url, step=step, retry_total=retry_total)
        return Client(self.url, *keys)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, timeout: float = 15.0) -> int:
        code = self.process.wait(timeout)
        self._close_pipe()
        return code

    def stop(self, timeout: float = 15.0) -> int:
        """SIGTERM, and the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait(timeout)

    def kill(self) -> None:
        """SIGKILL, if it lives."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._close_pipe()

    def _close_pipe(self) -> None:
        if self._process is not None and self._process.stdout is not None:
            self._process.stdout.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.kill()


def reason_of(log: str) -> str:
    """Why a daemon whose log is JSON has ended: the reason in its last line."""
    told = json.loads(log.splitlines()[-1])
    assert told["message"] == "taskd serve failed", log
    return str(told["reason"])


def wait_until(condition: object, *, within_s: float = 10.0, what: str = "it") -> None:
    """Poll a callable until it is true; fail after a deadline."""
    assert callable(condition)
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come to pass within {within_s} s"
        time.sleep(0.02)  # noqa: TID251 - a synchronous test polls a subprocess


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    escaped = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'

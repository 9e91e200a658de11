"""The receiver of receiver.c: built, started, and asked what has arrived."""

from __future__ import annotations

import http.client
import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tools.bench.peers.processes import Program

SOURCE = Path(__file__).parent / "receiver.c"


@dataclass(frozen=True)
class Count:
    """What the receiver has seen since its ledger was last taken."""

    delivered: int
    refused: int


def build(target: Path, compiler: str = "cc") -> Path:
    """Compile the receiver, unless it is there and newer than its source."""
    sources = [SOURCE, SOURCE.with_name("sha256.h")]
    if not target.exists() or any(
        source.stat().st_mtime > target.stat().st_mtime for source in sources
    ):
        target.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            [compiler, "-O3", "-Wall", "-Wextra", "-Werror", "-o", str(target), str(SOURCE)],
            check=True,
        )
    return target


class Receiver:
    """The receiver's process."""

    def __init__(self, program: Path, secret_key: str, folder: Path) -> None:
        self.program = Program(
            [str(program), secret_key], log=folder / "receiver.log", cwd=folder, talks=True
        )
        self.port = int(self.program.stdout.readline())
        self._connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)

    @property
    def url(self) -> str:
        """Where to deliver to."""
        return f"http://127.0.0.1:{self.port}/callback"

    def _get(self, path: str) -> bytes:
        self._connection.request("GET", path)
        return self._connection.getresponse().read()

    def count(self) -> Count:
        """How many have arrived."""
        told = json.loads(self._get("/count"))
        return Count(told["delivered"], told["refused"])

    def take(self) -> list[tuple[int, int]]:
        """``(number, arrival in Unix us)`` of all deliveries; begins a new ledger."""
        return [(number, at_us) for number, at_us in json.loads(self._get("/ledger"))]

    def wait_for(
        self, count: int, *, quiet_s: float, within_s: float, tick: Callable[[], None] | None = None
    ) -> bool:
        """Wait for so many deliveries; False where none came for ``quiet_s``, or the
        time was up. ``tick`` is called at each look."""
        deadline = time.monotonic() + within_s
        seen, since = -1, time.monotonic()
        while True:
            now = self.count().delivered
            if now >= count:
                return True
            if now > seen:
                seen, since = now, time.monotonic()
            if time.monotonic() > min(deadline, since + quiet_s):
                return False
            if tick is not None:
                tick()
            time.sleep(0.01)

    def close(self) -> None:
        """End it."""
        self._connection.close()
        self.program.kill()

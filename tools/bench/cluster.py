"""The servers that a cluster is measured on: those of the tests."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tools.bench import stage
from tools.bench.stage import Slot
from tools.servers import (
    MariaDB,
    Nsqd,
    RealNsqd,
    Redis,
    ServerMissing,
    StandInNsqd,
    has_real_nsqd,
)


@dataclass(frozen=True)
class Servers:
    """What is running."""

    mariadb: MariaDB
    redis: Redis
    nsqd: Nsqd

    @property
    def nsqd_name(self) -> str:
        return "the tests' stand-in for nsqd" if self.nsqd.stand_in else "a real nsqd"

    def place(self, folder: Path, nodes: int) -> Slot:
        """A place on an empty database."""
        self.redis.execute("FLUSHALL")
        place = Slot(
            folder,
            nodes=nodes,
            store=self.mariadb.create_database(),
            bus=self.redis.url,
            queue=f"nsq://{self.nsqd.address}",
        )
        config = folder / "migrate.toml"
        config.write_text(place.config())
        config.chmod(0o600)
        command = [sys.executable, "-m", "taskd", "migrate", "--config", str(config)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return place


@contextmanager
def servers() -> Iterator[Servers | None]:
    """The servers; None where their programs are not installed."""
    with ExitStack() as stack:
        folder = stack.enter_context(stage.folder())
        folder.chmod(0o755)
        try:
            started = Servers(
                stack.enter_context(
                    MariaDB(
                        _made(folder / "mariadb"), MariaDB.make_template(_made(folder / "template"))
                    )
                ),
                stack.enter_context(Redis(_made(folder / "redis"))),
                stack.enter_context(_nsqd(_made(folder / "nsqd"))),
            )
        except ServerMissing:
            yield None
        else:
            yield started


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _nsqd(folder: Path) -> Nsqd:
    return RealNsqd(folder) if has_real_nsqd() else StandInNsqd(folder)

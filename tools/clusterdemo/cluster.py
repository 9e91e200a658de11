"""The demo's cluster: MariaDB, Redis, NSQ and three nodes, as private processes."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from taskd.cli.demo.signals import Signals
from taskd.config import toml_string
from tools.servers import (
    MariaDB,
    Nsqd,
    RealNsqd,
    Redis,
    Server,
    StandInNsqd,
    find,
    has_real_nsqd,
)

LEASE_S = 5
NODES = 3
ADMIN_KEY = "admin"

_MIGRATE_S = 60.0
_READY_S = 3.0
_NAMED_S = 5.0
_POLL_S = 0.02
_LINES_SHOWN = 8


class SetupFailed(Exception):
    """The cluster could not be set up; one sentence."""


class Node(Server):
    """One ``taskd serve``; killed and started again, it is a new node on the old port.

    Args:
        number: 1, 2 or 3.
        config: what its configuration has in common with the others'.
    """

    ready = rb"taskd is listening on "

    def __init__(self, folder: Path, number: int, config: str) -> None:
        super().__init__(folder)
        self.number = number
        self.url = f"http://{self.address}"
        self.config_path = folder / "taskd.toml"
        self.config_path.touch(mode=0o600)
        server = f"[server]\nport = {self.port}\ndrain_timeout = 2\n\n"
        self.config_path.write_text(server + config, encoding="utf-8")
        self._name = ""

    def __str__(self) -> str:
        return f"node {self.number}"

    @property
    def name(self) -> str:
        """What the cluster calls it, as ``/task/detail`` does; each start has another."""
        return self._name

    def command(self) -> list[str]:
        """See `Server.command`."""
        return [*_PROGRAM, "serve", "--config", str(self.config_path)]

    def environ(self) -> dict[str, str]:
        """See `Server.environ`."""
        return _environ()

    def start(self) -> Node:
        """See `Server.start`."""
        before = len(self._events("started"))
        super().start()
        deadline = time.monotonic() + _NAMED_S
        # The log is written by a thread of its own, perhaps after the announcement.
        while len(events := self._events("started")) == before:
            if time.monotonic() > deadline:
                raise SetupFailed(f"{self} did not log its start")
            time.sleep(_POLL_S)  # noqa: TID251 - waits for another process's line
        self._name = str(events[-1]["node"])
        return self

    def ready_word(self) -> tuple[int, str]:
        """What ``/readyz`` answers: the status, and what is not in order, if anything."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=_READY_S)
        try:
            connection.request("GET", "/readyz")
            response = connection.getresponse()
            envelope = json.loads(response.read())
        finally:
            connection.close()
        if response.status != http.HTTPStatus.OK:
            return response.status, str(envelope["msg"])
        return response.status, "; ".join((envelope["data"] or {}).get("degraded", ()))

    def last_complaints(self) -> list[str]:
        """The last of what it logged that is not in order."""
        lines = (line for line in self.log().splitlines() if _complains(line))
        return list(deque(lines, maxlen=_LINES_SHOWN))

    def _events(self, message: str) -> list[dict[str, object]]:
        events = []
        for line in self.log().splitlines():
            if line.startswith("{") and line.endswith("}") and f'"{message}"' in line:
                event = json.loads(line)
                if event["message"] == message:
                    events.append(event)
        return events


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What runs."""

    redis: Redis
    nsqd: Nsqd
    nodes: tuple[Node, ...]
    signals: Signals

    def named(self, name: object) -> Node:
        """The node that the cluster calls so.

        Raises:
            LookupError: none that runs is.
        """
        for node in self.nodes:
            if node.name == name and node.running:
                return node
        raise LookupError(f"no node that runs is called {name}")

    def start(self, server: Server | Nsqd) -> None:
        """Start what was stopped or killed; a signal waits until it is up."""
        with self.signals.held():
            server.start()


def check_programs() -> None:
    """Make sure that the servers are installed.

    Raises:
        ServerMissing: one is not; says how to install it.
    """
    find("mariadbd", "mysqld")
    find("mariadb-install-db", "mysql_install_db")
    find("mariadb", "mysql")
    find("redis-server")


@contextmanager
def running_cluster(
    folder: Path, admin_secret: str, signals: Signals, say: Callable[[str], None]
) -> Iterator[Cluster]:
    """Servers and nodes with all that is theirs in the folder, on free ports.

    Every process is ended with the block, whatever happens; should this very process
    be killed, the guard of the test servers ends them.

    Raises:
        ServerMissing, ServerFailed, SetupFailed: something did not come up.
    """
    stack = ExitStack()
    try:
        with signals.held():
            template = MariaDB.make_template(_made(folder / "template"))
            mariadb = stack.enter_context(MariaDB(_made(folder / "mariadb"), template))
        say(f"MariaDB:  {mariadb.address}")
        with signals.held():
            redis = stack.enter_context(Redis(_made(folder / "redis")))
        say(f"Redis:    {redis.address}")
        with signals.held():
            nsqd = stack.enter_context(_nsqd(_made(folder / "nsqd")))
        what = "no real nsqd is at hand, so the stand-in of tools/servers/ is used"

        say(f"NSQ:      {nsqd.address}; {what if nsqd.stand_in else 'the real nsqd'}")

        config = _config(mariadb.create_database("taskd"), redis, nsqd, admin_secret)
        nodes = tuple(
            Node(_made(folder / f"node-{number}"), number, config) for number in range(1, NODES + 1)
        )
        with signals.held():
            _migrate(nodes[0])
        say("schema:   made by taskd migrate")
        for node in nodes:
            with signals.held():
                stack.enter_context(node)
            say(f"{node}:   {node.url}, called {node.name}, process {node.pid}")
        yield Cluster(redis=redis, nsqd=nsqd, nodes=nodes, signals=signals)
    finally:
        with signals.held():
            stack.close()


_PROGRAM = (sys.executable, "-m", "taskd")


def _complains(line: str) -> bool:
    return '"level": "info"' not in line and Node.ready.decode() not in line


def _nsqd(folder: Path) -> Nsqd:
    return RealNsqd(folder) if has_real_nsqd() else StandInNsqd(folder)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _environ() -> dict[str, str]:
    """Without what is said of another daemon here."""
    return {name: text for name, text in os.environ.items() if not name.startswith("TASKD_")}


def _config(store: str, redis: Redis, nsqd: Nsqd, admin_secret: str) -> str:
    return (
        f"[auth]\nadmin_key = {toml_string(ADMIN_KEY)}\n"
        f"admin_secret = {toml_string(admin_secret)}\n\n"
        f"[store]\nurl = {toml_string(store)}\n\n"
        f"[bus]\nurl = {toml_string(redis.url)}\n\n"
        f"[queue]\nurl = {toml_string(f'nsq://{nsqd.address}')}\n\n"
        f"[worker]\nlease = {LEASE_S}\n\n"
        '[log]\nformat = "json"\n'
    )


def _migrate(node: Node) -> None:
    done = subprocess.run(  # noqa: S603 - this very program
        [*_PROGRAM, "migrate", "--config", str(node.config_path)],
        cwd=node.folder,
        env=_environ(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_MIGRATE_S,
        check=False,
    )
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())
        raise SetupFailed(f"taskd migrate ended with {done.returncode}: {said}")

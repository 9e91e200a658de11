"""One peer at work in one durability class: broker, workers, submitter, receiver."""

from __future__ import annotations

import functools
import http.client
import os
import subprocess
import time
from pathlib import Path
from typing import Any, Self

from tools.bench.peers import roster, servers
from tools.bench.peers.orders import BackgroundOrder, Submitter
from tools.bench.peers.processes import Program, cpu_seconds, free_port, memory_mb
from tools.bench.peers.receiver import Receiver
from tools.bench.peers.roster import Peer
from tools.bench.stage import KEYS, Slot, fill

READY_S = 40
RECOVERY_S = 5
"""What a peer is set up with for the kills: a dead worker's tasks come back after it."""


class Stage:
    """All that takes part, until the end of the ``with``."""

    def __init__(self, peer: Peer, durability: str, folder: Path, *, recovering: bool) -> None:
        self.peer = peer
        self.durability = durability
        self.folder = folder
        self.broker = self._broker()  # first, for it may be missing
        self.receiver = Receiver(roster.HOME / "receiver", KEYS.secret_key, folder)
        self._next = 1
        self.restarts = 0
        self.per_s = 0.0
        """Tasks that the peer delivers in a second, as far as is known."""
        self.workers: list[Program] = []
        self.environment = {
            "PEERS_BROKER": self.broker.url,
            "PEERS_RECEIVER": str(self.receiver.port),
            "PEERS_SECRET": KEYS.secret_key,
            "PEERS_APP_KEY": KEYS.app_key,
            "PEERS_RECOVERY_S": str(RECOVERY_S if recovering else 0),
            "PYTHONPATH": str(roster.APPS),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        self._recovering = recovering
        self._submitter: Submitter | None = None

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        for program in [*([self._submitter.program] if self._submitter else []), *self.workers]:
            program.kill()
        self.broker.stop()
        self.receiver.close()

    @property
    def submitter(self) -> Submitter:
        """The process that submits."""
        assert self._submitter is not None
        return self._submitter

    @property
    def counted(self) -> list[Program]:
        """Whose CPU and memory are the peer's: workers and broker, not the submitter,
        unless it is the worker."""
        workers = self.workers or [self.submitter.program]
        return [*workers, *self.broker.programs()]

    def numbers(self, count: int) -> int:
        """The first of so many numbers that no task has had."""
        first, self._next = self._next, self._next + count
        return first

    def cpu_s(self) -> float:
        """CPU seconds of the peer so far."""
        return cpu_seconds(self.counted)

    def memory_mb(self) -> float:
        """Resident memory of the peer."""
        return memory_mb(self.counted)

    def start_workers(self) -> None:
        """Start the workers, or start them again."""
        self.workers = [
            Program(
                argv,
                log=self.folder / f"worker-{index}.log",
                cwd=self._cwd(),
                environment=self._worker_environment(),
            )
            for index, argv in enumerate(self.peer.workers)
        ]
        if self.peer.broker == "taskd":
            self._await_taskd()

    def start_submitter(self) -> None:
        """Start the submitter, or start it again."""
        program = Program(
            self.peer.submitter,
            log=self.folder / "submitter.log",
            cwd=roster.APPS,
            environment=self.environment,
            talks=True,
        )
        self._submitter = Submitter(program)

    def tend(self) -> None:
        """Start again what has ended by itself, as a service manager would."""
        for index, program in enumerate(self.workers):
            if not program.running:
                self.restarts += 1
                program.kill()
                self.workers[index] = Program(
                    self.peer.workers[index],
                    log=program.log,
                    cwd=self._cwd(),
                    environment=self._worker_environment(),
                )

    def _start(self) -> None:
        if self.peer.broker == "taskd":
            self._prepare_taskd()
        self.broker.start()
        if self.peer.prepare:
            subprocess.run(
                self.peer.prepare,
                check=True,
                cwd=roster.APPS,
                env={**os.environ, **self.environment},
                capture_output=True,
                timeout=READY_S,
            )
        self.start_workers()
        self.start_submitter()
        self.probe()

    def probe(self) -> None:
        """Have one task delivered, so that everything is known to be up.

        A worker that subscribes only now may have missed the first: try some more.
        """
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            self.submitter.order("single", self.numbers(1), 1, 5)
            if self.receiver.wait_for(1, quiet_s=3, within_s=3, tick=self.tend):
                self.receiver.take()
                return
        logs = "\n".join(program.tail() for program in self.workers)
        raise RuntimeError(f"{self.peer.name} delivered nothing within {READY_S} s:\n{logs}")

    def in_background(self, *order: Any, **more: Any) -> BackgroundOrder:  # noqa: ANN401 - passed on
        """Have an order carried out while something else goes on."""
        return BackgroundOrder(functools.partial(self.submitter.order, *order, **more))

    def _broker(self) -> servers.Broker:
        match self.peer.broker:
            case "postgres":
                return servers.Postgres(self.folder)
            case "sqlite":
                return servers.Broker(str(self.folder / "queue.db"))
            case "taskd":
                return servers.Broker(f"http://127.0.0.1:{free_port()}")
            case "redis or none" if self.durability == "memory":
                return servers.Broker()
            case _:
                return servers.Redis(self.folder, self.durability)

    def _cwd(self) -> Path:
        return self.folder if self.peer.broker == "taskd" else roster.APPS

    def _worker_environment(self) -> dict[str, str]:
        if self.peer.broker == "taskd":
            return {"PYTHONPATH": str(roster.ROOT)}
        return self.environment

    def _prepare_taskd(self) -> None:
        config = self.folder / "taskd.toml"
        port = self.broker.url.rpartition(":")[2]
        lease = f"[worker]\nlease = {RECOVERY_S}\n" if self._recovering else ""
        config.write_text(f'[server]\nport = {port}\n[log]\nlevel = "warning"\n{lease}')
        config.chmod(0o600)
        fill(Slot(self.folder), self.receiver.url, tasks=0)

    def _await_taskd(self) -> None:
        deadline = time.monotonic() + READY_S
        while _status(self.broker.url, "GET", "/readyz") != 200:
            if time.monotonic() > deadline or not self.workers[0].running:
                raise RuntimeError(f"taskd did not start: {self.workers[0].tail()}")
            time.sleep(0.02)


def _status(url: str, method: str, path: str) -> int:
    """The HTTP status of an unsigned request; 0 where nobody answers."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=5)
    try:
        body = b"{}" if method == "POST" else None
        connection.request(method, path, body, {"Content-Type": "application/json"})
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()

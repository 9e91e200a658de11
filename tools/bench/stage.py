"""The daemon and the receiver as processes, and a store filled beforehand."""

from __future__ import annotations

import atexit
import dataclasses
import http.client
import json
import queue
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import trio

from taskd.domain.model import App, NewTask
from taskd.ports.store import Store
from taskd.stores.sqlite.store import SQLiteStore
from tools.bench.load import CONTENT, Keys

_FILLERS = 64
KEYS = Keys("benchbenchbench0", "benchsecretbenchsecretbenchsecre")
HUNG_KEYS = Keys("hunghunghunghun0", "hungsecrethungsecrethungsecrethu")


class Receiver:
    """The receiver's process, and what arrived there: the one in C where it can be
    compiled, which takes less of the machine, else the one in Python."""

    def __init__(self) -> None:
        command = _sink() or [sys.executable, "-m", "tools.bench.receiver"]
        self.name = "a receiver in C" if len(command) == 1 else "a receiver in Python"
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        self._count = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/callback"

    def take(self) -> list[tuple[int, float]]:
        """``(task id, arrival in Unix ms)`` of what arrived since the last call."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request("GET", "/ledger")
        ledger = json.loads(connection.getresponse().read())
        connection.close()
        return [(task_id, at) for task_id, at in ledger]

    def wait_for(self, count: int, *, within_s: float) -> list[tuple[int, float]]:
        """The deliveries, once there are so many."""
        deadline = time.monotonic() + within_s
        arrived: list[tuple[int, float]] = []
        while len(arrived) < count:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(arrived)} of {count} deliveries within {within_s} s")
            time.sleep(0.25)
            arrived += self.take()
        return arrived

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


@dataclass(frozen=True)
class Slot:
    """Where a measurement is made: a folder, and how many nodes on which servers;
    without servers, one daemon on SQLite, of so many worker processes."""

    folder: Path
    nodes: int = 1
    workers: int = 1
    store: str = ""
    bus: str = ""
    queue: str = ""

    @property
    def database(self) -> Path:
        return self.folder / "taskd.db"

    def config(self) -> str:
        urls = {"store": self.store, "bus": self.bus, "queue": self.queue}
        return "".join(f'[{name}]\nurl = "{url}"\n' for name, url in urls.items() if url)


def _sink() -> list[str] | None:
    """The command of the receiver in C, compiled; None where there is no compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    source = Path(__file__).with_name("sink.c")
    # Not in the folder of a measurement: it outlives them all.
    target = Path(tempfile.mkdtemp(prefix="taskd-bench-")) / "sink"
    atexit.register(shutil.rmtree, target.parent, ignore_errors=True)
    subprocess.run([compiler, "-O2", "-o", str(target), str(source)], check=True)
    return [str(target)]


class Daemon:
    """``taskd serve`` in a place, with a log of its own."""

    def __init__(self, place: Slot, number: int = 0) -> None:
        config = place.folder / f"node-{number}.toml"
        config.write_text(
            '[server]\nport = 0\n[auth]\nadmin_secret = "benchbenchbenchbench"\n'
            f'[log]\nformat = "json"\n{place.config()}'
        )
        config.chmod(0o600)
        self._log_path = log_path = config.with_suffix(".log")
        self._log_began_at = log_path.stat().st_size if log_path.exists() else 0
        command = [sys.executable, "-m", "taskd", "serve", "--config", str(config)]
        if place.workers > 1:
            command += ["--workers", str(place.workers)]
        began = time.perf_counter()
        with log_path.open("a") as log:
            self._process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        stdout = self._process.stdout
        assert stdout is not None
        lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=lambda: lines.put(stdout.readline()), daemon=True).start()
        line = lines.get(timeout=60)
        self.started_in_s = time.perf_counter() - began
        if not line.startswith("{"):
            raise RuntimeError(f"the daemon did not start: {log_path.read_text()}")
        self.url = json.loads(line)["url"]

    @property
    def pid(self) -> int:
        return self._process.pid

    def store_closed(self) -> list[dict[str, Any]]:
        """What each process logged of its writes, once they have ended."""
        with self._log_path.open("rb") as log:
            log.seek(self._log_began_at)
            events = [json.loads(line) for line in log if line.startswith(b"{")]
        return [event for event in events if "store_busy_s" in event]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextmanager
def folder() -> Iterator[Path]:
    """A folder that is gone afterwards."""
    # Beside the project and not in /tmp, which may be no disk.
    made = Path(tempfile.mkdtemp(prefix=".bench-", dir=Path.cwd()))
    try:
        yield made
    finally:
        shutil.rmtree(made)


@contextmanager
def running(place: Slot) -> Iterator[Daemon]:
    """The place's nodes at work; the first of them is the one to talk to."""
    with ExitStack() as stack:
        first, *_ = [stack.enter_context(Daemon(place, number)) for number in range(place.nodes)]
        yield first


@contextmanager
def receiver() -> Iterator[Receiver]:
    """A receiver that is ended at the end."""
    started = Receiver()
    try:
        yield started
    finally:
        started.close()


@contextmanager
def silent_receiver() -> Iterator[str]:
    """An application that takes connections (as the kernel does, up to its backlog)
    and never answers: its URL."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/callback"


def fill(
    place: Slot,
    link_url: str,
    *,
    tasks: int,
    due_at: int | None = None,
    keys: Keys = KEYS,
    timeout_ms: int = 10_000,
) -> int:
    """Add the app and so many tasks to a store that no daemon holds, through the
    store's own code. Due now, or at ``due_at`` onwards, a millisecond apart.
    Returns the first task's id."""
    now = time.time_ns() // 1_000_000
    app = App(
        id=0,
        app_key=keys.app_key,
        secret_key=keys.secret_key,
        name="bench",
        link_url=link_url,
        step=5,
        retry_total=3,
        remark="",
        created_at=now,
    )

    def task(number: int) -> NewTask:
        return NewTask(
            app_id=app.id,
            task_no=f"{now:x}-{number * 2654435761 % 2**32:08x}-{number:x}",
            name="bench",
            content=CONTENT.encode(),
            timeout_ms=timeout_ms,
            due_at=now if due_at is None else due_at + number,
            created_at=now,
        )

    return trio.run(_fill, place, app, [task(number) for number in range(tasks)])


async def _opened(place: Slot) -> Store:
    if not place.store:
        return await SQLiteStore.open(place.database)
    # Only who measures a cluster has what this imports.
    from taskd.stores.mysql.store import MySQLStore  # noqa: PLC0415
    from taskd.stores.mysql.target import parse_mysql_url  # noqa: PLC0415

    return await MySQLStore.open(parse_mysql_url(place.store))


async def _fill(place: Slot, app: App, tasks: Sequence[NewTask]) -> int:
    first: list[int] = []
    store = await _opened(place)
    try:
        app = await store.app_by_key(app.app_key) or await store.create_app(app)
        waiting = iter(enumerate(tasks))

        async def add() -> None:
            for number, task in waiting:
                task_id = await store.create_task(dataclasses.replace(task, app_id=app.id))
                if number == 0:
                    first.append(task_id)

        async with trio.open_nursery() as nursery:
            for _ in range(_FILLERS):
                nursery.start_soon(add)
    finally:
        await store.aclose()
    return first[0] if first else 0

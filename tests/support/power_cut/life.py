"""The life of a daemon that is recorded: creates, cancels and details, deliveries, purges and
checkpoints, kills and restarts."""

from __future__ import annotations

import http.client
import json
import random
import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from taskd.domain import signing
from taskd.domain.model import NonceUse
from taskd.stores.encoding import nonce_digest
from tests.support.daemon import Daemon, wait_until
from tests.support.power_cut.facts import Request
from tests.support.power_cut.recording import Recorder
from tests.support.receiver import Answer, Delivery, Receiver
from tests.support.workers import lives, worker_pids

_LASTING = "2099-01-01 09:00:00"

# A day of a second, and checkpoints after a few hundred tasks: what takes weeks, in seconds.
_SERVE = """
import taskd.engine.janitor as janitor
import taskd.engine.retention as retention
import taskd.stores.sqlite.checkpoint as checkpoint
from taskd.__main__ import main

for module, name, value in (
    (retention, "_DAY_MS", 1_000), (janitor, "_TASKS_S", 0.5), (checkpoint, "_CHANGES", 700)
):
    assert hasattr(module, name), name
    setattr(module, name, value)
main()
"""


class Life:
    """A daemon in a folder of its own, recorded from its first start on, and its clients.

    Args:
        folder: empty.
        seed: of what the clients do.
        workers: the daemon's processes.
        unsynced: see `Recorder`.
    """

    def __init__(
        self, folder: Path, *, seed: int, workers: int = 1, unsynced: str | None = None
    ) -> None:
        self.store = folder / "store"
        """The folder of the store's files alone."""
        store = self.store / "taskd.db"
        self.store.mkdir()
        self.recorder = Recorder(folder, store, unsynced=unsynced)
        self.asked: dict[int, list[Request]] = defaultdict(list)
        self.lasting: set[int] = set()
        """Tasks that nobody has asked to cancel, and that are due in another century."""
        self.lives = 0
        self._receiver = Receiver(_answer)
        self._rng = random.Random(seed)
        self._daemon = Daemon(
            folder,
            sections={
                "server": {"workers": workers, "drain_timeout": 1},
                "store": {"url": f"sqlite:///{store}"},
                "retention": {"finished_days": 1},
            },
            environ=self.recorder.environ,
            command=(sys.executable, "-c", _SERVE),
        )
        self._keys: tuple[str, str] | None = None

    @property
    def receiver_port(self) -> int:
        return int(self._receiver.url.rpartition(":")[2].partition("/")[0])

    def run(self, *, ends: Sequence[str], requests: int) -> None:
        """Live once for each of these ends (``kill`` or ``stop``), with so many requests from
        each client."""
        with self._receiver:
            try:
                for end in ends:
                    self._live(end, requests)
            finally:
                self._daemon.kill()

    def _live(self, end: str, requests: int) -> None:
        self.lives += 1
        daemon = self._daemon.start()
        if self._keys is None:
            self._keys = daemon.create_keys(self._receiver.url, step=0, retry_total=2)
        known = _Known()
        port = int(daemon.url.rpartition(":")[2])
        clients = [
            _Client(
                self,
                known,
                work,
                port=port,
                keys=self._keys,
                seed=self._rng.randrange(2**32),
                requests=requests,
            )
            for work in ("singles", "singles", "singles", "batches", "details", "details")
        ]
        for client in clients:
            client.start()
        if end == "kill":
            # In the midst of it.
            wait_until(
                lambda: clients[0].done > requests // 2 or known.stopped.is_set(), within_s=120
            )
            assert not known.stopped.is_set(), [client.failure for client in clients]
            processes = [daemon.pid, *worker_pids(daemon)]
            daemon.kill()
            wait_until(lambda: not any(map(lives, processes)), within_s=60)
            self.recorder.note_files()
        for client in clients:
            client.join(120)
            assert not client.is_alive()
            assert client.failure is None, client.failure
        if end == "stop":
            assert daemon.stop() == 0, daemon.log()


class _Known:
    """What the clients of one life have in common."""

    def __init__(self) -> None:
        self.asking: deque[dict[str, object]] = deque(maxlen=4)
        """The newest names of tasks, by which to ask for what may be in the midst of a commit."""
        self.tasks: deque[int] = deque(maxlen=200)
        self.stopped = threading.Event()


class _Client(threading.Thread):
    """Asks one thing after the other on a connection of its own, until the daemon is gone."""

    def __init__(
        self,
        life: Life,
        known: _Known,
        work: str,
        *,
        port: int,
        keys: tuple[str, str],
        seed: int,
        requests: int,
    ) -> None:
        super().__init__(daemon=True)
        self.done = 0
        self.failure: str | None = None
        self._life, self._known, self._keys = life, known, keys
        self._rng = random.Random(seed)
        self._requests = requests
        self._work = {"singles": self._single, "batches": self._batch, "details": self._detail}[
            work
        ]
        self._is_reader = work == "details"
        self._name = f"{life.lives}-{seed:x}"
        self._connection = _connected(port)
        if self._local_port() in life.asked:  # by chance, that of a client before
            taken, self._connection = self._connection, _connected(port)
            taken.close()
        assert self._local_port() not in life.asked
        self._asked = life.asked[self._local_port()]

    def _local_port(self) -> int:
        local: int = self._connection.sock.getsockname()[1]
        return local

    def run(self) -> None:
        try:
            while self.done < self._requests and not self._known.stopped.is_set():
                self._work()
                self.done += 1
            if not self._is_reader:
                self._known.stopped.set()
        except (OSError, http.client.HTTPException):
            self._known.stopped.set()  # the daemon was killed
        except Exception as error:  # noqa: BLE001 - the test fails by it
            self._known.stopped.set()
            self.failure = repr(error)
        finally:
            self._connection.close()

    def _single(self) -> None:
        lasting = self._rng.random() < 0.3
        task = self._task(lasting=lasting)
        self._known.asking.append({"taskNo": task["taskNo"]})
        answer = self._ask("create", "/task/create", task)
        assert answer["code"] == 0, answer
        task_id = int(answer["data"]["coroutine_id"])
        self._known.tasks.append(task_id)
        chance = self._rng.random()
        if chance < 0.3:
            self._known.asking.append({"taskId": task_id})
            self._ask("cancel", "/task/cancel", {"taskId": task_id}, task_id=task_id)
        elif chance < 0.4:
            self._ask("create", "/task/create", task)  # its taskNo is taken
        elif lasting:
            self._life.lasting.add(task_id)

    def _batch(self) -> None:
        self._known.stopped.wait(0.05)
        tasks = [self._task(lasting=self._rng.random() < 0.3) for _ in range(20)]
        self._known.asking.append({"taskNo": tasks[-1]["taskNo"]})
        answer = self._ask("batch", "/task/batch", {"tasks": tasks})
        assert answer["code"] == 0, answer
        for task, result in zip(tasks, answer["data"]["results"], strict=True):
            task_id = int(result["coroutine_id"])
            self._known.tasks.append(task_id)
            if "runtime" in task and self._rng.random() < 0.5:
                self._life.lasting.add(task_id)

    def _detail(self) -> None:
        if not self._known.asking:
            self._known.stopped.wait(0.01)
            return
        if self._known.tasks and self._rng.random() < 0.3:
            which: dict[str, object] = {"taskId": self._rng.choice(list(self._known.tasks))}
        else:
            which = self._rng.choice(list(self._known.asking))
        self._ask("detail", "/task/detail", which)

    def _task(self, *, lasting: bool) -> dict[str, Any]:
        kind = self._rng.choice(["quick", "quick", "slow", "fails", "dies"])
        when: dict[str, object] = self._rng.choice([{}, {}, {"delay": 1}])
        length = self._rng.choice([10, 10, 500, 3_000])  # longer ones stand in a table of their own
        number = self._rng.getrandbits(64)
        return {
            "taskNo": f"{kind}-{self._name}-{number:x}",
            "name": kind,
            "content": json.dumps("x" * length),
            "timeout": 2_000,
            **({"runtime": _LASTING} if lasting else when),
        }

    def _ask(
        self, kind: str, path: str, fields: dict[str, Any], *, task_id: int = 0
    ) -> dict[str, Any]:
        body = json.dumps(fields).encode()
        key, secret = self._keys
        nonce = f"{self._rng.getrandbits(96):024x}"
        headers = signing.sign_headers(
            key,
            secret,
            body,
            now_ms=int(time.time() * 1000),  # noqa: TID251 - a client's own clock
            nonce=nonce,
        )
        headers["Content-Type"] = "application/json"
        digest = nonce_digest(NonceUse(app_key=key, nonce=nonce, expires_at=0)).hex()
        self._asked.append(Request(kind, digest, task_id))
        self._connection.request("POST", path, body, headers)
        answer: dict[str, Any] = json.loads(self._connection.getresponse().read())
        return answer


def _connected(port: int) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.connect()
    return connection


def _answer(delivery: Delivery) -> Answer:
    match delivery.task_no.partition("-")[0]:
        case "slow":
            return Answer(after_s=0.1)
        case "fails" if delivery.attempt == 1:
            return Answer(status=500, body=b"not yet")
        case "dies":
            return Answer(status=410)
    return Answer()

"""Batches of lines on their way to the daemon, over a few connections.

```
 main thread: offer(batch) ──► queue of few ──► threads, a Client each ──► /task/batch
              events()     ◄── what was answered, what is in the way ◄──┘
```

A batch whose answer does not come is sent again, signed anew, for as long as patience
lasts: what had arrived is then told by its taskNo, so nothing comes to be twice. A
batch that is refused as a whole is halved, down to the line that is the cause.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from taskd.cli.bulk.lines import Batch, Line, RefusedLine
from taskd.client import Client
from taskd.errors import ClientError, DaemonUnreachable, RequestRefused
from taskd.runtime.backoff import Backoff

PATIENCE_S = 60.0
"""How long the daemon may be gone, as in a restart."""

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 2.0
TICK_S = 0.1

_TAKEN = 1  # the envelope's code for a taskNo that is there already
_FAILED = "failed"
_NOT_NOW = frozenset({429, 503})
_HALVED = frozenset({400, 413, 422})
"""Codes that a part of the batch may be the cause of."""


class FailedTask(NamedTuple):
    """A task that was there already, and has failed."""

    line: int
    """Whose taskNo it has."""
    task_id: int


@dataclass(slots=True)
class Answered:
    """What became of a batch, or of its first part, where sending failed."""

    size: int
    """Bytes of the file that it stands for."""
    submitted: int = 0
    there: int = 0
    """Tasks whose taskNo the daemon knew."""
    failed: list[FailedTask] = field(default_factory=list)
    """Those of them that have failed."""
    refused: list[RefusedLine] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Failed:
    """A batch is being sent again, and why."""

    error: ClientError


Event = Answered | Failed


class Sender:
    """Sends batches. Called from one thread only.

    Args:
        clients: one for each thread; closed at its end.
        patience_s: for which a batch is sent again and again.
    """

    def __init__(self, clients: Sequence[Client], *, patience_s: float = PATIENCE_S) -> None:
        self._patience_s = patience_s
        self._batches: queue.Queue[Batch | None] = queue.Queue(maxsize=len(clients))
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self.failure: Exception | None = None
        """What ended the sending, if anything did."""
        # Daemons, so that a second Ctrl-C need not wait for an answer.
        self._threads = [
            threading.Thread(target=self._work, args=(client,), daemon=True) for client in clients
        ]
        for thread in self._threads:
            thread.start()

    def offer(self, batch: Batch | None) -> bool:
        """Hand on a batch, or None for the end of one thread; False if there is no room
        for it within `TICK_S`."""
        try:
            self._batches.put(batch, timeout=TICK_S)
        except queue.Full:
            return False
        return True

    def stop(self) -> None:
        """Send nothing more but what is on its way."""
        self._stopped.set()

    @property
    def stopped(self) -> bool:
        """Whether it was stopped, or sending has failed."""
        return self._stopped.is_set()

    def finish(self, within_s: float) -> bool:
        """Wait for the threads to end; False if they have not, after so long."""
        until = time.monotonic() + within_s
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    @property
    def threads(self) -> int:
        """How many there are."""
        return len(self._threads)

    def events(self) -> Iterator[Event]:
        """What happened since the last call."""
        while not self._events.empty():
            yield self._events.get()

    # What follows runs in the threads.

    def _work(self, client: Client) -> None:
        with client:
            while not self.stopped:
                try:
                    batch = self._batches.get(timeout=TICK_S)
                except queue.Empty:
                    continue
                if batch is None:
                    return
                answered = Answered(batch.size, refused=list(batch.refused))
                try:
                    self._send(client, batch.lines, answered)
                except Exception as error:  # noqa: BLE001 - it is raised in the main thread
                    self.failure = self.failure or error
                    self.stop()
                self._events.put(answered)

    def _send(self, client: Client, lines: Sequence[Line], answered: Answered) -> None:
        if not lines:
            return
        try:
            results = self._ask(client, lines)
        except RequestRefused as error:
            if error.code not in _HALVED:
                raise
            if len(lines) == 1:
                answered.refused.append(RefusedLine(lines[0].number, str(error)))
                return
            middle = len(lines) // 2
            self._send(client, lines[:middle], answered)
            self._send(client, lines[middle:], answered)
            return
        for line, result in zip(lines, results, strict=True):
            code = result.get("code", 0)
            if code == 0:
                answered.submitted += 1
            elif code == _TAKEN:
                answered.there += 1
                existing = result.get("existing")
                if isinstance(existing, dict) and existing.get("state") == _FAILED:
                    answered.failed.append(FailedTask(line.number, existing["taskId"]))
            else:
                answered.refused.append(RefusedLine(line.number, str(result.get("msg"))))

    def _ask(self, client: Client, lines: Sequence[Line]) -> list[dict[str, Any]]:
        texts = [line.text for line in lines]
        give_up_at = time.monotonic() + self._patience_s
        backoff = Backoff(FIRST_PAUSE_S, LONGEST_PAUSE_S)
        while True:
            try:
                return client.create_tasks(texts)
            except (DaemonUnreachable, RequestRefused) as error:
                if isinstance(error, RequestRefused) and error.code not in _NOT_NOW:
                    raise
                self._events.put(Failed(error))
                pause_s = backoff.next_s()
                if time.monotonic() + pause_s > give_up_at or self._stopped.wait(pause_s):
                    raise

"""Sends batches of lines to the daemon, over a few connections.

```
 main thread: offer(batch) ──► queue of few ──► threads, a Client each ──► /task/batch
              events()     ◄── answers, and failures to be retried ◄────┘
```

A batch without an answer is sent again, signed anew, for `patience_s`. Tasks of it that
had arrived are found by their taskNo, so none is created twice. A batch that is refused
as a whole is halved again and again, down to the line that is the cause.
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
"""How long the daemon may be away, as in a restart."""

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 2.0
TICK_S = 0.1

_TAKEN = 1  # the envelope's code for a taskNo that is there already
_FAILED = "failed"
_NOT_NOW = frozenset({429, 503})
_HALVED = frozenset({400, 413, 422})
"""Codes that a single line of the batch may have caused."""


class FailedTask(NamedTuple):
    """A task that was there already, and has failed."""

    line: int
    """The number of the line with its taskNo."""
    task_id: int


@dataclass(slots=True)
class Answered:
    """The daemon's answers to a batch, or to its first part if sending failed."""

    size: int
    """Bytes of the file that the batch takes."""
    submitted: int = 0
    there: int = 0
    """Tasks whose taskNo the daemon had already."""
    failed: list[FailedTask] = field(default_factory=list)
    """Those of ``there`` that have failed."""
    refused: list[RefusedLine] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Failed:
    """A batch will be sent again, because of an error."""

    error: ClientError


Event = Answered | Failed


class Sender:
    """Sends batches in threads. Its methods are called from one thread only.

    Args:
        clients: one for each thread, which closes it at its end.
        patience_s: how long a batch is sent again and again.
    """

    def __init__(self, clients: Sequence[Client], *, patience_s: float = PATIENCE_S) -> None:
        self._patience_s = patience_s
        self._batches: queue.Queue[Batch | None] = queue.Queue(maxsize=len(clients))
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self.failure: Exception | None = None
        """The error that ended the sending, or None."""
        # Daemon threads, so that a second Ctrl-C need not wait for an answer.
        self._threads = [
            threading.Thread(target=self._work, args=(client,), daemon=True) for client in clients
        ]
        for thread in self._threads:
            thread.start()

    def offer(self, batch: Batch | None) -> bool:
        """Hand on a batch, or None to end one thread; False if there is no room for it
        within `TICK_S`."""
        try:
            self._batches.put(batch, timeout=TICK_S)
        except queue.Full:
            return False
        return True

    def stop(self) -> None:
        """Begin to send no further batch."""
        self._stopped.set()

    @property
    def stopped(self) -> bool:
        """Whether it was stopped, or sending has failed."""
        return self._stopped.is_set()

    def finish(self, within_s: float) -> bool:
        """Wait for the threads to end; False if they have not ended within ``within_s``."""
        until = time.monotonic() + within_s
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    @property
    def threads(self) -> int:
        """How many threads there are."""
        return len(self._threads)

    def events(self) -> Iterator[Event]:
        """The events since the last call."""
        while not self._events.empty():
            yield self._events.get()

    # The methods below run in the threads.

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

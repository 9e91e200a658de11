"""``taskd task submit --from``: any number of tasks, from a file or a pipe."""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import click

from taskd.cli.boundary import (
    EXIT_FAILED,
    CommandError,
    Unreachable,
    WrongUsage,
    hint,
    print_json,
    wants_json,
)
from taskd.cli.bulk.lines import Batch, LineReader, chunks
from taskd.cli.bulk.progress_bar import Bar
from taskd.cli.bulk.sender import TICK_S, Answered, Failed, Sender
from taskd.cli.demo.display import is_live
from taskd.client import Client
from taskd.errors import DaemonUnreachable, RequestRefused
from taskd.runtime.text import NotText

CONNECTIONS = 4
"""Enough to keep the daemon busy while the next batches are written."""

_GRACE_S = 5.0
"""How long to wait for pending answers after Ctrl-C, or when the file can't be read."""

_UNAVAILABLE = 503
_STANDARD = "-"
_GO_ON = "run the same command again to go on: what is there already is passed over"


@dataclass(slots=True)
class _Counts:
    done: int = 0
    """Bytes of the file whose lines are answered."""
    submitted: int = 0
    there: int = 0
    """Tasks that were there already."""
    failed: int = 0
    """Those of ``there`` that have failed."""
    refused: int = 0


def submit_from(client: Client, source: str) -> None:
    """Submit the tasks of a file, ``-`` for standard input, and report.

    Raises:
        Exit: lines were refused, tasks that were there already have failed, or Ctrl-C.
        Unreachable: the daemon was away for too long.
        CommandError: the file can't be read.
        WrongUsage: the file is no text.
    """
    with _opened(source) as stream:
        clients = [client, *(client.copy() for _ in range(CONNECTIONS - 1))]
        bar = Bar(sys.stderr, live=is_live(sys.stderr), size=_size(stream))
        try:
            _Bulk(Sender(clients), bar).run(stream)
        except NotText as error:
            raise WrongUsage(f"--from: {source} {error}") from error


class _Bulk:
    """One bulk submission: reads batches, hands them on, counts answers, reports."""

    def __init__(self, sender: Sender, bar: Bar) -> None:
        self._sender = sender
        self._bar = bar
        self._reader = LineReader()
        self._counts = _Counts()
        self._began = time.monotonic()
        self._troubled = False

    def run(self, stream: IO[bytes]) -> None:
        try:
            for batch in self._reader.batches(chunks(stream)):
                if (batch.lines or batch.refused or batch.size) and not self._hand_on(batch):
                    break
                self._look()
                if self._sender.stopped:
                    break  # a pipe may be quiet for long
            for _ in range(self._sender.threads):
                self._hand_on(None)
            while not self._sender.finish(TICK_S):
                self._look()
        except KeyboardInterrupt:
            self._interrupted()
        except OSError as error:
            self._broken(error)
        finally:
            self._sender.stop()
            self._look()
            self._bar.clear()
        self._end()

    def _hand_on(self, batch: Batch | None) -> bool:
        """Hand on a batch as soon as there is room; False if sending has stopped."""
        while not self._sender.stopped:
            if self._sender.offer(batch):
                return True
            self._look()
        return False

    def _look(self) -> None:
        """Count the events since the last call, print messages, draw the bar."""
        counts = self._counts
        for event in self._sender.events():
            if isinstance(event, Failed):
                if not self._troubled:
                    self._say(f"{event.error}; trying again")
                self._troubled = True
                continue
            self._troubled = False
            self._count(event)
        tasks = counts.submitted + counts.there
        self._bar.draw(time.monotonic(), done=counts.done, tasks=tasks, refused=counts.refused)

    def _count(self, answered: Answered) -> None:
        self._counts.done += answered.size
        self._counts.submitted += answered.submitted
        self._counts.there += answered.there
        self._counts.failed += len(answered.failed)
        self._counts.refused += len(answered.refused)
        for task in answered.failed:
            self._say(f"line {task.line}: is there already, and has failed: task {task.task_id}")
        for line in sorted(answered.refused, key=lambda line: line.number):
            self._say(f"line {line.number}: {line.reason}")

    def _say(self, text: str) -> None:
        self._bar.clear()
        hint(text)

    def _interrupted(self) -> None:
        """After Ctrl-C: wait for pending answers; report; end."""
        self._sender.stop()
        self._bar.clear()
        try:
            self._sender.finish(_GRACE_S)
            self._look()
        except KeyboardInterrupt:
            pass  # a second Ctrl-C: tasks not answered are found by their taskNo next time
        self._bar.clear()
        self._report(complete=False)
        hint(f"interrupted; {_GO_ON}")
        raise click.exceptions.Exit(EXIT_FAILED)

    def _broken(self, error: OSError) -> None:
        """The file can't be read any further: wait for pending answers; report; end."""
        self._sender.stop()
        self._sender.finish(_GRACE_S)
        self._look()
        self._bar.clear()
        self._report(complete=False)
        raise CommandError(
            f"--from: can't be read further than line {self._reader.lines}: "
            f"{error.strerror or error}; {_GO_ON}"
        ) from error

    def _end(self) -> None:
        failure = self._sender.failure
        self._report(complete=failure is None)
        if failure is not None:
            known = self._counts.submitted + self._counts.there
            told = f"{failure}; {known:,} tasks are there, of the rest it is not known; {_GO_ON}"
            if isinstance(failure, DaemonUnreachable):
                raise Unreachable(told) from failure
            if isinstance(failure, RequestRefused) and failure.code == _UNAVAILABLE:
                raise CommandError(told) from failure
            raise failure
        if self._counts.refused or self._counts.failed:
            raise click.exceptions.Exit(EXIT_FAILED)

    def _report(self, *, complete: bool) -> None:
        counts = self._counts
        seconds = time.monotonic() - self._began
        if wants_json():
            print_json(
                {
                    "submitted": counts.submitted,
                    "alreadyThere": counts.there,
                    "alreadyFailed": counts.failed,
                    "refused": counts.refused,
                    "complete": complete,
                    "seconds": round(seconds, 3),
                }
            )
            return
        rate = (counts.submitted + counts.there) / seconds if seconds else 0.0
        failed = f" ({counts.failed:,} of them failed)" if counts.failed else ""
        click.echo(
            f"{counts.submitted:,} tasks submitted, {counts.there:,} were there already{failed}, "
            f"{counts.refused:,} refused; {seconds:.1f} s, {rate:,.0f} tasks/s"
        )


@contextmanager
def _opened(source: str) -> Iterator[IO[bytes]]:
    if source == _STANDARD:
        yield sys.stdin.buffer
        return
    try:
        stream = Path(source).open("rb")  # noqa: SIM115 - closed below
    except OSError as error:
        raise CommandError(f"--from: {source} can't be read: {error.strerror}") from error
    with stream:
        yield stream


def _size(stream: IO[bytes]) -> int | None:
    """The file's bytes; None for a pipe."""
    status = os.fstat(stream.fileno())
    return status.st_size if stat.S_ISREG(status.st_mode) else None

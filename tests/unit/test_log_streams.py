"""Logs on a standard error that is stuck, gone, slow, or at its end."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import pytest

from taskd.logs import LineHandler, log_event, logging_to

logger = logging.getLogger("taskd.test")


class Gate(io.StringIO):
    """A stream that takes nothing until it is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.opened = threading.Event()
        self.reached = threading.Event()

    def write(self, text: str, /) -> int:
        self.reached.set()
        self.opened.wait(30)
        return super().write(text)


class Gone(io.StringIO):
    """A stream whose other end has left."""

    def write(self, text: str, /) -> int:
        raise BrokenPipeError


@contextmanager
def jammed_pipe() -> Iterator[int]:
    """The writing end of a pipe that is full, and that nobody reads."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    try:
        while True:
            os.write(writing, b"x" * 4096)
    except BlockingIOError:
        pass
    os.set_blocking(writing, True)
    try:
        yield writing
    finally:
        os.close(reading)
        os.close(writing)


@pytest.mark.parametrize("style", ["text", "json"])
def test_lines_that_were_dropped_are_told_in_the_logs_own_form(
    monkeypatch: pytest.MonkeyPatch, style: str
) -> None:
    monkeypatch.setattr("taskd.logs.MAX_WAITING", 10)
    stream = Gate()
    with logging_to(stream, style=style) as handler:  # type: ignore[arg-type] # one of the two
        log_event(logger, logging.WARNING, "first")
        assert stream.reached.wait(5)
        for number in range(25):
            log_event(logger, logging.INFO, "an event", number=number)
        assert handler.dropped == 15
        stream.opened.set()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 1 + 10 + 1
    if style == "json":
        told = json.loads(lines[-1])
        assert (told["level"], told["lines"]) == ("warning", 15)
    else:
        assert lines[-1].split(" ", 1)[1].startswith("WARNING log lines were dropped")
        assert lines[-1].endswith(" lines=15")


def test_a_stuck_stream_holds_up_the_end_for_a_second_only() -> None:
    stream = Gate()
    began = time.monotonic()
    with logging_to(stream) as handler:
        log_event(logger, logging.ERROR, "never seen")
        assert stream.reached.wait(5)
        handler.flush()  # gives up
    handler.flush()  # as `logging.shutdown` does, and is not to wait again
    handler.close()
    assert time.monotonic() - began < 4
    stream.opened.set()


def test_a_stream_that_is_gone_is_borne() -> None:
    with logging_to(Gone()) as handler:
        for _ in range(3):
            log_event(logger, logging.ERROR, "lost")
    assert handler.dropped >= 3


def test_a_closed_stream_is_borne() -> None:
    stream = io.StringIO()
    stream.close()
    with logging_to(stream):
        log_event(logger, logging.ERROR, "lost")


def test_a_line_does_not_wait_for_another() -> None:
    """A single line of a low level is there soon, with nothing after it."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream, logging_to(stream):
        log_event(logger, logging.INFO, "alone")
        assert os.read(reading, 4096).endswith(b" INFO    alone\n")
    os.close(reading)


def test_a_warning_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskd.logs.GATHER_S", 3600.0)
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream, logging_to(stream):
        log_event(logger, logging.INFO, "an event")
        log_event(logger, logging.WARNING, "be warned")
        text = b""
        while text.count(b"\n") < 2:
            text += os.read(reading, 4096)
    os.close(reading)
    assert text.index(b"an event") < text.index(b"be warned")


def test_lines_of_many_threads_are_whole_and_all_there() -> None:
    stream = io.StringIO()

    def tell(name: str) -> None:
        for number in range(500):
            log_event(logger, logging.INFO, "an event", thread=name, number=number)

    with logging_to(stream, style="json"):
        threads = [threading.Thread(target=tell, args=(f"t{n}",)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    for name in {event["thread"] for event in events}:
        assert [e["number"] for e in events if e["thread"] == name] == list(range(500))
    assert len(events) == 8 * 500


@pytest.mark.parametrize("style", ["text", "json"])
def test_a_record_that_cannot_be_formatted_is_a_line_that_says_so(style: str) -> None:
    stream = io.StringIO()
    wrong = logging.LogRecord("another", logging.INFO, "lib.py", 7, "%d", ("no number",), None)
    with logging_to(stream, style=style) as handler:  # type: ignore[arg-type] # one of the two
        handler.handle(wrong)
    (line,) = stream.getvalue().splitlines()
    assert "a log record could not be formatted" in line
    assert "lib.py:7" in line
    assert "no number" not in line


def test_a_handler_ends_its_thread() -> None:
    handler = LineHandler(io.StringIO())
    assert any(thread.name == "taskd-logs" for thread in threading.enumerate())
    handler.close()
    assert not handler._thread.is_alive()


_PROGRAM = """
import logging, sys
from taskd.logs import log_event, logging_to
logger = logging.getLogger("taskd.test")
with logging_to(sys.stderr):
    for number in range(2000):
        log_event(logger, logging.INFO, "an event", number=number)
    {end}
"""


def program(end: str, stderr: int | TextIO) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _PROGRAM.format(end=end)],
        stdin=subprocess.DEVNULL,
        stderr=stderr,
        text=True,
        timeout=30,
        check=False,
        cwd=Path(__file__).parents[2],
    )


@pytest.mark.parametrize(
    ("end", "code"),
    [("pass", 0), ("sys.exit(3)", 3), ("raise RuntimeError('a\\nb')", 1)],
    ids=["falls off its end", "exits", "fails"],
)
def test_nothing_is_lost_however_a_program_ends(tmp_path: Path, end: str, code: int) -> None:
    with (tmp_path / "log").open("w") as log:
        assert program(end, log).returncode == code
    text = (tmp_path / "log").read_text()
    assert [f"number={number}" in text for number in range(2000)] == [True] * 2000


def test_a_program_ends_in_time_with_a_standard_error_that_is_stuck() -> None:
    with jammed_pipe() as stuck:
        began = time.monotonic()
        done = program("pass", stuck)
    assert done.returncode == 0
    assert time.monotonic() - began < 10

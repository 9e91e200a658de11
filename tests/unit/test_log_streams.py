"""Logs on a standard error that is stuck, gone, slow, or at its end."""

from __future__ import annotations

import io
import json
import logging
import math
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

from taskd.runtime.logs import DirectHandler, LineHandler, log_event, logging_by, logging_to

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
    monkeypatch.setattr("taskd.runtime.logs.handlers.MAX_WAITING", 10)
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
    monkeypatch.setattr("taskd.runtime.logs.handlers.GATHER_S", 3600.0)
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
from taskd.runtime.logs import log_event, logging_to
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


_FULL = """
import logging, resource, sys
from taskd.runtime.logs import log_event, logging_to, degraded
logger = logging.getLogger("taskd.test")
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
with logging_to(sys.stderr, style="json") as handler:
    for number in range(100):
        log_event(logger, logging.WARNING, "an event", number=number, pad="x" * number)
        handler.flush()
    assert degraded() is not None, "no trouble"
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    log_event(logger, logging.WARNING, "room again")
    handler.flush()
    assert degraded() is None, degraded()
    print(handler.dropped)
"""


def test_a_disk_that_was_full_has_whole_lines_and_is_told_what_is_missing(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as log:
        done = subprocess.run(
            [sys.executable, "-c", _FULL],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            timeout=30,
            check=True,
            cwd=Path(__file__).parents[2],
        )
    dropped = int(done.stdout)
    events = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    numbers = [event["number"] for event in events if event["message"] == "an event"]
    assert numbers == list(range(100 - dropped)), "a torn line is mended, none is twice"
    assert [event["message"] for event in events[-2:]] == [
        "room again",
        "log lines were dropped: standard error did not take them",
    ]
    assert events[-1]["lines"] == dropped > 0


@pytest.mark.parametrize("style", ["text", "json"])
def test_a_pipe_that_does_not_block_gets_every_line(style: str) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    got = bytearray()

    def read() -> None:
        while data := os.read(reading, 1000):
            got.extend(data)

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(writing, "w") as stream, logging_to(stream, style=style) as handler:  # type: ignore[arg-type] # one of the two
        for number in range(3000):
            log_event(logger, logging.INFO, "an event", number=number, pad="y" * 100)
        deadline = time.monotonic() + 20
        while got.count(b"\n") < 3000 and time.monotonic() < deadline:
            handler.flush()
    reader.join(20)
    os.close(reading)
    assert got.count(b"\n") == 3000
    assert handler.dropped == 0


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "gbk", "utf-8"])
@pytest.mark.parametrize("style", ["text", "json"])
def test_any_encoding_of_the_stream_is_spoken(tmp_path: Path, style: str, encoding: str) -> None:
    path = tmp_path / "log"
    with (
        path.open("w", encoding=encoding) as stream,
        logging_to(stream, style=style),  # type: ignore[arg-type] # one of the two
    ):
        log_event(logger, logging.INFO, "an event", name="帅的应用 é 🎉 \ud800")
    data = path.read_bytes()
    if style == "json":
        assert json.loads(data)["name"] == "帅的应用 é 🎉 \ud800"
        assert data.isascii() or encoding == "utf-8"
    else:
        (line,) = data.decode(encoding).splitlines()
        expected = "帅的应用 é 🎉".encode(encoding, "backslashreplace").decode(encoding)
        assert expected in line.replace("\\\\", "\\")


def test_what_waits_is_bounded_by_its_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskd.runtime.logs.handlers.MAX_WAITING_CHARACTERS", 100_000)
    stream = Gate()
    with logging_to(stream) as handler:
        log_event(logger, logging.WARNING, "first")
        assert stream.reached.wait(5)
        for _ in range(100):
            log_event(logger, logging.INFO, "an event", text="x" * 10_000)
        assert handler.dropped == 90
        stream.opened.set()


@pytest.mark.parametrize("style", ["text", "json"])
@pytest.mark.parametrize("most", [1000, 4095])
def test_a_line_that_is_too_long_is_cut_and_stays_one(style: str, most: int) -> None:
    stream = io.StringIO()
    with logging_to(stream, style=style, longest=most):  # type: ignore[arg-type] # one of the two
        for error in (ValueError("x" * 20_000), ValueError("\x01" * 20_000)):
            log_event(logger, logging.ERROR, "名" * 3000, error=error, text="\n" * 5000, task=7)
        log_event(logger, logging.INFO, "short", task=8)
    *long, short = stream.getvalue().splitlines()
    assert len(long) == 2
    assert [most / 4 < len(line.encode()) <= most for line in long] == [True, True]
    if style == "json":
        assert [json.loads(line)["task"] for line in (*long, short)] == [7, 7, 8]
        assert json.loads(long[0])["exception"].startswith("ValueError: xxx")
    assert "…" not in short


def test_what_nobody_can_be_told_of_is_a_line() -> None:
    class Bad:
        def __del__(self) -> None:
            raise ValueError("unheard")

    stream = io.StringIO()
    with logging_to(stream, style="json"):
        Bad()
    (line,) = stream.getvalue().splitlines()
    assert "unheard" in json.loads(line)["exception"]


def test_a_handler_within_another_takes_its_place() -> None:
    outer, inner = io.StringIO(), io.StringIO()
    with logging_by(DirectHandler(outer)):
        log_event(logger, logging.INFO, "before")
        with logging_to(inner):
            log_event(logger, logging.INFO, "within")
        log_event(logger, logging.INFO, "after")
    assert [line.split()[-1] for line in outer.getvalue().splitlines()] == ["before", "after"]
    assert [line.split()[-1] for line in inner.getvalue().splitlines()] == ["within"]


def test_a_number_that_json_has_not_is_a_string() -> None:
    stream = io.StringIO()
    with logging_to(stream, style="json"):
        log_event(logger, logging.INFO, "an event", a=math.inf, b=math.nan, c=1.5)
    event = json.loads(stream.getvalue(), parse_constant=pytest.fail)
    assert (event["a"], event["b"], event["c"]) == ("inf", "nan", 1.5)


def test_a_line_of_too_many_values_still_says_what_happened() -> None:
    stream = io.StringIO()
    with logging_to(stream, style="json", longest=1000):
        fields = {f"field{number}": "\x01" * 50 for number in range(100)}
        log_event(logger, logging.ERROR, "it happened", **fields)
    (line,) = stream.getvalue().splitlines()
    assert json.loads(line)["message"] == "it happened"
    assert len(line) <= 1000

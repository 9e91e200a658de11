"""Logs: one line per event, that nobody can forge and nothing secret is in."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import threading
import time
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskd.logs import WITHHELD, log_event, logging_to

logger = logging.getLogger("taskd.test")


def lines_of(style: str, *, level: str = "info", **fields: object) -> list[str]:
    stream = io.StringIO()
    with logging_to(stream, level=level, style=style):  # type: ignore[arg-type]
        log_event(logger, logging.INFO, "an event", **fields)  # type: ignore[arg-type]
    return stream.getvalue().splitlines()


def test_text_is_one_line_of_time_level_message_and_fields() -> None:
    (line,) = lines_of("text", task=42, outcome="succeeded", ms=1.5, error_text=None, ok=True)
    stamp, rest = line.split(" ", 1)
    assert len(stamp) == len("2021-07-16T06:59:39.000Z")
    assert rest == "INFO    an event task=42 outcome=succeeded ms=1.5 ok=true"


def test_json_is_one_object_a_line() -> None:
    (line,) = lines_of("json", task=42, outcome="成功", status=None)
    event = json.loads(line)
    assert event.pop("time").endswith("Z")
    assert event == {
        "level": "info",
        "logger": "taskd.test",
        "message": "an event",
        "task": 42,
        "outcome": "成功",
    }


@pytest.mark.parametrize("style", ["text", "json"])
@given(value=st.text())
def test_no_value_can_forge_a_line(style: str, value: str) -> None:
    (line,) = lines_of(style, value=value, other=1)
    assert line.isprintable() or all(ord(char) >= 0x20 for char in line)
    if style == "json":
        assert json.loads(line)["other"] == 1


@pytest.mark.parametrize(
    "name", ["secret_key", "admin_secret", "signature", "content", "payload", "password"]
)
@pytest.mark.parametrize("style", ["text", "json"])
def test_fields_that_speak_of_a_secret_are_withheld(style: str, name: str) -> None:
    (line,) = lines_of(style, **{name: "hunter2"})
    assert "hunter2" not in line
    assert WITHHELD in line


def test_the_level_is_taskds_own() -> None:
    stream = io.StringIO()
    with logging_to(stream, level="warning"):
        log_event(logger, logging.INFO, "not told")
        log_event(logger, logging.WARNING, "told")
        logging.getLogger("another").info("not told")
    assert [line.split()[-1] for line in stream.getvalue().splitlines()] == ["told"]


def test_an_exception_is_in_the_line() -> None:
    stream = io.StringIO()
    with logging_to(stream):
        log_event(logger, logging.ERROR, "it failed", error=RuntimeError("a\nb"))
    (line,) = stream.getvalue().splitlines()
    assert "RuntimeError" in line


def test_warnings_and_uncaught_exceptions_of_threads_are_lines() -> None:
    stream = io.StringIO()
    with logging_to(stream), warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.warn("be warned", stacklevel=1)
        thread = threading.Thread(target=lambda: 1 / 0)
        thread.start()
        thread.join()
    text = stream.getvalue()
    assert "be warned" in text
    assert "ZeroDivisionError" in text
    assert len(text.splitlines()) == 2


def test_nothing_is_lost_at_the_end() -> None:
    stream = io.StringIO()
    with logging_to(stream):
        for number in range(20_000):
            log_event(logger, logging.INFO, "an event", number=number)
    lines = stream.getvalue().splitlines()
    assert [line.rsplit("=")[1] for line in lines] == [str(n) for n in range(20_000)]


def test_a_standard_error_that_takes_nothing_blocks_nobody() -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream:
        began = time.monotonic()
        with logging_to(stream) as handler:
            for _ in range(60_000):
                log_event(logger, logging.INFO, "x" * 100)
            assert time.monotonic() - began < 20
            assert handler.dropped > 0
            # Let it end: what was written, and what waits, is read away.
            drain = threading.Thread(target=_read_to_the_end, args=(reading,), daemon=True)
            drain.start()
    drain.join(20)
    assert not drain.is_alive()


def _read_to_the_end(fd: int) -> None:
    while os.read(fd, 1 << 20):
        pass
    os.close(fd)


def test_hooks_are_put_back() -> None:
    before = (sys.excepthook, threading.excepthook, logging.getLogger().handlers[:])
    with logging_to(io.StringIO()):
        assert sys.excepthook is not before[0]
    assert (sys.excepthook, threading.excepthook, logging.getLogger().handlers[:]) == before


def test_a_record_does_not_ask_for_what_no_line_says() -> None:
    stream = io.StringIO()
    with logging_to(stream):
        record = logging.LogRecord("taskd.x", logging.INFO, "", 0, "m", (), None)
    assert (record.thread, record.process, record.processName) == (None, None, None)
    assert (logging.logThreads, logging.logProcesses, logging.logMultiprocessing) == (1, 1, 1)

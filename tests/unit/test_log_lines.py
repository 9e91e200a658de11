"""Logs: one line per event, that nobody can forge and nothing secret is in."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskd.domain.model import Outcome
from taskd.runtime.logs import WITHHELD, log_event, logging_to
from taskd.runtime.logs.handlers import MAX_WAITING
from taskd.runtime.logs.lines import JsonFormatter

logger = logging.getLogger("taskd.test")


def lines_of(style: str, *, level: str = "info", **fields: object) -> list[str]:
    stream = io.StringIO()
    with logging_to(stream, level=level, style=style):  # type: ignore[arg-type]
        log_event(logger, logging.INFO, "an event", **fields)  # type: ignore[arg-type]
    return stream.getvalue().splitlines()


@contextmanager
def nobody_else_listens() -> Iterator[None]:
    """As in the daemon, where the log's handler is the root logger's only one."""
    root = logging.getLogger()
    handlers, root.handlers = root.handlers, []
    try:
        yield
    finally:
        root.handlers = handlers


_VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()


@pytest.mark.parametrize("style", ["text", "json"])
@given(
    fields=st.dictionaries(
        st.sampled_from(["task", "task_no", "time", "level", "secret_key", "error", "payload"]),
        _VALUES,
    ),
    message=st.text(),
)
def test_a_line_is_the_same_with_and_without_a_record(
    style: str, message: str, fields: dict[str, Any]
) -> None:
    def told() -> str:
        stream = io.StringIO()
        with logging_to(stream, style=style):  # type: ignore[arg-type] # one of two words
            log_event(logger, logging.WARNING, message, **fields)
        return re.sub(r"[0-9-]{10}T[0-9:.]{12}Z", "TIME", stream.getvalue(), count=1)

    with_record = told()
    with nobody_else_listens():
        assert told() == with_record


def test_who_else_listens_gets_the_record_too() -> None:
    heard: list[logging.LogRecord] = []
    other = logging.Handler()
    other.emit = heard.append  # type: ignore[assignment,method-assign] # a handler is nothing else
    stream = io.StringIO()
    with nobody_else_listens(), logging_to(stream):
        log_event(logger, logging.INFO, "the line alone")
        logging.getLogger().addHandler(other)
        log_event(logger, logging.INFO, "both", task=1)
    assert [record.getMessage() for record in heard] == ["both"]
    assert [line.split("INFO    ")[1] for line in stream.getvalue().splitlines()] == [
        "the line alone",
        "both task=1",
    ]


@pytest.mark.parametrize("style", ["text", "json"])
def test_a_field_that_cannot_be_formatted_ends_nobody(style: str) -> None:
    class Broken:
        def __str__(self) -> str:
            raise RuntimeError("no text")

    stream = io.StringIO()
    with nobody_else_listens(), logging_to(stream, style=style):  # type: ignore[arg-type] # one of two words
        log_event(logger, logging.INFO, "an event", task=Broken())  # type: ignore[arg-type] # as a mistake would
        log_event(logger, logging.INFO, "another")
    first, second = stream.getvalue().splitlines()
    assert "could not be formatted" in first
    assert "another" in second


def test_lines_without_records_that_a_stuck_stream_does_not_take_are_counted() -> None:
    reading, writing = os.pipe()
    drain = threading.Thread(target=_read_to_the_end, args=(reading,), daemon=True)
    with (
        os.fdopen(writing, "w") as stream,
        nobody_else_listens(),
        logging_to(stream) as handler,
    ):
        # Some are taken at once, and then the pipe is full.
        for _ in range(4 * MAX_WAITING):
            log_event(logger, logging.INFO, "x" * 100)
        dropped = handler.dropped
        drain.start()
    drain.join(20)
    assert not drain.is_alive()
    assert dropped > 0


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


@pytest.mark.parametrize("ascii_only", [False, True])
@given(
    fields=st.dictionaries(
        st.sampled_from(["task", "task_no", "time", "level", "secret_key", 'err"or', "payload"]),
        _VALUES | st.floats() | st.sampled_from([Outcome.SUCCEEDED, HTTPStatus.OK, b"bytes", {1}]),
    ),
    message=st.text(),
    source=st.text(),
)
def test_a_json_line_is_what_an_encoder_makes_of_its_fields(
    ascii_only: bool, message: str, source: str, fields: dict[str, Any]
) -> None:
    record = logging.LogRecord(source, logging.WARNING, "", 0, message, (), None)
    record.fields = fields
    formatter = JsonFormatter(ascii_only=ascii_only)
    line = formatter.format(record)
    # A line that need not be cut is made by the encoder there.
    assert json.loads(line) == json.loads(formatter.shortened(record, 10**6))
    assert all(ord(char) >= 0x20 for char in line)
    assert line.isascii() or not ascii_only


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
    with os.fdopen(writing, "w") as stream, logging_to(stream) as handler:
        for _ in range(60_000):
            log_event(logger, logging.INFO, "x" * 100)
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

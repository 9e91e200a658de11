"""NSQ's bytes, without a connection."""

from __future__ import annotations

import logging
import os
import struct
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nsq.response import Error, Message, Response  # type: ignore[import-untyped]  # no types

from taskd.domain.model import DueTask
from taskd.errors import QueueUnavailable
from taskd.queues.nsq import wire

ID = b"0123456789abcdef"


def frames() -> st.SearchStrategy[bytes]:
    data = st.binary(min_size=1, max_size=60)
    return st.one_of(
        st.builds(Response.pack, data),
        st.builds(Error.pack, data),
        st.builds(Message.pack, st.integers(0, 2**62), st.integers(0, 65535), st.just(ID), data),
    )


def test_commands() -> None:
    assert wire.identify({"a": 1}) == b'IDENTIFY\n\x00\x00\x00\x07{"a":1}'
    assert wire.auth("xy") == b"AUTH\n\x00\x00\x00\x02xy"
    assert wire.subscribe("t", "c") == b"SUB t c\n"
    assert wire.ready(17) == b"RDY 17\n"
    assert wire.finish(ID) == b"FIN 0123456789abcdef\n"
    assert wire.requeue(ID, 250) == b"REQ 0123456789abcdef 250\n"
    assert wire.touch(ID) == b"TOUCH 0123456789abcdef\n"
    assert wire.nop() == b"NOP\n"
    assert wire.publish("t", [b"a", b"bc"]) == (
        b"MPUB t\n" + struct.pack(">ll", 15, 2) + b"\0\0\0\1a" + b"\0\0\0\2bc"
    )


@given(st.lists(frames(), max_size=8), st.data())
def test_frames_may_be_split_at_any_byte(sent: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    framer = wire.Framer()
    got: list[Response] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        got += framer.feed(stream[start:end])
    assert framer.pending == 0
    assert got == [frame for one in sent for frame in wire.Framer().feed(one)]
    assert [type(frame).pack for frame in got] == [
        (Response, Error, Message)[one[7]].pack for one in sent
    ]


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        struct.pack(">ll", -1, 0),
        struct.pack(">ll", 3, 0),
        struct.pack(">ll", wire.MAX_FRAME + 1, 0),
        struct.pack(">ll", 4, 3) + b"",
        struct.pack(">ll", 4, -1),
        struct.pack(">ll", 8, 2) + b"abcd",
        Message.pack(1, 1, ID, b""),
    ],
    ids=["http", "negative", "small", "over-cap", "type 3", "type -1", "short", "empty"],
)
def test_what_is_no_frame_is_refused(data: bytes) -> None:
    with pytest.raises(QueueUnavailable):
        wire.Framer().feed(data)


def test_an_oversized_frame_is_refused_before_it_has_come() -> None:
    framer = wire.Framer(max_frame=100)
    assert len(framer.feed(Response.pack(b"x" * 96))) == 1
    with pytest.raises(QueueUnavailable, match="100 bytes"):
        framer.feed(struct.pack(">l", 101))


@given(st.binary(max_size=300))
def test_any_bytes_are_frames_or_refused(data: bytes) -> None:
    framer = wire.Framer(max_frame=200)
    try:
        framer.feed(data)
    except QueueUnavailable:
        return
    assert framer.pending <= len(data)


@pytest.mark.parametrize(
    ("data", "fatal"),
    [
        (b"E_FIN_FAILED FIN 0123 failed ID not in flight", False),
        (b"E_REQ_FAILED", False),
        (b"E_TOUCH_FAILED x", False),
        (b"E_INVALID RDY", True),
        (b"E_MPUB_FAILED", True),
        (b"E_AUTH_FIRST", True),
        (b"E_NEVER_HEARD_OF", True),
        (b"", True),
        (b"\xff\x00", True),
    ],
)
def test_which_errors_end_a_connection(data: bytes, fatal: bool) -> None:
    frame = wire.Framer().feed(Error.pack(data) if data else struct.pack(">ll", 4, 1))[0]
    assert wire.is_fatal(frame) is fatal


def test_what_an_error_says_can_not_steer_a_terminal() -> None:
    frame = wire.Framer().feed(Error.pack(b"E_X \x1b[2J\n" + b"y" * 999))[0]
    text = wire.error_text(frame)
    assert text.startswith("E_X ?[2J?y")
    assert len(text) == 200


@given(st.integers(1, 2**63 - 1), st.integers(1, 2**63 - 1), st.integers(0, 10**15 - 1))
def test_a_body_is_read_as_it_was_written(task_id: int, app_id: int, due_at: int) -> None:
    task = DueTask(task_id=task_id, app_id=app_id, due_at=due_at)
    assert wire.decode_body(wire.encode_body(task)) == task


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"1",
        b"1 2 3",
        b"2 1 1 1",
        b"1 1 1 1 1",
        b"1 1 1 -1",
        b"1 0 1 1",
        b"1 1 0 1",
        b"1 01 1 1",
        b"1 1 1 1\n",
        b" 1 1 1 1",
        b"1  1 1 1",
        "1 ١ 1 1".encode(),
        b"1 9223372036854775808 1 1",
        b"1 1 9223372036854775808 1",
        b"1 1 1 1000000000000000",
        b'{"task_id":1}',
        b"1 1 1 1" + b"0" * 10_000,
    ],
)
def test_a_body_that_is_no_wake_up_is_refused(body: bytes) -> None:
    assert wire.decode_body(body) is None


@given(st.binary(max_size=40))
def test_any_bytes_are_a_body_or_none(body: bytes) -> None:
    task = wire.decode_body(body)
    assert task is None or wire.decode_body(wire.encode_body(task)) == task


def test_the_library_does_not_log_by_itself() -> None:
    # On its own, in a process where nobody has touched its logger.
    script = (
        "import logging, taskd.queues.nsq.wire\n"
        "logging.getLogger('nsq').info('heard'); logging.getLogger('nsq').warning('told')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )
    # What logging itself prints where nobody listens at all, and no more.
    assert done.stderr == "told\n"
    assert logging.getLogger("nsq").level == logging.NOTSET


def test_the_library_is_taken_without_what_it_needs_elsewhere() -> None:
    script = "import sys, taskd.queues.nsq.wire; print('requests' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"

"""What nodes tell each other over Redis: read back as it was written, or refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskd.buses.signal_wire import (
    MAX_MESSAGE,
    Malformed,
    Message,
    NoticeMessage,
    ReplyMessage,
    SignalMessage,
    decode,
    encode,
)
from taskd.domain.model import (
    MAX_COROUTINE_ID,
    CancelCertainty,
    Frame,
    Inspection,
    Phase,
    TaskState,
)
from taskd.ports.bus import AppChanged, CancelReply, CancelSignal, InspectReply, InspectSignal

ids = st.text("0123456789abcdef", min_size=16, max_size=16)
texts = st.text(max_size=20)
task_ids = st.integers(1, MAX_COROUTINE_ID)
frames = st.builds(Frame, texts, st.integers(0, 10**6), texts)
values = st.one_of(st.none(), st.booleans(), st.integers(), texts, st.floats(allow_nan=False))
inspections = st.builds(
    Inspection,
    node=texts,
    phase=st.one_of(st.none(), st.sampled_from(Phase)),
    frames=st.lists(frames, max_size=5).map(tuple),
    executed=frames,
    variables=st.dictionaries(texts, values, max_size=5),
    rounds=st.integers(0),
    elapsed_ms=st.integers(0),
)
replies = st.one_of(
    st.none(),
    st.builds(
        CancelReply,
        st.one_of(st.none(), st.sampled_from(TaskState)),
        st.one_of(st.none(), st.sampled_from(CancelCertainty)),
    ),
    st.builds(InspectReply, st.one_of(st.none(), inspections)),
)
names = st.from_regex(r"[A-Za-z0-9_.-]{1,64}", fullmatch=True)
messages = st.one_of(
    st.builds(
        SignalMessage,
        ids,
        names,
        st.one_of(st.builds(CancelSignal, task_ids), st.builds(InspectSignal, task_ids)),
    ),
    st.builds(ReplyMessage, ids, replies),
    st.builds(NoticeMessage, ids, names, st.builds(AppChanged, st.integers(1, 2**63 - 1), names)),
)


@given(messages)
def test_a_message_is_read_as_it_was_written(message: Message) -> None:
    read = decode(encode(message))
    assert read == message
    assert repr(read) == repr(message), "a name came back as a plain string"


@given(messages, st.data())
def test_a_message_with_a_field_wrong_missing_or_too_many_is_refused(
    message: Message, data: st.DataObject
) -> None:
    fields: dict[str, Any] = json.loads(encode(message))
    name = data.draw(st.sampled_from([*fields, "surplus"]))
    if name == "surplus" or data.draw(st.booleans()):
        fields[name] = ["of no field's type"]
    else:
        del fields[name]
    with pytest.raises(Malformed):
        decode(json.dumps(fields).encode())


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_malformed(data: bytes) -> None:
    with pytest.raises(Malformed):
        decode(data)


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(
    st.sampled_from(["cancel", "inspect", "failed", "cancelled", "inspected", "app_changed"]),
    st.dictionaries(
        st.sampled_from(["task_id", "from", "state", "word", "inspection", "app_id", "app_key"]),
        json_values,
    ),
)
def test_any_fields_are_a_message_or_malformed(kind: str, fields: dict[str, Any]) -> None:
    whole = {"v": 1, "kind": kind, "id": "0" * 16, **fields}
    try:
        message = decode(json.dumps(whole).encode())
    except Malformed:
        return
    assert decode(encode(message)) == message


def inspected(**changes: Any) -> bytes:  # noqa: ANN401 - whatever does not belong there
    body = {
        "node": "b",
        "phase": "reading",
        "frames": [["f", 1, "g"]],
        "executed": ["f", 1, "g"],
        "variables": {"a": 1},
        "rounds": 1,
        "elapsed_ms": 2,
    }
    whole = {"v": 1, "kind": "inspected", "id": "0" * 16, "inspection": body | changes}
    return json.dumps(whole).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 100_000,
        b" " * (MAX_MESSAGE + 1),
        b'{"v":1,"kind":"cancel","id":"0000000000000000","from":"a b","task_id":1}',
        b'{"v":1,"kind":"cancel","id":"0000000000000000","from":"a","task_id":0}',
        b'{"v":1,"kind":"cancel","id":"0000000000000000","from":"a","task_id":9007199254740992}',
        b'{"v":1,"kind":"cancel","id":"xyz","from":"a","task_id":1}',
        b'{"v":1,"kind":"other","id":"0000000000000000"}',
        inspected(frames=[["f", True, "g"]]),
        inspected(frames=[["f", 1]]),
        inspected(frames=[["f", 1, "g"]] * 1_001),
        inspected(executed={"file": "f"}),
        inspected(phase="asleep"),
        inspected(variables={"a": [1]}),
        inspected(surplus=1),
        inspected(rounds=1.5),
    ],
)
def test_what_is_refused(data: bytes) -> None:
    with pytest.raises(Malformed):
        decode(data)


def test_a_sound_inspection_is_read() -> None:
    message = decode(inspected())
    assert isinstance(message, ReplyMessage)
    assert isinstance(message.reply, InspectReply)


def test_a_message_over_the_limit_is_not_written() -> None:
    inspection = Inspection(
        node="b",
        phase=None,
        frames=(),
        executed=Frame("f", 1, "g"),
        variables={"a": "x" * MAX_MESSAGE},
        rounds=1,
        elapsed_ms=1,
    )
    with pytest.raises(Malformed, match="over"):
        encode(ReplyMessage("0" * 16, InspectReply(inspection)))

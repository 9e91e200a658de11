"""A file of tasks, cut into batches of lines."""

from __future__ import annotations

import itertools
import json
import os
import threading
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskd.cli.bulk import lines
from taskd.cli.bulk.lines import BATCH_BYTES, BATCH_LINES, MAX_LINE, Batch, LineReader, chunks


def line(number: int) -> bytes:
    return json.dumps({"taskNo": f"no-{number}"}).encode()


def read(*source: bytes) -> list[Batch]:
    return list(LineReader().batches(source))


def lines_of(batches: Iterable[Batch]) -> list[tuple[int, bytes]]:
    return [(each.number, each.text) for batch in batches for each in batch.lines]


def refused_of(batches: Iterable[Batch]) -> list[tuple[int, str]]:
    return [(each.number, each.reason) for batch in batches for each in batch.refused]


@given(
    st.lists(st.sampled_from([b"{}", b'{"a": 1}', b"", b" \t", b"[", b"1"]), max_size=12),
    st.lists(st.integers(0, 40), max_size=8),
    st.sampled_from([b"\n", b"\r\n"]),
    st.booleans(),
)
def test_lines_are_the_same_however_they_arrive(
    texts: list[bytes], cuts: list[int], end: bytes, ended: bool
) -> None:
    whole = end.join(texts) + (end if ended else b"")
    places = sorted({0, len(whole), *(cut for cut in cuts if cut < len(whole))})
    pieces = [whole[a:b] for a, b in itertools.pairwise(places)]
    batches = read(*pieces)
    numbered = list(enumerate(texts, start=1))
    objects = [(number, text) for number, text in numbered if text.startswith(b"{")]
    assert lines_of(batches) == objects
    assert [number for number, _ in refused_of(batches)] == [
        number for number, text in numbered if text in (b"[", b"1")
    ]
    assert sum(batch.size for batch in batches) == len(whole)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"{", "is not JSON: Expecting property name"),
        (b'{"a":1} {"b":2}', "is not JSON: Extra data at character 8"),
        (b"\xff", "is not UTF-8 at byte 0"),
        ("\ufeff\ufeff{}".encode(), "is not JSON: "),
        (b"[]", "is no JSON object"),
        (b"null", "is no JSON object"),
        (b'"taskNo"', "is no JSON object"),
        (b"[" * 200_000, "is nested too deep"),
        (b'{"a":"' + b"x" * MAX_LINE + b'"}', f"is longer than {MAX_LINE} bytes"),
        (line(0), "has the taskNo of line 1"),
    ],
    ids=range(10),
)
def test_a_line_that_is_no_task_is_refused_by_its_number(text: bytes, reason: str) -> None:
    batches = read(line(0) + b"\n" + text + b"\n\n" + line(1) + b"\n")
    assert lines_of(batches) == [(1, line(0)), (4, line(1))]
    ((number, told),) = refused_of(batches)
    assert number == 2
    assert told.startswith(reason)


@pytest.mark.parametrize("ended", [True, False])
def test_an_endless_line_takes_no_memory_and_is_one_line(*, ended: bool) -> None:
    reader = LineReader()
    source = [line(0) + b"\n", *[b"x" * 65_536] * 100]
    held = 0
    batches = []
    for batch in reader.batches([*source, b"\n" + line(1) if ended else b"x"]):
        batches.append(batch)
        held = max(held, len(reader._rest))
    assert held <= MAX_LINE + 65_536
    assert refused_of(batches) == [(2, f"is longer than {MAX_LINE} bytes")]
    assert [number for number, _ in lines_of(batches)] == ([1, 3] if ended else [1])


def test_numbers_and_text_are_sent_as_they_stand() -> None:
    text = b'{"content":{"a":1.10,"b":1e400,"c":' + b"9" * 5000 + b"}}"
    assert lines_of(read(b"  " + text + b" \r\n")) == [(1, text)]


def test_a_batch_has_so_many_lines_or_bytes() -> None:
    many = b"".join(line(number) + b"\n" for number in range(BATCH_LINES + 1))
    first, second = read(many)
    assert (len(first.lines), len(second.lines)) == (BATCH_LINES, 1)
    bad, rest = read(b"[\n" * (BATCH_LINES + 1))
    assert (len(bad.refused), len(rest.refused)) == (BATCH_LINES, 1)
    wide = json.dumps({"name": "x" * (BATCH_BYTES // 2)}).encode() + b"\n"
    assert [len(batch.lines) for batch in read(wide * 3)] == [2, 1]


def test_where_nothing_comes_what_is_there_is_handed_on() -> None:
    batches = read(line(0) + b"\n" + line(1), b"", b"\n", b"")
    assert [len(batch.lines) for batch in batches] == [1, 1, 0]


def test_task_nos_are_remembered_for_so_long_and_no_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lines, "REMEMBERED", 3)
    batches = read(b"\n".join(line(number) for number in (0, 1, 0, 2, 3, 0)))
    assert refused_of(batches) == [(3, "has the taskNo of line 1")]
    assert [number for number, _ in lines_of(batches)] == [1, 2, 4, 5, 6]


def test_a_task_no_that_no_task_can_have_is_not_remembered() -> None:
    reader = LineReader()
    long = json.dumps({"taskNo": "x" * 65}).encode()
    assert len(lines_of(reader.batches([long + b"\n" + long]))) == 2
    assert not reader._seen


def test_a_pipe_that_is_quiet_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "QUIET_S", 0.01)
    there, here = os.pipe()
    with open(there, "rb") as stream:  # noqa: PTH123 - a descriptor, not a path
        source = chunks(stream)
        assert next(source) == b""
        os.write(here, b"abc")
        assert next(source) == b"abc"
        closing = threading.Thread(target=os.close, args=(here,))
        closing.start()
        assert set(source) <= {b""}
        closing.join()

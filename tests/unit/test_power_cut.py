"""What a power cut may leave of given events, and what is noticed of it."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.power_cut.crash_states import Disk, State, picks
from tests.support.power_cut.facts import Content, Facts, Found, Request, Told, losses
from tests.support.power_cut.recording import Event, Kind, Recorder, encoded

FOLDER, FILE, OTHER = 1, 2, 3
A, B, C = b"A" * 512, b"B" * 512, b"C" * 512


def disk_after(*events: Event) -> Disk:
    disk = Disk()
    for event in (Event(Kind.START, FOLDER), *events):
        disk.apply(event)
    return disk


def opened(name: str = "db", inode: int = FILE) -> Event:
    return Event(Kind.OPENED, inode, data=name.encode())


def written(data: bytes, place: int = 0, inode: int = FILE) -> Event:
    return Event(Kind.WRITTEN, inode, place, data=data)


def cut_to(size: int) -> Event:
    return Event(Kind.CUT, FILE, size)


def syncing(inode: int = FILE, number: int = 1) -> Event:
    return Event(Kind.SYNCING, inode, number=number)


def synced(inode: int = FILE, number: int = 1) -> Event:
    return Event(Kind.SYNCED, inode, number=number)


MADE = (opened(), syncing(FOLDER), synced(FOLDER))
"""An empty file, whose name is on the disk."""


def possible(disk: Disk, *, times: int = 300) -> set[tuple[tuple[str, bytes], ...]]:
    """All that is found on the disk after power cuts, at random."""
    rng = random.Random(1)

    def pick(moments: Sequence[int]) -> int:
        return rng.randint(0, len(moments))

    return {tuple(sorted(disk.cut_power(pick).files.items())) for _ in range(times)}


def contents(disk: Disk) -> set[bytes]:
    return {dict(files)["db"] for files in possible(disk)}


def nothing(_: Sequence[int]) -> int:
    return 0


def test_what_was_synced_is_there() -> None:
    disk = disk_after(*MADE, written(A + B), syncing(), synced())
    assert contents(disk) == {A + B}


def test_of_what_was_not_synced_any_sectors_are_there() -> None:
    disk = disk_after(*MADE, written(A + A), syncing(), synced(), written(B + C))
    assert contents(disk) == {A + A, A + C, B + A, B + C}


def test_what_was_written_while_a_sync_was_under_way_may_be_lost() -> None:
    disk = disk_after(*MADE, written(A), syncing(), written(B), synced())
    assert contents(disk) == {A, B}


def test_a_sync_that_did_not_succeed_proves_nothing() -> None:
    disk = disk_after(*MADE, written(A), syncing(), written(B, 512), syncing(number=2))
    assert contents(disk) >= {b"", A, A + B}


def test_two_syncs_at_a_time_count_for_what_was_before_each() -> None:
    before = (*MADE, written(A), syncing(number=1), written(B, 512), syncing(number=2))
    assert contents(disk_after(*before, synced(number=2), synced(number=1))) == {A + B}
    assert contents(disk_after(*before, synced(number=1))) == {A, A + bytes(512), A + B}


def test_a_sector_may_be_any_that_it_was() -> None:
    disk = disk_after(*MADE, written(A), syncing(), synced(), written(B), written(C))
    assert contents(disk) == {A, B, C}


def test_a_small_write_changes_nothing_beside_it() -> None:
    disk = disk_after(*MADE, written(A), syncing(), synced(), written(b"x", 100))
    assert contents(disk) == {A, A[:100] + b"x" + A[101:]}


def test_a_file_may_be_longer_than_its_data() -> None:
    disk = disk_after(*MADE, written(A + B))
    assert contents(disk) == {
        b"", A + B, A + bytes(512), bytes(512) + B, bytes(1024),
    }  # fmt: skip


def test_what_was_cut_off_does_not_come_back() -> None:
    before = (*MADE, written(A + B), syncing(), synced(), cut_to(512))
    assert contents(disk_after(*before)) == {A + B, A}
    assert contents(disk_after(*before, written(C, 512))) == {A + B, A, A + C, A + bytes(512)}
    assert contents(disk_after(*before, cut_to(1024))) == {A + B, A, A + bytes(512)}


def test_a_name_is_there_once_its_folder_was_synced() -> None:
    made = (opened(), written(A), syncing(), synced())
    assert possible(disk_after(*made)) == {(), (("db", A),)}
    assert possible(disk_after(*made, syncing(FOLDER), synced(FOLDER))) == {(("db", A),)}


def test_a_file_that_was_removed_may_be_back() -> None:
    held = (*MADE, written(A), syncing(), synced())
    gone = (*held, Event(Kind.REMOVED, FILE, data=b"db"))
    assert possible(disk_after(*gone)) == {(), (("db", A),)}
    # The next file often gets the number of the one before.
    new = disk_after(*gone, opened(), written(B), syncing(), synced())
    assert possible(new) == {(("db", A),), (), (("db", B),)}


def test_a_file_that_was_renamed_has_one_of_its_names() -> None:
    disk = disk_after(*MADE, written(A), syncing(), synced(), Event(Kind.RENAMED, data=b"db/old"))
    assert possible(disk) == {(("db", A),), (("old", A),)}


def test_two_files_do_not_depend_on_each_other() -> None:
    disk = disk_after(
        *MADE, opened("log", OTHER), syncing(FOLDER, 2), synced(FOLDER, 2), written(A),
        written(B, inode=OTHER),
    )  # fmt: skip
    assert (("db", b""), ("log", B)) in possible(disk)
    assert (("db", A), ("log", b"")) in possible(disk)


def test_a_torn_sector_begins_newer_than_it_ends() -> None:
    disk = disk_after(*MADE, written(A), syncing(), synced(), written(B))
    torn = disk.cut_power(nothing, tear=lambda: True).files["db"]
    newer = len(torn) - len(torn.lstrip(b"B"))
    assert 0 < newer < 512
    assert torn == B[:newer] + A[newer:]


def test_a_lock_file_is_not_torn() -> None:
    disk = disk_after(
        opened("db.lock"), syncing(FOLDER), synced(FOLDER), written(A), syncing(), synced(),
        written(B),
    )  # fmt: skip
    assert disk.cut_power(nothing, tear=lambda: True).files == {"db.lock": A}


def test_the_daemon_itself_sees_all_that_was_written() -> None:
    disk = disk_after(*MADE, written(A), syncing(), synced(), written(B, 256), cut_to(600))
    assert disk.live() == State({"db": A[:256] + B[:344]}, {"db": FILE})


def test_large_writes_that_change_nothing_leave_nothing_to_chance() -> None:
    whole = bytes(100_000)
    disk = disk_after(*MADE, written(whole), syncing(), synced(), written(whole), cut_to(100_000))
    assert contents(disk) == {whole}


def test_every_way_to_choose_chooses_among_what_there_is() -> None:
    rng = random.Random(1)
    chosen: dict[str, list[int]] = defaultdict(list)
    for _ in range(500):
        name, pick = picks(rng, 1000)
        moments = list(range(900, 1000))
        assert pick([]) == 0
        chosen[name.partition(" last ")[0]].append(pick(moments))
    assert len(chosen) == 7
    assert set(chosen["nothing"]) == {0}
    assert set(chosen["everything"]) == {100}
    assert all(0 <= count <= 100 for counts in chosen.values() for count in counts)
    assert len(set(chosen["half"])) > 10


class Recorded(Recorder):
    """A recording that a test writes."""

    def __init__(self, path: Path, data: bytes) -> None:
        self.path = path
        path.write_bytes(data)


def test_a_recording_is_read_as_it_was_written(tmp_path: Path) -> None:
    events = [*MADE, written(A), cut_to(7)]
    recorder = Recorded(tmp_path / "recording", b"".join(map(encoded, events)))
    assert recorder.events() == events


@pytest.mark.parametrize("length", [1, 39, 40, 41, 300])
@pytest.mark.parametrize("last", [True, False])
def test_an_event_that_a_kill_cut_off_is_left_out(tmp_path: Path, length: int, last: bool) -> None:
    rest = b"" if last else encoded(cut_to(7)) + encoded(written(B))
    recorder = Recorded(
        tmp_path / "recording", encoded(opened()) + encoded(written(A))[:length] + rest
    )
    assert recorder.events() == [opened(), *([] if last else [cut_to(7), written(B)])]


def test_only_what_was_really_sent_is_told(tmp_path: Path) -> None:
    events = [
        Event(Kind.SENDING, 0, 80, 1, data=b"abcdef"),
        Event(Kind.SENDING, 0, 80, 2, data=b"defghi"),
        Event(Kind.SENT, 0, 3, 1),
    ]
    recorder = Recorded(tmp_path / "recording", b"".join(map(encoded, events)))
    assert [bytes(event.data) for event in recorder.events()[:2]] == [b"abc", b"defghi"]


PORT, RECEIVER = 4000, 5000


def answer(data: object, *, code: int = 0, msg: str = "", head: str = "") -> bytes:
    body = json.dumps({"code": code, "msg": msg, "data": data}).encode()
    return f"HTTP/1.1 200 \r\n{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def sending(data: bytes, port: int = PORT) -> Event:
    return Event(Kind.SENDING, 0, port, data=data)


def facts_of(request: Request, *sent: bytes) -> Facts:
    facts = Facts({PORT: [request]}, RECEIVER)
    for data in sent:
        facts.note(sending(data))
    return facts


@pytest.mark.parametrize(
    ("request_", "sent", "told"),
    [
        (Request("create", "n"), answer({"coroutine_id": 7}), Told()),
        (
            Request("create", "n"),
            answer([], code=1, head="Taskd-Existing: 7 succeeded\r\n"),
            Told("succeeded"),
        ),
        (Request("batch", "n"), answer({"results": [{"coroutine_id": 7}]}), Told()),
        (
            Request("cancel", "n", 7),
            answer({"coroutine_id": 7, "delivery": "never_sent"}),
            Told("cancelled", 0, "never_sent"),
        ),
        (Request("cancel", "n", 7), answer([], code=1, msg="Unknown!"), Told(ended=True)),
        (
            Request("detail", "n"),
            answer({"task": {"taskId": 7, "state": "retrying", "attempt": 2, "delivery": None}}),
            Told("", 2),
        ),
    ],
)
def test_an_answer_tells(request_: Request, sent: bytes, told: Told) -> None:
    assert facts_of(request_, sent).tasks == {7: told}
    assert facts_of(request_, sent[:-1]).tasks == {}
    assert facts_of(request_, sent[:30], sent[30:]).tasks == {7: told}


def test_what_was_told_before_is_no_news() -> None:
    facts = Facts({PORT: [Request("detail", "n")] * 3}, RECEIVER)
    tasks = [{"taskId": 7, "attempt": attempt, "delivery": None} for attempt in (0, 0, 1)]
    told = [answer({"task": {**task, "state": "retrying"}}) for task in tasks]
    assert [facts.note(sending(data)) for data in told] == [True, False, True]


def test_a_refusal_tells_nothing() -> None:
    facts = facts_of(Request("create", "n"), answer([], code=503))
    assert (facts.tasks, facts.nonces) == ({}, set())


def test_a_create_uses_its_nonce_up() -> None:
    assert facts_of(Request("create", "n"), answer({"coroutine_id": 7})).nonces == {"n"}


def test_an_attempt_that_is_sent_tells() -> None:
    facts = Facts({}, RECEIVER)
    facts.note(
        sending(b"POST / HTTP/1.1\r\nTaskd-Task-Id: 7\r\nTaskd-Attempt: 2\r\n\r\n", RECEIVER)
    )
    assert facts.tasks == {7: Told(attempt=2)}


def test_nobody_elses_answers_count() -> None:
    facts = Facts({PORT: []}, RECEIVER)
    facts.note(sending(answer({"coroutine_id": 7}), PORT + 1))
    assert facts.tasks == {}


def store(task: Found | None, *, nonces: Sequence[str] = ("n",), last_id: int = 7) -> Content:
    return Content({7: task} if task else {}, frozenset(nonces), last_id)


_AS_TOLD = Found("cancelled", 1, "between_attempts")


@pytest.mark.parametrize(
    ("found", "problem"),
    [
        (store(_AS_TOLD), None),
        (store(_AS_TOLD._replace(attempt=2)), None),
        (store(None), "is gone"),
        (store(_AS_TOLD._replace(state="retrying")), "is Found"),
        (store(_AS_TOLD._replace(attempt=0)), "is Found"),
        (store(_AS_TOLD._replace(word="never_sent")), "is Found"),
        (store(_AS_TOLD, nonces=()), "used again"),
        (store(_AS_TOLD, last_id=6), "given again"),
    ],
)
def test_what_is_undone_is_noticed(found: Content, problem: str | None) -> None:
    told = {7: Told("cancelled", 1, "between_attempts")}
    lost = losses(told, frozenset("n"), found, store(_AS_TOLD))
    assert len(lost) == (problem is not None)
    assert problem is None or problem in lost[0]
    assert losses(told, frozenset("n"), found, None) == lost


def test_an_end_of_any_kind_stays_one() -> None:
    told = {7: Told(ended=True)}
    assert not losses(told, frozenset(), store(Found("failed", 1, None)), None)
    assert losses(told, frozenset(), store(Found("running", 1, None)), None)


def test_what_was_purged_may_be_gone() -> None:
    told = {7: Told("succeeded", 1)}
    assert not losses(told, frozenset("n"), store(None, nonces=()), store(None, nonces=()))

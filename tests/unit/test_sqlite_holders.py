"""Who has a database open, from what Linux tells."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from taskd.stores.sqlite import holders
from taskd.stores.sqlite.files import FileId
from taskd.stores.sqlite.holders import READER_SLOTS, Process, openers, readers

_LOCKS = """\
1: POSIX  ADVISORY  READ 11 fe:00:500 124 124
2: POSIX  ADVISORY  READ 12 fe:00:500 125 126
3: POSIX  ADVISORY  WRITE 13 fe:00:500 120 120
4: POSIX  ADVISORY  READ 14 fe:00:501 124 124
5: POSIX  ADVISORY  READ 15 fe:00:500 0 EOF
6: OFDLCK ADVISORY  READ -1 fe:00:500 124 124
6: -> POSIX  ADVISORY  WRITE 16 fe:00:500 124 124
7: FLOCK  ADVISORY  WRITE 17 fe:00:500 0 EOF
"""


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A made-up ``/proc``."""
    monkeypatch.setattr(holders, "_PROC", tmp_path)
    (tmp_path / "locks").write_text(_LOCKS)
    return tmp_path


def add(proc: Path, pid: int, *words: str, opens: Path | None = None) -> None:
    folder = proc / str(pid)
    (folder / "fd").mkdir(parents=True)
    (folder / "cmdline").write_bytes(b"".join(word.encode() + b"\0" for word in words))
    (folder / "comm").write_text(f"{Path(words[0]).name[:15]}\n")
    if opens is not None:
        (folder / "fd" / "3").symlink_to(opens)


def test_readers_are_those_that_hold_one_of_the_slots(proc: Path, tmp_path: Path) -> None:
    shm = tmp_path / "shm"
    shm.touch()
    inode = shm.stat().st_ino
    (proc / "locks").write_text(_LOCKS.replace(":500 ", f":{inode} "))
    for pid in (11, 12, 13, 15, 16, 17):
        add(proc, pid, "/usr/bin/sqlite3", "taskd.db", opens=shm)
    file = FileId.of(shm.stat())
    assert readers(file, frozenset(READER_SLOTS)) == [
        Process(11, "sqlite3"),
        Process(12, "sqlite3"),
    ]
    assert readers(file, frozenset({126})) == [Process(12, "sqlite3")]
    # Of another file system's file with this number nobody here is a reader.
    assert readers(FileId(file.device + 1, inode), frozenset(READER_SLOTS)) == []


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (("/usr/bin/sqlite3", "taskd.db"), "sqlite3"),
        (("/opt/taskd/bin/python3", "/opt/taskd/bin/taskd", "backup", "x.db"), "taskd backup"),
        (("python3", "-m", "taskd", "backup", "--config", "c", "x.db"), "taskd backup"),
        (("/opt/taskd/bin/taskd", "serve"), "taskd serve"),
        (("/opt/taskd/bin/taskd", "--password", "hunter2"), "taskd"),
        (("vim", "backup"), "vim"),
    ],
)
def test_a_process_is_told_by_its_command_and_nothing_more(
    proc: Path, tmp_path: Path, words: tuple[str, ...], name: str
) -> None:
    file = tmp_path / "taskd.db"
    file.touch()
    add(proc, 42, *words, opens=file)
    assert openers(FileId.of(file.stat())) == [Process(42, name)]
    assert str(Process(42, name)) == f"process 42 ({name})"


def test_what_can_not_be_seen_is_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holders, "_PROC", tmp_path / "nowhere")
    file = FileId.of(tmp_path.stat())
    assert openers(file) == readers(file, frozenset(READER_SLOTS)) == []


def test_this_process_is_not_among_others(tmp_path: Path) -> None:
    file = tmp_path / "file"
    with file.open("w"):
        assert os.getpid() not in {each.pid for each in openers(FileId.of(file.stat()))}

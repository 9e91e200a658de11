"""What a start finds after a clean end and after any other: it uses a database that is
whole, and refuses one that is not, with what to do."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sqlite3
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from taskd.errors import StoreRefused
from taskd.stores.sqlite import check
from taskd.stores.sqlite.backup import back_up
from taskd.stores.sqlite.files import lock_path
from taskd.stores.sqlite.lock_record import Record, State
from taskd.stores.sqlite.store import SQLiteStore
from tests.support.crashes import FRAME, commit_ends, crash, in_use, restart_machine, start
from tests.support.stores import new_app, new_task


def refused(path: Path) -> str:
    """The sentence with which a start is refused. It changes nothing but the lock file,
    and is said again the next time."""
    before = content(path)
    told = []
    for _ in range(2):
        with pytest.raises(StoreRefused) as raised:
            start(path)
        told.append(str(raised.value))
    assert told[0] == told[1]
    assert "\n" not in told[0]
    assert content(path) == before
    return told[0]


def content(path: Path) -> dict[str, bytes]:
    """Of what has data in it."""
    names = (path.name, f"{path.name}-wal")
    files = (path.with_name(name) for name in names)
    return {file.name: file.read_bytes() for file in files if file.exists() and file.stat().st_size}


ALL = {f"no-{number}" for number in range(50)}


def test_what_a_kill_leaves_is_checked_and_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "taskd.db"
    caplog.set_level("INFO")
    crash(path)
    assert start(path) == ALL
    assert "no damage was found" in caplog.text
    caplog.clear()
    # That end was clean.
    assert start(path) == ALL
    assert "damage" not in caplog.text


def test_a_database_that_was_changed_between_two_starts_is_checked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "taskd.db"
    caplog.set_level("INFO")
    crash(path)
    start(path)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE sqlite_sequence SET seq = 1000")
        connection.commit()
    caplog.clear()
    assert start(path) == ALL
    assert "no damage was found" in caplog.text


def test_a_database_that_was_being_made_is_made_anew(tmp_path: Path) -> None:
    path, half = tmp_path / "taskd.db", tmp_path / "half.db"
    with contextlib.closing(sqlite3.connect(half, isolation_level=None)) as connection:
        connection.execute("PRAGMA cache_size = 1")
        connection.execute("BEGIN")
        connection.execute("CREATE TABLE half (content)")
        for _ in range(10):
            connection.execute("INSERT INTO half VALUES (zeroblob(5000))")
        # Some is written before the commit, and its journal says how to undo it.
        shutil.copy(half, path)
        shutil.copy(f"{half}-journal", f"{path}-journal")
    assert path.stat().st_size
    with lock_path(path).open("wb") as lock:
        Record(pid="1", state=State.NEW, database=path.stat().st_ino).write(lock.fileno())
    assert start(path) == set()
    assert not Path(f"{path}-journal").exists()


def test_a_commit_that_a_power_cut_tore_is_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "taskd.db"
    crash(path)
    log = path.with_name("taskd.db-wal")
    salts = log.read_bytes()[16:24]
    page = bytes(8 + 4096)
    with log.open("ab") as file:
        file.write(bytes(FRAME))
        # The first half of a header that an older log had here, and the second of the new one.
        file.write(struct.pack(">II", 1, 9) + salts + page)
        file.write(struct.pack(">II", 2, 0) + salts + page)
    assert start(path) == ALL


def flip(path: Path, place: int, count: int = 64) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        data = file.read(count)
        file.seek(place)
        file.write(bytes(byte ^ 0xFF for byte in data))


def damage_a_page(path: Path) -> None:
    """The root of the tasks, whose page has a header of its own."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        (root,) = connection.execute(
            "SELECT rootpage FROM sqlite_schema WHERE name = 'tasks'"
        ).fetchone()
    flip(path, (root - 1) * 4096)


def damage_the_beginning(path: Path) -> None:
    flip(path, 0, 100)


def cut_it(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("harm", [damage_a_page, damage_the_beginning, cut_it])
@pytest.mark.parametrize("clean", [True, False])
def test_a_damaged_database_is_refused_with_what_to_do(
    tmp_path: Path, harm: Callable[[Path], None], clean: bool
) -> None:
    path = tmp_path / "taskd.db"
    crash(path, 2_000)
    start(path)
    if not clean:
        with in_use(path, 0):
            pass
    harm(path)
    told = refused(path)
    assert "is damaged" in told
    assert "taskd restore" in told
    assert ".recover" in told


def test_looking_for_damage_takes_no_longer_than_its_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "taskd.db"
    crash(path, 2_000)
    monkeypatch.setattr(check, "CHECK_S", 0.000001)
    assert len(start(path)) == 2_000
    assert "was cut short" in caplog.text


def remove_database(path: Path) -> None:
    path.unlink()


def empty_database(path: Path) -> None:
    os.truncate(path, 0)


@pytest.mark.parametrize("harm", [remove_database, empty_database])
@pytest.mark.parametrize("log", ["left", "removed", "folded"])
def test_no_new_database_is_made_where_there_was_one(
    tmp_path: Path, harm: Callable[[Path], None], log: str
) -> None:
    path = tmp_path / "taskd.db"
    crash(path)
    if log == "folded":
        start(path)
    harm(path)
    if log == "removed":
        (tmp_path / "taskd.db-wal").unlink()
    told = refused(path)
    assert "is missing" in told or "is empty" in told
    assert "taskd restore" in told
    if log != "left":
        # As it says: whoever wants to begin with none can.
        assert "remove taskd.db.lock" in told
        (tmp_path / "taskd.db.lock").unlink()
        assert start(path) == set()


def test_a_log_without_its_database_is_not_thrown_away(tmp_path: Path) -> None:
    path = tmp_path / "taskd.db"
    crash(path)
    path.rename(tmp_path / "away.db")
    (tmp_path / "taskd.db.lock").unlink()
    assert "taskd.db-wal belongs to one" in refused(path)
    (tmp_path / "away.db").rename(path)
    assert start(path) == ALL


def test_a_file_that_an_older_version_has_locked_counts_as_one_that_was_there(
    tmp_path: Path,
) -> None:
    path = tmp_path / "taskd.db"
    crash(path)
    (tmp_path / "taskd.db.lock").write_text("4711\n")
    assert start(path) == ALL
    (tmp_path / "taskd.db.lock").write_text("4711\n")
    path.unlink()
    assert "is missing" in refused(path)


def test_a_start_that_was_killed_in_its_first_moment_is_made_up_for(tmp_path: Path) -> None:
    path = tmp_path / "taskd.db"
    path.touch()
    (tmp_path / "taskd.db.lock").write_text(f"{'4711':31}\n{'state new':63}\n")
    assert start(path) == set()


@pytest.fixture
def backup(tmp_path: Path) -> Path:
    """A whole database with other tasks, in one file."""
    path = tmp_path / "backup" / "taskd.db"

    async def main() -> None:
        store = await SQLiteStore.open(path)
        app = await store.create_app(new_app())
        await store.create_task(new_task(app, "of the backup"))
        await store.aclose()

    trio.run(main)
    return path


def test_a_backup_in_the_place_of_a_database_that_was_not_closed(
    tmp_path: Path, backup: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With ``mv``, and without a thought of the log."""
    path = tmp_path / "taskd.db"
    crash(path)
    backup.rename(path)
    assert start(path) == {"of the backup"}
    assert "set aside as taskd.db-wal.aside-1" in caplog.text
    assert (tmp_path / "taskd.db-wal.aside-1").stat().st_size > 20 * FRAME


@pytest.mark.parametrize("way", ["taskd backup", "VACUUM INTO", ".backup"])
def test_a_backup_that_is_written_over_a_database_that_was_not_closed(
    tmp_path: Path, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    """With ``cp``, which keeps the file and changes its content."""
    path, copy = tmp_path / "taskd.db", tmp_path / "copy.db"
    with in_use(path):
        if way == "taskd backup":
            back_up(path, copy)
        with contextlib.closing(sqlite3.connect(path)) as source:
            if way == "VACUUM INTO":
                source.execute("VACUUM INTO ?", (str(copy),))
            elif way == ".backup":
                with contextlib.closing(sqlite3.connect(copy)) as target:
                    source.backup(target)
    inode = path.stat().st_ino
    shutil.copyfile(copy, path)
    assert path.stat().st_ino == inode
    assert start(path) == ALL
    assert "set aside as taskd.db-wal.aside-1" in caplog.text


def test_a_copy_that_has_no_log_is_used(tmp_path: Path) -> None:
    crash(tmp_path / "taskd.db")
    with (
        contextlib.closing(sqlite3.connect(tmp_path / "taskd.db")) as source,
        contextlib.closing(sqlite3.connect(tmp_path / "copy.db")) as target,
    ):
        source.backup(target)
        target.execute("PRAGMA journal_mode = DELETE")
    assert start(tmp_path / "copy.db") == ALL


def test_anothers_log_is_not_applied(tmp_path: Path) -> None:
    path, other = tmp_path / "taskd.db", tmp_path / "other.db"
    crash(path)
    crash(other, 70)
    (tmp_path / "taskd.db-wal").rename(tmp_path / "away")
    (tmp_path / "other.db-wal").rename(tmp_path / "taskd.db-wal")
    told = refused(path)
    assert "taskd.db-wal is not the log that the last taskd wrote" in told
    (tmp_path / "away").rename(tmp_path / "taskd.db-wal")
    assert start(path) == ALL


@pytest.mark.parametrize("size", [None, 0, 20 * FRAME])
def test_a_log_that_was_removed_or_cut_is_missed(tmp_path: Path, size: int | None) -> None:
    path, log = tmp_path / "taskd.db", tmp_path / "taskd.db-wal"
    crash(path)
    if size is None:
        log.unlink()
    else:
        os.truncate(log, size)
    told = refused(path)
    assert "taskd.db-wal was removed or cut, and the newest tasks with it" in told
    # As it says: whoever wants to go on without can.
    log.unlink(missing_ok=True)
    (tmp_path / "taskd.db-shm").unlink()
    assert start(path) < ALL


def test_a_log_that_another_program_has_folded_is_not_missed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "taskd.db"
    crash(path)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("SELECT * FROM tasks").fetchall()
    assert not (tmp_path / "taskd.db-wal").exists()
    assert start(path) == ALL
    assert "unless another program" in caplog.text


def test_a_copied_folder_is_used(tmp_path: Path) -> None:
    """On another machine, say: all files are others than they were."""
    crash(tmp_path / "a" / "taskd.db")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert start(tmp_path / "b" / "taskd.db") == ALL


@pytest.mark.parametrize(
    "harm",
    [
        pytest.param(lambda log: flip(log, 32 + 10 * FRAME + 24), id="a frame's page"),
        pytest.param(lambda log: flip(log, 32 + 10 * FRAME, 8), id="a frame's header"),
        pytest.param(lambda log: flip(log, 0, 4), id="the log's magic number"),
        pytest.param(lambda log: flip(log, 16, 8), id="the log's salts"),
        pytest.param(lambda log: flip(log, 24, 8), id="the log's checksum"),
    ],
)
def test_a_log_that_is_damaged_in_the_middle_is_refused(
    tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    """SQLite would take what is before the damage, and say nothing."""
    path = tmp_path / "taskd.db"
    crash(path)
    harm(tmp_path / "taskd.db-wal")
    told = refused(path)
    assert "is damaged (" in told
    assert "taskd.db-wal" in told


def test_a_commit_that_a_power_cut_has_torn_is_no_damage(tmp_path: Path) -> None:
    """It was not acknowledged: its last frames are there, and one before is not."""
    path, log = tmp_path / "taskd.db", tmp_path / "taskd.db-wal"
    crash(path)
    flip(log, 32 + (commit_ends(path)[-2] + 1) * FRAME + 24)
    assert len(start(path)) >= 49


@pytest.mark.parametrize("commits", [1, 3])
@pytest.mark.parametrize("harm", ["cut", "torn"])
def test_what_was_not_synced_in_a_power_cut_is_no_damage(
    tmp_path: Path, commits: int, harm: str
) -> None:
    """Of the last commits of some processes, that is; the log's index may be on the disk, and
    tell of them."""
    path, log = tmp_path / "taskd.db", tmp_path / "taskd.db-wal"
    crash(path)
    ends = commit_ends(path)
    place = 32 + (ends[-1 - commits] + 1) * FRAME + 24
    if harm == "cut":
        os.truncate(log, place + 512)
    else:
        flip(log, place)
    if (harm, commits) != ("torn", 1):
        refused(path)  # a kill leaves no such thing
    restart_machine(path)
    assert len(start(path)) >= 50 - commits


@pytest.mark.parametrize("removed", [True, False])
def test_a_power_cut_does_not_account_for_all_that_can_be_wrong(
    tmp_path: Path, removed: bool
) -> None:
    path, log = tmp_path / "taskd.db", tmp_path / "taskd.db-wal"
    crash(path, 120, singly=120)
    if removed:
        log.unlink()
    else:
        flip(log, 32 + (commit_ends(path)[-100] + 1) * FRAME + 24)
    restart_machine(path)
    told = refused(path)
    assert ("was removed or cut" if removed else "is damaged (page") in told


def test_removing_the_lock_lets_no_second_one_in(tmp_path: Path) -> None:
    path = tmp_path / "taskd.db"
    with in_use(path) as process:
        (tmp_path / "taskd.db.lock").unlink()
        with pytest.raises(StoreRefused, match=rf"in use by another taskd, process {process.pid}"):
            start(path)


@pytest.mark.parametrize("kind", ["hard link", "symbolic link", "folder"])
def test_another_name_lets_no_second_one_in(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "store" / "taskd.db"
    other = tmp_path / "other" / "taskd.db"
    with in_use(path) as process:
        if kind == "folder":
            other.parent.symlink_to(path.parent)
        else:
            other.parent.mkdir()
            other.hardlink_to(path) if kind == "hard link" else other.symlink_to(path)
        with pytest.raises(StoreRefused, match=rf"in use by another taskd, process {process.pid}"):
            start(other)


def test_the_lock_is_told_by_what_the_lock_file_says(tmp_path: Path) -> None:
    path = tmp_path / "taskd.db"
    start(path)
    lines = (tmp_path / "taskd.db.lock").read_text().splitlines()
    assert lines[0].strip() == str(os.getpid())
    assert "state closed" in [line.strip() for line in lines]
    assert f"database {path.stat().st_ino}" in [line.strip() for line in lines]
    with in_use(path, 1):
        text = (tmp_path / "taskd.db.lock").read_text()
        assert re.search("^state running *$", text, re.MULTILINE)
        inode = (tmp_path / "taskd.db-wal").stat().st_ino
        assert re.search(f"^log {inode} *$", text, re.MULTILINE)

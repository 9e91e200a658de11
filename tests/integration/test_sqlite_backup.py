"""A copy of a store in use, and such a copy put back: whole, or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from taskd.errors import StoreRefused
from taskd.stores.sqlite import backup as sqlite_backup
from taskd.stores.sqlite.backup import ID_MARGIN, back_up, restore
from taskd.stores.sqlite.lock import StoreLock
from taskd.stores.sqlite.lock_record import Record
from tests.support.crashes import crash, in_use, start

NOW = "20261127T065600Z"


def task_nos(path: Path) -> set[str]:
    uri = f"{path.as_uri()}?mode=ro&immutable=1"
    with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return {task_no for (task_no,) in connection.execute("SELECT task_no FROM tasks")}


def highest_id(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        (highest,) = connection.execute(
            "SELECT seq FROM sqlite_sequence WHERE name = 'tasks'"
        ).fetchone()
        return int(highest)


def names(count: int, name: str = "no") -> set[str]:
    return {f"{name}-{number}" for number in range(count)}


@pytest.fixture
def backup(tmp_path: Path) -> Path:
    """A backup of a store that has 10 tasks, and is in use."""
    file = tmp_path / "backup.db"
    with in_use(tmp_path / "backed up" / "taskd.db", 10):
        back_up(tmp_path / "backed up" / "taskd.db", file)
    return file


def test_a_backup_is_one_file_for_this_user_only(tmp_path: Path) -> None:
    path, file = tmp_path / "store" / "taskd.db", tmp_path / "backups" / "of today.db"
    file.parent.mkdir()
    before = os.umask(0)
    try:
        with in_use(path, 2_000):
            copied = back_up(path, file)
    finally:
        os.umask(before)
    assert [each.name for each in file.parent.iterdir()] == ["of today.db"]
    assert file.stat().st_mode & 0o777 == 0o600
    assert task_nos(file) == names(2_000)
    assert copied == sqlite_backup.Copied(apps=1, tasks=2_000, size=file.stat().st_size)


@pytest.mark.parametrize("end", ["clean", "kill"])
def test_a_store_that_nobody_uses_is_backed_up_and_left_as_it_is(tmp_path: Path, end: str) -> None:
    path, file = tmp_path / "taskd.db", tmp_path / "backup.db"
    crash(path)
    if end == "clean":
        start(path)
    before = path.read_bytes()
    back_up(path, file)
    assert task_nos(file) == names(50)
    assert path.read_bytes() == before
    assert start(path) == names(50)


@pytest.mark.parametrize("there", ["a file", "a folder", "a link to nothing"])
def test_nothing_that_is_there_is_overwritten(tmp_path: Path, there: str) -> None:
    path, file = tmp_path / "taskd.db", tmp_path / "backup.db"
    crash(path)
    if there == "a file":
        file.write_text("an older backup")
    elif there == "a folder":
        file.mkdir()
    else:
        file.symlink_to("nothing")
    with pytest.raises(StoreRefused, match=r"backup\.db is there already; nothing was written"):
        back_up(path, file)
    assert not list(tmp_path.glob(".*"))
    if there == "a file":
        assert file.read_text() == "an older backup"


def test_nothing_that_came_meanwhile_is_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, file = tmp_path / "taskd.db", tmp_path / "backup.db"
    crash(path)
    copy = sqlite_backup._copy

    def copy_beside_another(*args: object) -> None:
        copy(*args)  # type: ignore[arg-type]  # whatever it takes
        file.write_text("another's")

    monkeypatch.setattr(sqlite_backup, "_copy", copy_beside_another)
    with pytest.raises(StoreRefused, match="is there already"):
        back_up(path, file)
    assert file.read_text() == "another's"
    assert not list(tmp_path.glob(".*"))


def test_an_interruption_leaves_nothing(
    tmp_path: Path, backup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "taskd.db"
    crash(path)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sqlite_backup, "_complete", interrupted)
    before = {file.name for file in tmp_path.iterdir()}
    with pytest.raises(KeyboardInterrupt):
        back_up(path, tmp_path / "another.db")
    with pytest.raises(KeyboardInterrupt):
        restore(path, backup, label=NOW)
    assert {file.name for file in tmp_path.iterdir()} == before
    assert start(path) == names(50)


def no_store(path: Path) -> None:
    path.unlink()


def empty_store(path: Path) -> None:
    os.truncate(path, 0)


def another_programs(path: Path) -> None:
    path.unlink()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE letters (a TEXT)")
        connection.commit()


def damaged(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 8192)


def replaced(path: Path) -> None:
    shutil.copy(path, path.with_name("copy"))
    path.with_name("copy").rename(path)


def without_its_log(path: Path) -> None:
    path.with_name("taskd.db-wal").unlink()


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (no_store, "there is no database"),
        (empty_store, "is damaged|is empty|malformed"),
        # It may have got the number of the file before.
        (another_programs, "another program made it|was removed or cut"),
        (damaged, "is damaged"),
        (replaced, "taskd.db was replaced"),
        (without_its_log, "taskd.db-wal was removed or cut"),
    ],
)
@pytest.mark.parametrize("used", [True, False])
def test_no_backup_is_made_of_what_is_not_whole(
    tmp_path: Path, harm: Callable[[Path], None], told: str, used: bool
) -> None:
    path, file = tmp_path / "taskd.db", tmp_path / "backup.db"
    if harm is damaged:  # where a log does not make up for it
        crash(path, 50, "before")
        start(path)
    with in_use(path) if used else contextlib.nullcontext():
        if not used:
            crash(path)
        harm(path)
        with pytest.raises(StoreRefused, match=told):
            back_up(path, file)
        assert not file.exists()
        assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("where", ["nowhere/backup.db", "taskd.db/backup.db"])
def test_a_file_that_can_not_be_made_is_named(tmp_path: Path, where: str) -> None:
    crash(tmp_path / "taskd.db")
    with pytest.raises(StoreRefused, match=r"backup\.db can't be written: "):
        back_up(tmp_path / "taskd.db", tmp_path / where)


def test_a_disk_without_links_gets_a_backup_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", no_links)
    crash(tmp_path / "taskd.db")
    back_up(tmp_path / "taskd.db", tmp_path / "backup.db")
    assert task_nos(tmp_path / "backup.db") == names(50)
    assert not list(tmp_path.glob(".*"))


def test_a_restore_puts_the_backup_in_place_and_keeps_what_was_there(
    tmp_path: Path, backup: Path
) -> None:
    path = tmp_path / "taskd.db"
    crash(path, 30, "other")
    done = restore(path, backup, label=NOW)
    assert done.copied.tasks == 10
    assert done.kept == tmp_path / f"taskd.db.before-{NOW}"
    assert path.stat().st_mode & 0o777 == 0o600
    assert start(path) == names(10)
    with contextlib.closing(sqlite3.connect(done.kept)) as kept:  # its log stands beside it
        assert {row for (row,) in kept.execute("SELECT task_no FROM tasks")} == names(30, "other")
    assert task_nos(backup) == names(10)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root restores for another user")
@pytest.mark.parametrize("there", [True, False])
def test_what_root_restores_is_its_users(tmp_path: Path, backup: Path, there: bool) -> None:
    path = tmp_path / "store" / "taskd.db"
    crash(path)
    for file in (path.parent, *path.parent.iterdir()):
        os.chown(file, 1234, -1)
    if not there:
        for file in list(path.parent.iterdir()):
            file.unlink()
    restore(path, backup, label=NOW)
    assert {file.stat().st_uid for file in path.parent.iterdir()} == {1234}
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_restore_to_where_nothing_is_makes_the_folder(tmp_path: Path, backup: Path) -> None:
    path = tmp_path / "new" / "taskd.db"
    assert restore(path, backup, label=NOW).kept is None
    assert start(path) == names(10)
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_no_id_is_given_twice_after_a_restore(tmp_path: Path, backup: Path) -> None:
    """Not one that was given after the backup, as far as that can be known; else the
    counter is far ahead."""
    path = tmp_path / "taskd.db"
    crash(path, 300)
    assert restore(path, backup, label=NOW).ids_after == highest_id(path) == 300
    crash(path, 20, "later")
    path.write_bytes(b"no database any more" * 1_000)
    assert restore(path, backup, label=NOW).ids_after == 10 + ID_MARGIN
    assert highest_id(path) == 10 + ID_MARGIN
    assert restore(tmp_path / "new.db", backup, label=NOW).ids_after == 10 + ID_MARGIN


def test_a_store_that_is_used_is_not_overwritten(tmp_path: Path, backup: Path) -> None:
    path = tmp_path / "taskd.db"
    with in_use(path) as process:
        told = rf"in use by another taskd, process {process.pid}"
        with pytest.raises(StoreRefused, match=told):
            restore(path, backup, label=NOW)
        (tmp_path / "taskd.db.lock").unlink()
        with pytest.raises(StoreRefused, match=told):
            restore(path, backup, label=NOW)
        (tmp_path / "link.db").hardlink_to(path)
        with pytest.raises(StoreRefused, match=told):
            restore(tmp_path / "link.db", backup, label=NOW)
    assert start(path) == names(50)


def text(file: Path) -> None:
    file.write_text("this is no backup\n" * 1_000)


def nothing(file: Path) -> None:
    file.write_bytes(b"")


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def newer(file: Path) -> None:
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA user_version = 1000")


def missing(file: Path) -> None:
    file.unlink()


def folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (text, "is no SQLite file"),
        (nothing, "is empty"),
        (cut, "is damaged"),
        (damaged, "is damaged"),
        (another_programs, "another program made it"),
        (newer, "newer taskd"),
        (missing, "there is no file"),
        (folder, "is no file"),
    ],
)
def test_what_is_no_backup_is_not_restored(
    tmp_path: Path, backup: Path, harm: Callable[[Path], None], told: str
) -> None:
    path = tmp_path / "taskd.db"
    crash(path)
    harm(backup)
    with pytest.raises(StoreRefused, match=told) as refused:
        restore(path, backup, label=NOW)
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.glob("taskd.db.*before*"))
    assert not list(tmp_path.glob("taskd.db.restoring*"))
    assert start(path) == names(50)


def test_the_store_itself_is_no_backup(tmp_path: Path) -> None:
    path = tmp_path / "taskd.db"
    crash(path)
    (tmp_path / "link.db").hardlink_to(path)
    for file in (path, tmp_path / "link.db"):
        with pytest.raises(StoreRefused, match="is the store's own database"):
            restore(path, file, label=NOW)
    assert start(path) == names(50)


def test_a_copy_with_a_log_beside_it_is_restored_with_what_is_in_the_log(tmp_path: Path) -> None:
    """As ``cp`` of both files leaves it, once taskd has been killed."""
    crash(tmp_path / "copied" / "taskd.db")
    restore(tmp_path / "taskd.db", tmp_path / "copied" / "taskd.db", label=NOW)
    assert start(tmp_path / "taskd.db") == names(50)


class Killed(BaseException):
    """In the place of a kill: nothing may catch it."""


@contextlib.contextmanager
def killed_at(step: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A kill before the step of this number, of those that change names or the lock."""
    steps = 0
    rename, write = Path.rename, StoreLock.note

    def count() -> None:
        nonlocal steps
        steps += 1
        if steps == step:
            raise Killed

    def killing_rename(self: Path, target: Path) -> Path:
        count()
        return rename(self, target)

    def killing_note(self: StoreLock, record: Record) -> None:
        count()
        write(self, record)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killing_rename)
        patch.setattr(StoreLock, "note", killing_note)
        yield


@pytest.mark.parametrize("step", range(1, 8))
def test_a_restore_that_was_killed_is_completed_by_another(
    tmp_path: Path, backup: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "taskd.db"
    crash(path, 30, "other")
    with contextlib.suppress(Killed), killed_at(step, monkeypatch):
        restore(path, backup, label=NOW)
        assert step == 7, "there are six steps"
    # Nothing that is in between is used.
    if step == 1:
        shutil.copytree(tmp_path, tmp_path / "as before")
        assert start(tmp_path / "as before" / "taskd.db") == names(30, "other")
    elif step < 7:
        with pytest.raises(StoreRefused, match="was not finished: run taskd restore again"):
            start(path)
    restore(path, backup, label="20261127T070000Z")
    assert start(path) == names(10)
    found = []
    for kept in tmp_path.glob("taskd.db.before-*Z"):
        with contextlib.closing(sqlite3.connect(kept)) as connection:
            found.append({row for (row,) in connection.execute("SELECT task_no FROM tasks")})
    assert names(30, "other") in found

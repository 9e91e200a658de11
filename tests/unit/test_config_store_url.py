"""``[store] url``: one reading, or a refusal with both."""

from __future__ import annotations

from pathlib import Path

import pytest

from taskd.config import load_config
from taskd.errors import ConfigError


def path_of(folder: Path, url: str) -> Path:
    config = folder / "taskd.toml"
    config.write_text("[store]\n")
    return load_config(config, {"TASKD_STORE_URL": url}).store.path


def refusal(folder: Path, url: str) -> str:
    with pytest.raises(ConfigError) as refused:
        path_of(folder, url)
    told = str(refused.value)
    assert told.startswith('[store] url: must be "sqlite:///" and a path, or "mysql://')
    assert told.endswith("(TASKD_STORE_URL)")
    assert "\n" not in told
    return told


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///taskd.db", "taskd.db"),
        ("sqlite:///./taskd.db", "taskd.db"),
        ("sqlite:///../taskd.db", "../taskd.db"),
        ("sqlite:///store/taskd.db", "store/taskd.db"),
        ("sqlite:///./var/lib/x.db", "var/lib/x.db"),
        ("sqlite:///var", "var"),
        ("sqlite:////var/lib/x.db", "/var/lib/x.db"),
        ("sqlite://///var/lib/x.db", "/var/lib/x.db"),
        ("sqlite:///50 % of it.db", "50 % of it.db"),
        ("sqlite:///tasks of today.db", "tasks of today.db"),
        ("sqlite:///任务.db", "任务.db"),
        ("sqlite:///a:b@c.db", "a:b@c.db"),
    ],
)
def test_what_has_one_reading_is_taken(tmp_path: Path, url: str, path: str) -> None:
    assert path_of(tmp_path, url) == tmp_path / path


@pytest.mark.parametrize("path", ["var/lib/x.db", "etc/taskd/x.db", "tmp/x.db", "usr/x/y/z.db"])
def test_a_path_that_may_have_been_meant_absolute_is_refused(tmp_path: Path, path: str) -> None:
    told = refusal(tmp_path, f"sqlite:///{path}")
    assert f'write "sqlite:////{path}" for /{path}' in told
    assert f'or "sqlite:///./{path}" for {tmp_path}/{path}' in told
    assert list(tmp_path.iterdir()) == [tmp_path / "taskd.toml"]
    # Both of what it says are taken.
    assert path_of(tmp_path, f"sqlite:////{path}") == Path("/", path)
    assert path_of(tmp_path, f"sqlite:///./{path}") == tmp_path / path


def test_a_folder_that_is_there_is_what_is_meant(tmp_path: Path) -> None:
    (tmp_path / "var" / "lib").mkdir(parents=True)
    assert path_of(tmp_path, "sqlite:///var/lib/x.db") == tmp_path / "var/lib/x.db"
    assert "sqlite:////var/lib/taskd/x.db" in refusal(tmp_path, "sqlite:///var/lib/taskd/x.db")


def test_in_the_root_folder_both_readings_are_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    environ = {"TASKD_STORE_URL": "sqlite:///var/lib/x.db"}
    for name in ("taskd.toml", "etc/taskd/taskd.toml"):
        if Path("/", name).exists():
            pytest.skip(f"this machine has a /{name}")
    assert load_config(None, environ).store.path == Path("/var/lib/x.db")


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("sqlite://x.db", '"sqlite:///x.db" for a path in the config file\'s folder'),
        ("sqlite:x.db", '"sqlite:////x.db" for an absolute one'),
        ("sqlite3:///x.db", '"sqlite:///x.db" for'),
        ("SQLite:///x.db", '"sqlite:///x.db" for'),
        ("sqlite+pysqlite:///x.db", '"sqlite:///x.db" for'),
        ("x.db", '"sqlite:///x.db" for'),
        ("var/lib/x.db", '"sqlite:////var/lib/x.db" for an absolute one'),
        ("sqlite:/var/lib/x.db", ': write "sqlite:////var/lib/x.db" ('),
        ("sqlite3:////var/lib/x.db", ': write "sqlite:////var/lib/x.db" ('),
        ("/var/lib/x.db", ': write "sqlite:////var/lib/x.db" ('),
        ("sqlite:///~/x.db", 'nothing expands "~" here'),
        ("sqlite:////~/x.db", 'nothing expands "~" here'),
        ("sqlite:///~taskd/x.db", 'nothing expands "~" here'),
        ("sqlite:///$HOME/x.db", 'nothing expands "$" here'),
        ("sqlite:///${HOME}/x.db", 'nothing expands "$" here'),
        ("sqlite:///my%20tasks.db", 'write "sqlite:///my tasks.db" for'),
        ("sqlite:////var%2Flib%2Fx.db", 'write "sqlite:////var/lib/x.db"'),
        ("sqlite:///C:/tasks/x.db", "a path of Windows"),
        ("sqlite:////C:/tasks/x.db", "a path of Windows"),
        ("sqlite:///C:\\tasks\\x.db", "a path of Windows"),
        ("sqlite:///tasks\\x.db", "a path of Windows"),
        ("sqlite:///x.db ", "white space"),
        ("sqlite:/// x.db", "white space"),
        ("sqlite:///x.db\n", "has to name a file"),
        ("sqlite:///x.db?mode=ro", "has to name a file"),
        ("sqlite:///x.db#1", "has to name a file"),
        ("sqlite:///folder/", "has to name a file"),
        ("sqlite:///folder/..", "has to name a file"),
        ("sqlite:///.", "has to name a file"),
        ("sqlite:///", "has to name a file"),
        ("sqlite:///:memory:", "has to name a file"),
    ],
)
def test_a_form_that_others_take_is_refused_with_what_to_write(
    tmp_path: Path, url: str, told: str
) -> None:
    assert told in refusal(tmp_path, url)


@pytest.mark.parametrize("url", ["", "sqlite:", "sqlite://", "http://x/y", "postgres://u:p@h/d"])
def test_what_is_no_path_at_all_is_refused_plainly(tmp_path: Path, url: str) -> None:
    assert "write" not in refusal(tmp_path, url)


def test_no_refusal_tells_a_password(tmp_path: Path) -> None:
    for url in ("sqlite://u:hunter2@h/x", "mysql:u:hunter2@h/x"):
        assert "hunter2" not in refusal(tmp_path, url)

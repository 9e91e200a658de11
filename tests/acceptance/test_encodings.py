"""Names of any script, whatever the terminal, the locale or PYTHONIOENCODING can carry."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import Daemon

_NAME = "帅的应用 é 🎉"
LOCALES: dict[str, dict[str, str]] = {
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "latin-1, strict": {"PYTHONIOENCODING": "latin-1:strict"},
    "ascii": {"PYTHONIOENCODING": "ascii:strict"},
    "gbk": {"PYTHONIOENCODING": "gbk"},
    "LANG=C": {"LANG": "C"},
    "LC_ALL=POSIX": {"LC_ALL": "POSIX"},
}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("encodings")) as daemon:
        yield daemon


class Shell:
    def __init__(self, daemon: Daemon, folder: Path, encoding: dict[str, str]) -> None:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("TASKD_", "LC_", "LANG"))}
        self.folder = folder
        self.environ = {
            **kept,
            "LANG": "C.UTF-8",
            **encoding,
            "TASKD_URL": daemon.url,
            "TASKD_ADMIN_SECRET": daemon.admin_secret,
            "TASKD_CREDENTIALS": str(folder / "credentials.toml"),
        }

    def run(self, *arguments: str, code: int = 0, stdin: bytes = b"") -> tuple[bytes, bytes]:
        done = subprocess.run(
            [sys.executable, "-m", "taskd", *arguments],
            cwd=self.folder,
            env=self.environ,
            input=stdin,
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == code, done.stderr
        assert b"Traceback" not in done.stderr
        return done.stdout, done.stderr


@pytest.mark.parametrize("locale", LOCALES)
def test_every_command_prints_any_name_and_json_stays_json(
    daemon: Daemon, tmp_path: Path, locale: str
) -> None:
    shell = Shell(daemon, tmp_path, LOCALES[locale])
    encoding = LOCALES[locale].get("PYTHONIOENCODING", "utf-8").partition(":")[0]
    if encoding == "ascii":
        encoding = "utf-8"  # where there is nothing but ASCII, UTF-8 is printed
    made, _ = shell.run("app", "create", "--name", _NAME, "--link-url", "http://127.0.0.1:9/")
    shell.run("app", "create", "--name", _NAME, "--link-url", "http://127.0.0.1:9/", "--json")
    lines = "".join(
        json.dumps({"taskNo": f"{_NAME}{n}", "name": _NAME, "content": "1", "timeout": 1}) + "\n"
        for n in range(3)
    ).encode()
    _, told = shell.run("task", "submit", "--from", "-", code=1, stdin=lines + "坏\n".encode())
    assert b"line 4" in told
    said, _ = shell.run(
        *("task", "submit", "--task-no", f"no {_NAME}", "--name", _NAME, "--content", f'"{_NAME}"'),
        *("--timeout", "100", "--json"),
    )
    task_id = str(json.loads(said.decode(encoding))["taskId"])
    shown, _ = shell.run("task", "detail", task_id)
    assert f"no {_NAME}".encode(encoding, "backslashreplace") in shown
    as_json, _ = shell.run("task", "detail", task_id, "--json")
    assert json.loads(as_json.decode(encoding))["task"]["name"] == _NAME
    _, refused = shell.run("task", "detail", "1", "--app", _NAME + "?", code=2)
    assert b"no application" in refused
    _, refused = shell.run("check-config", "--config", f"{_NAME}.toml", code=1)
    assert b".toml" in refused
    assert made


@pytest.mark.parametrize("locale", ["latin-1, strict", "ascii", "LC_ALL=POSIX"])
def test_what_is_exported_can_be_imported(daemon: Daemon, tmp_path: Path, locale: str) -> None:
    (tmp_path / "source").mkdir()
    source = Daemon(tmp_path / "source")
    with source, source.admin() as admin:
        admin.create_app(name=_NAME, link_url="http://127.0.0.1:9/")
        assert source.stop() == 0
    shell = Shell(daemon, tmp_path, LOCALES[locale])
    exported, _ = shell.run("export", "--config", str(source.config_path))
    assert _NAME in exported.decode()
    (tmp_path / "target.toml").write_text("")
    for number, mark in enumerate((b"", b"\xef\xbb\xbf")):
        shell.environ["TASKD_STORE_URL"] = f"sqlite:///{tmp_path}/target-{number}.db"
        said, _ = shell.run("import", "-", "--config", "target.toml", stdin=mark + exported)
        assert b"imported 1 applications" in said
    (tmp_path / "file").write_bytes(exported.decode().encode("utf-16"))
    _, refused = shell.run("import", "file", "--config", "target.toml", code=1)
    assert b"file: is UTF-16 and must be UTF-8" in refused


def test_a_log_in_latin_1_stays_json(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, environ={"PYTHONIOENCODING": "latin-1"})
    with daemon, daemon.admin() as admin:
        admin.create_app(name=_NAME, link_url="http://127.0.0.1:9/")
        assert daemon.stop() == 0
    assert all(json.loads(line) for line in daemon.log_path.read_bytes().splitlines())

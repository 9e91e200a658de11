"""``make cluster-demo``: it tells, it checks, and it leaves nothing behind."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.acceptance.test_command_line import read_all
from tests.support.daemon import wait_until
from tools.servers import ServerMissing, find, has_real_nsqd

_DEMO = [sys.executable, "-m", "tools.clusterdemo"]
_ROOT = Path(__file__).parents[2]
_LIMIT_S = 120
"""A minute is enough where nothing else runs."""
_STORIES = (
    "spread over three nodes",
    "delivered at once",
    "delivered in 2 s, never early",
    "cancelled through a third node",
    "looked into through a third node",
    "run again elsewhere after kill -9",
    "delivered while NSQ is away",
    "delivered while Redis is away",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the demo makes its folder; skips where it can't run."""
    try:
        for names in (("mariadbd", "mysqld"), ("mariadb-install-db",), ("redis-server",)):
            find(*names)
    except ServerMissing as error:
        pytest.skip(str(error))
    return tmp_path


def started(folder: Path, **environ: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        _DEMO,
        cwd=_ROOT,
        env={**os.environ, "TMPDIR": str(folder), **environ},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        bufsize=0,
    )


def read_until(demo: subprocess.Popen[bytes], words: bytes) -> None:
    assert demo.stdout is not None
    deadline = time.monotonic() + _LIMIT_S
    text = b""
    while words not in text:
        ready, _, _ = select.select([demo.stdout], [], [], deadline - time.monotonic())
        assert ready, text
        chunk = os.read(demo.stdout.fileno(), 4096)
        assert chunk, text
        text += chunk


def processes_in(folder: Path) -> list[str]:
    """Processes that work in this folder or name it: all that the demo starts do."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            text = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            if str(folder) in text or (process / "cwd").readlink().is_relative_to(folder):
                found.append(text)
        except OSError:
            continue
    return found


def test_the_cluster_demo_keeps_its_promises(folder: Path) -> None:
    demo = started(folder, TASKD_SERVER_PORT="1")  # what is set for another daemon
    told = demo.communicate(timeout=240)[0].decode()
    assert demo.returncode == 0, told
    assert "\x1b" not in told
    for story in _STORIES:
        assert re.search(rf"^{story}\s+yes\b", told, re.MULTILINE), told
    assert ("stand-in" in told) != has_real_nsqd()
    assert re.search(r"runs? on node [123]", told)
    assert re.search(r"it is on node [123], called node-\w+", told)
    assert "at taskd/delivery/transport/connection.py:" in told
    assert re.search(r"on node \d( and node \d)?, \d\.\d s after the kill", told)
    assert list(folder.iterdir()) == []
    assert processes_in(folder) == []


def test_the_cluster_demo_shows_its_progress_on_a_terminal(folder: Path) -> None:
    parent, child = pty.openpty()
    demo = subprocess.Popen(
        _DEMO,
        cwd=_ROOT,
        stdin=child,
        stdout=child,
        stderr=child,
        env={**os.environ, "TMPDIR": str(folder), "TERM": "xterm"},
    )
    os.close(child)
    text = ""
    while f"2 of {len(_STORIES)} stories have ended" not in text:
        chunk = os.read(parent, 4096)
        assert chunk, text
        text += chunk.decode(errors="replace")
    demo.send_signal(signal.SIGINT)
    text += read_all(parent)
    assert demo.wait(_LIMIT_S) == 1, text
    assert "\x1b[" in text
    assert re.search(r"ok spread +node 1: \d+, node 2: \d+, node 3: \d+", text)
    assert list(folder.iterdir()) == []
    assert processes_in(folder) == []


def test_the_cluster_demo_names_what_was_not_as_promised(folder: Path) -> None:
    """A receiver that rejects every signature."""
    module = folder / "module"
    module.mkdir()
    (module / "sitecustomize.py").write_text(
        "import hmac\n"
        "import sys\n"
        "if 'tools.clusterdemo' in sys.orig_argv:\n"
        "    hmac.compare_digest = lambda a, b: False\n"
    )
    demo = started(folder, PYTHONPATH=str(module))
    told = demo.communicate(timeout=240)[0].decode()
    assert demo.returncode == 1, told
    assert "Traceback" not in told
    assert "the receiver refused the callback: the signature is wrong" in told
    assert told.splitlines()[-1] == f"Error: not as promised: {', '.join(_STORIES)}"
    assert [path.name for path in folder.iterdir()] == ["module"]
    assert processes_in(folder) == []


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("MariaDB:", signal.SIGTERM),
        ("node 2:", signal.SIGINT),
        ("kill -9", signal.SIGHUP),
    ],
)
def test_a_signal_ends_the_cluster_demo(folder: Path, moment: str, number: signal.Signals) -> None:
    demo = started(folder)
    read_until(demo, moment.encode())
    assert processes_in(folder) != []
    demo.send_signal(number)
    told = demo.communicate(timeout=60)[0]
    assert demo.returncode == 1
    assert b"Traceback" not in told
    assert list(folder.iterdir()) == []
    assert processes_in(folder) == []


def test_a_kill_of_the_cluster_demo_leaves_no_process(folder: Path) -> None:
    demo = started(folder)
    read_until(demo, b"under way")
    demo.kill()
    demo.communicate(timeout=30)
    wait_until(lambda: processes_in(folder) == [], what="the end of all it had started")


def test_a_reader_that_leaves_ends_the_cluster_demo(folder: Path) -> None:
    """As ``python -m tools.clusterdemo | head``."""
    demo = subprocess.Popen(
        _DEMO,
        cwd=_ROOT,
        env={**os.environ, "TMPDIR": str(folder)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert demo.stdout is not None
    read_until(demo, b"Redis:")
    demo.stdout.close()
    assert demo.stderr is not None
    with demo.stderr:
        assert demo.stderr.read() == b""
    assert demo.wait(_LIMIT_S) == 1
    assert list(folder.iterdir()) == []
    assert processes_in(folder) == []


def test_without_a_server_it_says_how_to_install_it(tmp_path: Path) -> None:
    demo = started(tmp_path, PATH=str(tmp_path))  # no program is in it
    told = demo.communicate(timeout=30)[0].decode()
    assert demo.returncode == 1
    assert re.fullmatch(r"Error: no \S+ here: apt-get install mariadb-server redis-server\n", told)
    assert list(tmp_path.iterdir()) == []

"""``taskd demo``: it tells, it checks, and it leaves nothing behind."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.acceptance.test_command_line import read_all
from tests.support.daemon import wait_until

_STORIES = (
    "delivered at once",
    "delivered in 2 s, never early",
    "fails twice, then succeeds",
    "hits its timeout",
    "cancelled while waiting",
    "cancelled in flight",
    "looked into live",
)
_DEMO = [sys.executable, "-m", "taskd", "demo"]


def processes_in(folder: Path) -> list[str]:
    """Command lines that name a file of this folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if str(folder) in text:
            found.append(text)
    return found


def test_the_demo_keeps_its_promises_in_plain_lines(tmp_path: Path) -> None:
    began = time.monotonic()
    said = subprocess.run(
        _DEMO,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert said.returncode == 0, said.stdout + said.stderr
    assert time.monotonic() - began < 30
    assert "\x1b" not in said.stdout
    assert "\r" not in said.stdout
    for story in _STORIES:
        assert re.search(rf"^{story}\s+yes\b", said.stdout, re.MULTILINE), said.stdout
    assert "taskd/transport/connection.py" in said.stdout
    assert list(tmp_path.iterdir()) == []
    assert processes_in(tmp_path) == []


def test_the_demo_shows_its_progress_on_a_terminal(tmp_path: Path) -> None:
    parent, child = pty.openpty()
    demo = subprocess.Popen(
        _DEMO,
        stdin=child,
        stdout=child,
        stderr=child,
        env={**os.environ, "TMPDIR": str(tmp_path), "TERM": "xterm"},
    )
    os.close(child)
    text = read_all(parent)
    assert demo.wait(30) == 0
    assert "\x1b[" in text
    assert re.search(r"inspected +at taskd/transport/connection\.py:\d+ in ", text)
    for story in _STORIES:
        assert story in text


def test_the_demo_names_what_was_not_as_promised(tmp_path: Path) -> None:
    """A receiver that rejects every signature makes it fail."""
    (tmp_path / "sitecustomize.py").write_text(
        "import hmac\n"
        "import sys\n"
        "if 'demo' in sys.argv[1:] or 'demo' in sys.orig_argv:\n"
        "    hmac.compare_digest = lambda a, b: False\n"
    )
    said = subprocess.run(
        _DEMO,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(tmp_path)},
    )
    assert said.returncode == 1
    assert "delivered at once" in said.stderr
    assert "Traceback" not in said.stderr


def test_a_ctrl_c_ends_the_demo_and_its_daemon(tmp_path: Path) -> None:
    demo = subprocess.Popen(
        _DEMO,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert demo.stdout is not None
    assert demo.stdout.readline()
    wait_until(lambda: processes_in(tmp_path) != [], what="the daemon")
    demo.send_signal(signal.SIGINT)
    told, _ = demo.communicate(timeout=30)
    assert demo.returncode != 0
    assert "Traceback" not in told
    assert processes_in(tmp_path) == []
    assert list(tmp_path.iterdir()) == []

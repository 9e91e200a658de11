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
    lines = said.stdout.splitlines()
    assert max(len(line) for line in lines if str(tmp_path) not in line) <= 80
    for story in _STORIES:
        (row,) = [line for line in lines if line.startswith(f"{story} ")]
        found = re.fullmatch(rf"{story} +yes +(.+)", row)
        assert found, row
        # Each result is told once, in the table.
        assert [line for line in lines if line.endswith(found[1])] == [row]
    frames = [line for line in lines if "  inspected  at " in line]
    assert len(frames) == 3
    assert "taskd/delivery/transport/connection.py" in frames[0]
    assert len([line for line in lines if "suspended, awaiting the answer; 3 of its" in line]) == 1
    assert list(tmp_path.iterdir()) == []
    assert processes_in(tmp_path) == []


def test_all_frames_are_shown_with_verbose(tmp_path: Path) -> None:
    said = subprocess.run(
        [*_DEMO, "--verbose"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert said.returncode == 0, said.stdout + said.stderr
    frames = [line for line in said.stdout.splitlines() if "  inspected  at " in line]
    assert "at trio/" in frames[0]
    assert f"its {len(frames)} frames:" in said.stdout
    assert any("taskd/engine/dispatcher.py" in frame for frame in frames)


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
    assert re.search(r"inspected +at taskd/delivery/transport/connection\.py:\d+ in ", text)
    for story in _STORIES:
        assert story in text
    # What was drawn of each has made room for the table.
    shown = text.rpartition("\x1b[J")[2]
    assert [line for line in shown.splitlines() if line.startswith("looked into live")]
    assert "of 7 tasks have ended" not in shown


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

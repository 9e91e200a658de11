"""``taskd demo`` when it does not go well: it says why, and cleans up all the same."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import Result

from taskd.cli.demo import daemon, stories
from tests.acceptance.test_demo_runs import processes_in
from tests.support.commands import invoke
from tests.support.daemon import wait_until

_DEMO = [sys.executable, "-m", "taskd", "demo"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the demo makes its folder; nothing is left in it, and no process."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    yield tmp_path
    assert list(tmp_path.iterdir()) == []
    assert processes_in(tmp_path) == []


def play() -> Result:
    """The demo in this process, so that a promise can be broken."""
    result = invoke("demo")
    assert result.exit_code == 1, result.output
    assert "Traceback" not in result.stderr
    return result


def rows_of(result: Result) -> dict[str, str]:
    """What the table says of each story: yes or NO."""
    lines = result.stdout.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("---"))
    answers = [line.split("  ") for line in lines[start + 1 :]]
    return {parts[0]: next(p.strip() for p in parts[1:] if p.strip()) for parts in answers}


def test_a_story_that_goes_otherwise_is_named_and_the_others_go_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stories, "_SLACK_MS", -1)  # no delivery is that punctual
    result = play()
    assert rows_of(result) == {
        "delivered at once": "yes",
        "delivered in 2 s, never early": "NO",
        "fails twice, then succeeds": "NO",
        "hits its timeout": "yes",
        "cancelled while waiting": "yes",
        "cancelled in flight": "yes",
        "looked into live": "yes",
    }
    assert result.stderr.splitlines()[-1] == (
        "Error: not as promised: delivered in 2 s, never early, fails twice, then succeeds"
    )
    assert "the daemon's last log lines:" in result.stderr


def test_callbacks_with_a_wrong_signature_break_what_needs_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "taskd.cli.demo.receiver.signature_problem", lambda *_: "the signature is wrong"
    )
    result = play()
    kept = [story for story, answer in rows_of(result).items() if answer == "yes"]
    assert kept == ["cancelled while waiting"]
    assert "the receiver refused the callback: the signature is wrong" in result.stdout


def test_a_daemon_that_does_not_start_is_told_with_its_log(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = "import sys; sys.stderr.write('it can not\\n'); sys.exit(1)"
    monkeypatch.setattr(daemon, "_program", lambda: [sys.executable, "-c", program])
    result = play()
    assert "  it can not" in result.stderr.splitlines()
    assert result.stderr.splitlines()[-1] == "Error: the daemon ended instead of listening"


def test_a_daemon_that_stays_silent_is_given_up(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = "import time; time.sleep(60)"
    monkeypatch.setattr(daemon, "_program", lambda: [sys.executable, "-c", program])
    monkeypatch.setattr(daemon, "START_S", 0.3)
    assert "did not listen within 0.3 s" in play().stderr


def test_a_daemon_that_says_something_else_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = "print('hello')"
    monkeypatch.setattr(daemon, "_program", lambda: [sys.executable, "-c", program])
    assert "the daemon said 'hello'" in play().stderr


def test_a_daemon_that_is_killed_meanwhile_breaks_the_stories_at_once(folder: Path) -> None:
    began = time.monotonic()
    demo = started()
    read_until(demo, b"  retried    submitted")
    for pid in pids_in(folder):
        os.kill(pid, signal.SIGKILL)
    told, _ = demo.communicate(timeout=30)
    assert demo.returncode == 1
    assert b"no daemon can be reached" in told or b"no answer from" in told
    assert told.splitlines()[-1].startswith(b"Error: not as promised: ")
    assert b"Traceback" not in told
    assert time.monotonic() - began < 28


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("moment", ["receiver:", "daemon:", "submitted"])
def test_a_signal_ends_it_at_any_moment(folder: Path, number: signal.Signals, moment: str) -> None:
    demo = started()
    read_until(demo, moment.encode())
    demo.send_signal(number)
    told, _ = demo.communicate(timeout=30)
    assert demo.returncode == 1
    assert b"Traceback" not in told


def test_a_second_signal_ends_it_too(folder: Path) -> None:
    demo = started()
    read_until(demo, b"submitted")
    wait_until(lambda: bool(pids_in(folder)), what="the daemon")
    for _ in range(2):
        demo.send_signal(signal.SIGINT)
    demo.communicate(timeout=30)
    assert demo.returncode != 0


def test_a_reader_that_leaves_ends_it(folder: Path) -> None:
    """As ``taskd demo | head -1``."""
    demo = started()
    read_until(demo, b"\n")
    assert demo.stdout is not None
    demo.stdout.close()
    assert demo.wait(40) != 0


def started() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        _DEMO, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0
    )


def read_until(demo: subprocess.Popen[bytes], words: bytes) -> None:
    assert demo.stdout is not None
    deadline = time.monotonic() + 25
    text = b""
    while words not in text:
        ready, _, _ = select.select([demo.stdout], [], [], deadline - time.monotonic())
        assert ready, text
        chunk = os.read(demo.stdout.fileno(), 4096)
        assert chunk, text
        text += chunk


def pids_in(folder: Path) -> list[int]:
    """The daemons that were started with a config of this folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"serve" in words and any(word.startswith(bytes(folder)) for word in words):
            found.append(int(path.parent.name))
    return found

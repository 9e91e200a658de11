"""``tools/scripts/venv.sh``: it shows that an installation goes on, and how it has ended.

Python, and with it pip, is a stand-in that does as it is told by files: an installation
takes as long as the test wants.
"""

from __future__ import annotations

import os
import pty
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.test_command_line import read_all, read_until
from tests.support.daemon import wait_until

_SCRIPT = Path(__file__).parents[2] / "tools" / "scripts" / "venv.sh"

_PYTHON = """#!/bin/sh
case "$*" in
*"sys.version_info[:2]"*) echo 3.11 ;;
*"sys.version_info <"*) ;;
*ensurepip*) ;;
"-m venv "*)
    mkdir -p "$3/bin"
    touch "$3/pyvenv.cfg"
    cp "$0" "$3/bin/python"
    ;;
*" install "*)
    echo "Collecting first==1.0 (from -r lock.txt (line 1))"
    echo $$ >"$FOLDER/pip"
    while [ -e "$FOLDER/slow" ]; do sleep 0.05; done
    if [ -e "$FOLDER/failing" ]; then
        echo "ERROR: the hash of second does not match" >&2
        exit 1
    fi
    ;;
esac
"""

_CLOCK = """#!/bin/sh
count=$(cat "$FOLDER/clock" 2>/dev/null || echo 0)
echo $((count + 4)) >"$FOLDER/clock"
echo "$count"
"""
"""Each look at it finds it four seconds later."""


class Slot:
    """A project's folder, with a lock of two packages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "pyproject.toml").touch()
        (folder / "lock.txt").write_text("first==1.0 \\\n    --hash=x\nsecond==2.0\n")
        (folder / "tmp").mkdir()
        self.program("python", _PYTHON)

    def program(self, name: str, text: str) -> Path:
        path = self.folder / "programs" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(stat.S_IRWXU)
        return path

    def start(self, *, stderr: int) -> subprocess.Popen[bytes]:
        programs = self.folder / "programs"
        return subprocess.Popen(
            ["sh", str(_SCRIPT), "env", "lock.txt"],
            cwd=self.folder,
            env={
                **os.environ,
                "PATH": f"{programs}:{os.environ['PATH']}",
                "PYTHON": str(programs / "python"),
                "TMPDIR": str(self.folder / "tmp"),
                "FOLDER": str(self.folder),
            },
            stdin=subprocess.DEVNULL,
            stderr=stderr,
        )

    def run(self) -> tuple[int, str]:
        process = self.start(stderr=subprocess.PIPE)
        _, told = process.communicate(timeout=60)
        return process.returncode, told.decode()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Slot]:
    place = Slot(tmp_path)
    yield place
    assert list((tmp_path / "tmp").iterdir()) == []


def test_each_step_is_told_and_how_long_it_took(place: Slot) -> None:
    code, told = place.run()
    assert code == 0
    lines = [line.partition(" in ")[0] for line in told.splitlines()]
    assert lines == [
        "taskd: making env with Python 3.11",
        "taskd: making env with Python 3.11: done",
        "taskd: installing the locked packages into env",
        "taskd: installing the locked packages into env: done",
    ]
    assert place.run() == (0, "")  # there is nothing to do


def test_a_long_installation_says_that_it_goes_on_where_nothing_can_be_drawn(
    place: Slot,
) -> None:
    place.program("date", _CLOCK)
    (place.folder / "slow").touch()
    process = place.start(stderr=subprocess.PIPE)
    assert process.stderr is not None
    lines: list[str] = []
    while not lines or "1 of 2 packages" not in lines[-1]:
        lines.append(process.stderr.readline().decode())
    assert lines[-1].startswith("taskd: still at it: 1 of 2 packages, ")
    (place.folder / "slow").unlink()
    told = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 0
    assert "\x1b" not in told
    assert "done in " in told.splitlines()[-1]


def test_on_a_terminal_one_line_shows_how_far_it_has_come(place: Slot) -> None:
    (place.folder / "slow").touch()
    parent, child = pty.openpty()
    process = place.start(stderr=child)
    os.close(child)
    text = read_until(parent, "installing the locked packages into env: 1 of 2 packages, ")
    (place.folder / "slow").unlink()
    text += read_all(parent)
    assert process.wait(60) == 0
    # Drawn over one another: of each step the last line alone stays.
    stays = [line.rpartition("\x1b[K")[2] for line in text.rstrip().split("\n")]
    assert [line.partition(" in ")[0] for line in stays] == [
        "taskd: making env with Python 3.11: done",
        "taskd: installing the locked packages into env: done",
    ]


def test_what_a_failed_installation_said_is_told(place: Slot) -> None:
    (place.folder / "failing").touch()
    code, told = place.run()
    assert code == 1
    assert "ERROR: the hash of second does not match" in told
    assert told.splitlines()[-1] == "taskd: installing the locked packages into env: failed"
    (place.folder / "failing").unlink()
    assert place.run()[0] == 0  # and it is tried again


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_installation_too(place: Slot, number: signal.Signals) -> None:
    (place.folder / "slow").touch()
    process = place.start(stderr=subprocess.DEVNULL)
    pid = place.folder / "pip"
    wait_until(lambda: pid.exists() and pid.read_text().strip(), what="pip")
    process.send_signal(number)
    assert process.wait(30) == 130
    installer = Path("/proc") / pid.read_text().strip()
    wait_until(lambda: not installer.exists(), what="pip's end")

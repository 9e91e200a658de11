"""The README's and the tutorial's commands, run as they stand there.

Their shell blocks become one script, in a temporary folder that looks like a
checkout, with a real daemon and a real receiver. Only the two fixed ports are
replaced, so that tests can run side by side.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.support.examples import program
from tools.servers.reserved_port import ReservedPort

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
TUTORIAL = ROOT / "docs" / "tutorial.md"

_DAEMON_PORT = "9502"
_RECEIVER_PORT = "9000"
_DEADLINE_S = 90
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks in a language."""
    return [block for name, block in _FENCE.findall(text) if name == language]


def section(page: Path, title: str) -> str:
    """A page's section, the sections within it included."""
    found = re.search(rf"^## {title}$(.*?)(?=^## |\Z)", page.read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None, f"{page.name} has no section {title!r}"
    return found[1]


@contextmanager
def checkout(folder: Path) -> Iterator[tuple[str, str]]:
    """Make of a folder what a checkout is after `make demo`; gives two free ports."""
    if not (Path(sys.prefix) / "bin" / "activate").exists():
        pytest.skip("not run from a virtual environment: make test")
    (folder / ".venv").symlink_to(sys.prefix)
    (folder / "examples").symlink_to(ROOT / "examples")
    with ReservedPort() as daemon_port, ReservedPort() as receiver_port:
        yield str(daemon_port), str(receiver_port)


def run_as_written(folder: Path, commands: list[str]) -> str:
    """Run blocks of shell as one script, and return all that was printed.

    Whatever the script leaves running is ended.
    """
    program("curl")
    program("openssl")
    output = folder / "output"
    with checkout(folder) as (daemon_port, receiver_port):
        script = "\n".join(["set -e -o pipefail", *commands])
        script = script.replace(_DAEMON_PORT, daemon_port).replace(_RECEIVER_PORT, receiver_port)
        with output.open("wb") as sink:
            process = subprocess.Popen(
                ["bash", "-c", script],
                cwd=folder,
                env={
                    "PATH": os.environ["PATH"],
                    "HOME": str(folder),
                    "LANG": "C.UTF-8",
                    "TASKD_SERVER_PORT": daemon_port,
                    "TASKD_URL": f"http://127.0.0.1:{daemon_port}",
                },
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code = process.wait(_DEADLINE_S)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                _end_group(process)
    printed = output.read_text()
    log = "".join(path.read_text() for path in folder.rglob("taskd.log"))
    assert code == 0, f"exit code {code}\n{printed}\n{log}"
    return printed


def _end_group(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):  # the script has ended all that it began
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_the_commands_of_the_readme_do_what_it_says(tmp_path: Path) -> None:
    printed = run_as_written(
        tmp_path, blocks(section(README, "Five minutes to your first task"), "sh")
    )
    assert "task 1 succeeded" in printed
    assert "task 2 cancelled, never_sent" in printed
    assert re.search(r'^task 1 attempt 1: \{"order": 1001\}$', printed, re.MULTILINE)
    answers = [line for line in printed.splitlines() if line.startswith('{"code":')]
    assert len(answers) >= 4
    assert '"delivery":"never_sent"' in answers[-1].replace(" ", "")
    assert '"coroutine_id":4' in answers[-1].replace(" ", "")
    assert "1002" not in "".join(line for line in printed.splitlines() if "attempt" in line)
    log = (tmp_path / "taskd.log").read_text()
    assert "stopped" in log.splitlines()[-1]


def test_every_command_of_the_readme_is_run_by_some_test() -> None:
    run_here = blocks(section(README, "Five minutes to your first task"), "sh")
    # The demo has a test of its own, and `make test` is what runs this one.
    run_elsewhere = ["make demo\n", "make test\n"]
    assert sorted(blocks(README.read_text(), "sh")) == sorted([*run_here, *run_elsewhere])


def test_the_commands_of_the_tutorial_print_what_it_says(tmp_path: Path) -> None:
    text = TUTORIAL.read_text()
    # Whoever has come from the README still has its application's keys in the shell.
    left = "export TASKD_APP_KEY=of-the-readme TASKD_SECRET_KEY=of-the-readme-of-the-readme"
    printed = run_as_written(tmp_path, [left, *blocks(text, "sh")])
    lines = printed.splitlines()
    for block in blocks(text, "text"):
        for line in block.splitlines():
            assert line in lines, f"not printed: {line!r}\n{printed}"
    assert "exit code 1" in lines
    assert re.search(
        r"^  state +running, awaiting_response, on node-[0-9a-f]{8}$", printed, re.MULTILINE
    )
    assert re.search(r"^    taskd/\S+:\d+ \w+$", printed, re.MULTILINE)
    assert "task 5 succeeded" in lines
    assert len([line for line in lines if "task 5 attempt" in line]) == 1

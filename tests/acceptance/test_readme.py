"""The README's and the tutorial's commands and programs, run as they stand there.

Their shell blocks become one script, in a temporary folder that looks like a
checkout, with a real daemon and a real receiver. Only the two fixed ports are
replaced, so that tests can run side by side.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from taskd.client import Client
from tests.support.daemon import Daemon, wait_until
from tests.support.examples import post, program, signed
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


def test_the_readme_is_short_and_wrapped() -> None:
    lines = README.read_text().splitlines()
    assert len(lines) <= 120
    assert [line for line in lines if len(line) > 120] == []


def test_the_commands_of_the_readme_do_what_it_says(tmp_path: Path) -> None:
    five_minutes = blocks(section(README, "Five minutes to your first task"), "sh")
    # What the text has the reader do at the end.
    assert "`kill %1`" in README.read_text()
    printed = run_as_written(tmp_path, [*five_minutes, "kill %1", "wait"])
    assert "task 1 succeeded" in printed
    assert "task 2 cancelled, never_sent" in printed
    assert re.search(r'^task 1 attempt 1: \{"order": 1001\}$', printed, re.MULTILINE)
    assert "1002" not in "".join(line for line in printed.splitlines() if "attempt" in line)
    log = (tmp_path / "taskd.log").read_text()
    assert "stopped" in log.splitlines()[-1]


def test_every_command_of_the_readme_is_run_by_some_test() -> None:
    run_here = blocks(section(README, "Five minutes to your first task"), "sh")
    # The demo has a test of its own, and `make test` is what runs this one.
    run_elsewhere = ["make demo\n", "make test\n"]
    assert sorted(blocks(README.read_text(), "sh")) == sorted([*run_here, *run_elsewhere])


def programs(language: str) -> dict[str, str]:
    """The README's programs in a language, by the file names that they give themselves."""
    found = {}
    for text in blocks(README.read_text(), language):
        name = re.search(r"(?://|#) (\w+\.\w+)$", text.splitlines()[0])
        assert name is not None, f"a program without a name: {text}"
        found[name[1]] = text
    return found


def test_every_program_of_the_readme_is_run_by_some_test() -> None:
    assert sorted(programs("php")) == ["receive.php", "submit.php"]
    assert sorted(programs("python")) == ["receive.py", "submit.py"]
    fences = Counter(language for language, _ in _FENCE.findall(README.read_text()))
    assert fences.keys() == {"sh", "php", "python"}


@contextmanager
def at_work(command: list[str], folder: Path, environ: dict[str, str], port: int) -> Iterator[Path]:
    """A receiver that listens; gives the file with what it prints."""
    output = folder / "output"
    with output.open("wb") as sink:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_until(lambda: process.poll() is not None or listens(port))
        assert process.poll() is None, output.read_text()
        yield output
    finally:
        _end_group(process)


def listens(port: int) -> bool:
    """Whether a connection to it is accepted."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize(
    ("language", "order", "receive", "submit"),
    [
        ("php", 1, "php -S 127.0.0.1:9000 receive.php &", "php submit.php"),
        ("python", 2, "python3 receive.py &", "python3 submit.py"),
    ],
)
def test_the_programs_of_the_readme_submit_and_receive(
    tmp_path: Path, language: str, order: int, receive: str, submit: str
) -> None:
    for command in (receive, submit):
        program(command.split()[0])
        assert f"`{command}`" in README.read_text()
    folder = tmp_path / "programs"
    folder.mkdir()
    with ReservedPort() as port, Daemon(tmp_path) as daemon:
        for name, text in programs(language).items():
            (folder / name).write_text(text.replace(_RECEIVER_PORT, str(port)))
        with daemon.admin() as admin:
            keys = admin.create_app(name="shop", link_url=f"http://127.0.0.1:{port}/")
        app_key, secret_key = str(keys["appKey"]), str(keys["secretKey"])
        environ = {
            "PATH": f"{Path(sys.prefix) / 'bin'}:{os.environ['PATH']}",
            "LANG": "C.UTF-8",
            "TASKD_URL": daemon.url,
            "TASKD_APP_KEY": app_key,
            "TASKD_SECRET_KEY": secret_key,
        }
        listen = receive.removesuffix(" &").replace(_RECEIVER_PORT, str(port)).split()
        with at_work(listen, folder, environ, port) as output:
            submitted = subprocess.run(
                submit.split(),
                cwd=folder,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=_DEADLINE_S,
                check=False,
            )
            assert submitted.returncode == 0, submitted.stdout
            with Client(daemon.url, app_key, secret_key) as client:
                # Short as it is, it takes nothing that taskd has not signed.
                good = signed(app_key, secret_key, b'{"data":{"order":3}}')
                assert (
                    post(port, good | {"signature": "d3Jvbmc="}, b'{"data":{"order":3}}')[0] == 401
                )
                assert post(port, good, b'{"data":{"order":4}}')[0] == 401
                wait_until(
                    lambda: client.detail(task_no=f"order-{order}")["task"]["state"] == "succeeded"
                )
                (attempt,) = client.detail(task_no=f"order-{order}")["task"]["attempts"]
            printed = output.read_text()
        assert len(re.findall(r"closing order \d+", printed)) == 1, printed
        assert f"closing order {order}\n" in printed
        assert attempt["outcome"] == "succeeded"


def test_the_commands_of_the_tutorial_print_what_it_says(tmp_path: Path) -> None:
    text = TUTORIAL.read_text()
    # Whoever has come from the README still has its application's daemon and keys in the shell.
    left = (
        "export TASKD_URL=http://127.0.0.1:9"
        " TASKD_APP_KEY=of-the-readme TASKD_SECRET_KEY=of-the-readme-of-the-readme"
    )
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

"""The commands as a user types them, against the real daemon."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from taskd.cli import cli
from tests.support.daemon import ADMIN_KEY, Daemon, wait_until
from tests.support.receiver import Answer, Receiver

_TASK = ("task", "submit", "--name", "t", "--timeout", "5000")


@dataclass(frozen=True)
class Said:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


@dataclass
class Shell:
    """A user's shell: a home folder of its own, and the daemon's URL."""

    home: Path
    environ: dict[str, str]

    def run(self, *arguments: str, stdin: str = "", **extra: str) -> Said:
        done = subprocess.run(
            [sys.executable, "-m", "taskd", *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            cwd=self.home,
            env={**self.environ, **extra},
            check=False,
        )
        return Said(done.returncode, done.stdout, done.stderr)

    def refused(self, code: int, *arguments: str, **extra: str) -> str:
        """The one line that a command is refused with."""
        said = self.run(*arguments, **extra)
        assert said.code == code, said
        assert said.out == ""
        assert "Traceback" not in said.err
        (line,) = [line for line in said.err.splitlines() if line.startswith("Error: ")]
        return line

    def submit(self, task_no: str, *options: str) -> Said:
        return self.run(*_TASK, "--task-no", task_no, "--content", '{"a": 1}', *options)


def shell_in(home: Path, **environ: str) -> Shell:
    kept = {name: text for name, text in os.environ.items() if not name.startswith("TASKD_")}
    return Shell(home, {**kept, "HOME": str(home), "XDG_CONFIG_HOME": str(home / "c"), **environ})


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    def answer(delivery: object) -> Answer:
        hangs = getattr(delivery, "task_no", "").startswith("hangs")
        return Answer(after_s=1.0) if hangs else Answer()

    with Receiver(answer) as started:
        yield started


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    folder = tmp_path / "daemon"
    folder.mkdir()
    with Daemon(folder) as started:
        yield started


@pytest.fixture
def shell(tmp_path: Path, daemon: Daemon, receiver: Receiver) -> Shell:
    """A user who has created an application, and is its administrator no more."""
    home = tmp_path / "home"
    home.mkdir()
    shell = shell_in(home, TASKD_URL=daemon.url)
    admin = {"TASKD_ADMIN_KEY": ADMIN_KEY, "TASKD_ADMIN_SECRET": daemon.admin_secret}
    said = shell.run("app", "create", "--name", "shop", "--link-url", receiver.url, **admin)
    assert said.code == 0, said
    return shell


def test_an_application_is_created_and_kept_for_this_user_only(shell: Shell) -> None:
    (path,) = shell.home.rglob("credentials.toml")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "secret_key" in path.read_text()


def test_a_task_is_submitted_followed_and_shown(shell: Shell, receiver: Receiver) -> None:
    said = shell.submit("order-1", "--wait")
    assert said.code == 0, said
    assert "succeeded" in said.out
    assert [delivery.task_no for delivery in receiver.ledger()] == ["order-1"]
    said = shell.run("task", "detail", "1")
    assert said.code == 0
    assert "succeeded" in said.out


def test_bash_completes_the_name_of_an_application(shell: Shell) -> None:
    asked = {
        "_TASKD_COMPLETE": "bash_complete",
        "COMP_WORDS": "taskd task detail --app sh",
        "COMP_CWORD": "4",
    }
    taskd = Path(sys.executable).with_name("taskd")
    done = subprocess.run(
        [str(taskd)],
        env=shell.environ | asked,
        cwd=shell.home,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "shop" in done.stdout
    assert done.stderr == ""


def test_a_task_is_found_and_cancelled_by_its_task_no(shell: Shell, receiver: Receiver) -> None:
    later = ("--runtime", "2099-01-01 00:00:00")
    for task_no in ("order-1", "42"):
        assert shell.submit(task_no, *later).code == 0
    assert "order-1" in shell.run("task", "detail", "order-1").out
    assert "no task 42 of this application" in shell.refused(1, "task", "detail", "42")
    assert "order-1 already: task 1, scheduled" in shell.refused(
        1, *_TASK, "--task-no", "order-1", "--content", "1"
    )
    assert shell.run("task", "cancel", "order-1").out.startswith("task 1 cancelled, never_sent")
    assert "task order-1 is unknown" in shell.refused(1, "task", "cancel", "order-1")
    assert shell.run("task", "cancel", "--task-no", "42").out.startswith("task 2 cancelled")


def test_a_file_that_is_submitted_again_fails_where_its_tasks_have(
    shell: Shell, receiver: Receiver
) -> None:
    receiver.answer = lambda delivery: (
        Answer(status=410, body=b"gone") if delivery.task_no == "order-1" else Answer()
    )
    lines = [
        json.dumps({"taskNo": f"order-{number}", "name": "t", "content": 1, "timeout": 5000})
        for number in range(3)
    ]
    (shell.home / "tasks.ndjson").write_text("\n".join(lines))
    assert shell.run("task", "submit", "--from", "tasks.ndjson").code == 0
    for number in range(3):
        assert shell.run("task", "detail", f"order-{number}", "--watch").code == 0
    said = shell.run("task", "submit", "--from", "tasks.ndjson")
    assert said.code == 1
    assert "3 were there already (1 of them failed), 0 refused" in said.out
    assert said.err == "line 2: is there already, and has failed: task 2\n"


def test_waiting_for_a_task_that_fails_ends_with_1(shell: Shell, receiver: Receiver) -> None:
    receiver.answer = lambda _: Answer(status=410, body=b"gone")
    said = shell.submit("order-1", "--wait")
    assert said.code == 1
    assert "failed" in said.out + said.err


def test_an_applications_tasks_may_succeed_by_the_status_alone(
    shell: Shell, daemon: Daemon, receiver: Receiver
) -> None:
    receiver.answer = lambda _: Answer(status=202, body=b'{"id":1}')
    admin = {"TASKD_ADMIN_KEY": ADMIN_KEY, "TASKD_ADMIN_SECRET": daemon.admin_secret}
    args = ("app", "create", "--name", "by-status", "--link-url", receiver.url)
    assert shell.run(*args, "--success", "any", **admin).code == 2
    assert shell.run(*args, "--success", "status", **admin).code == 0
    assert shell.submit("order-1", "--wait", "--app", "by-status").code == 0
    assert shell.submit("order-2", "--wait", "--retry-total", "0", "--app", "shop").code == 1
    said = shell.run("task", "detail", "2", "--app", "shop", "--json")
    assert "not 'success'" in json.loads(said.out)["task"]["attempts"][0]["error"]


def test_a_task_may_have_a_retry_rule_of_its_own(shell: Shell, receiver: Receiver) -> None:
    receiver.answer = lambda _: Answer(status=500, body=b"no")
    said = shell.submit("order-1", "--retry-total", "1", "--step", "0", "--wait")
    assert said.code == 1
    assert len(receiver.ledger()) == 2


def test_json_prints_the_data_and_nothing_else(shell: Shell) -> None:
    made = json.loads(shell.submit("order-1", "--json").out)
    assert made.pop("dueAt").endswith("Z")
    assert made == {"taskId": 1, "coroutine_id": 1}
    later = json.loads(shell.submit("order-2", "--json", "--runtime", "2099-01-01 00:00:00").out)
    said = json.loads(shell.run("task", "cancel", "--json", str(later["coroutine_id"])).out)
    assert said == {"coroutine_id": 2, "state": "cancelled", "delivery": "never_sent"}
    detail = json.loads(shell.run("task", "detail", "--json", "2").out)
    assert detail["task"]["state"] == "cancelled"


def test_content_comes_as_text_from_a_file_or_from_standard_input(
    shell: Shell, receiver: Receiver
) -> None:
    (shell.home / "content.json").write_text('{"from": "file"}')
    for task_no, content, stdin in (
        ("a", '{"from": "text"}', ""),
        ("b", "@content.json", ""),
        ("c", "-", '{"from": "stdin"}'),
    ):
        said = shell.run(*_TASK, "--task-no", task_no, "--content", content, stdin=stdin)
        assert said.code == 0, said
    ledger = receiver.wait_for(lambda ledger: len(ledger) == 3)
    bodies = {delivery.task_no: delivery.body for delivery in ledger}
    assert bodies == {
        "a": b'{"data":{"from": "text"}}',
        "b": b'{"data":{"from": "file"}}',
        "c": b'{"data":{"from": "stdin"}}',
    }


def test_a_detail_is_watched_to_the_end_on_a_terminal(shell: Shell, receiver: Receiver) -> None:
    seen_running = threading.Event()
    receiver.answer = lambda _: Answer(hold=seen_running)
    shell.submit("order-1")
    parent, child = pty.openpty()
    watching = subprocess.Popen(
        [sys.executable, "-m", "taskd", "task", "detail", "1", "--watch"],
        stdin=child,
        stdout=child,
        stderr=child,
        cwd=shell.home,
        env={**shell.environ, "TERM": "xterm"},
    )
    os.close(child)
    text = read_until(parent, "running")
    seen_running.set()
    text += read_all(parent)
    assert watching.wait(20) == 0
    assert "\x1b[" in text
    assert "succeeded" in text


def test_refusals_are_one_sentence_and_an_exit_code(shell: Shell, daemon: Daemon) -> None:
    shell.submit("order-1", "--wait")
    assert "请勿重复提交" in shell.refused(1, *_TASK, "--task-no", "order-1", "--content", "1")
    assert "unknown" in shell.refused(1, "task", "cancel", "1")
    assert "no task 999" in shell.refused(1, "task", "detail", "999")
    assert "--content" in shell.refused(2, *_TASK, "--task-no", "x", "--content", "{")
    assert "timeout" in shell.refused(
        1, "task", "submit", "--name", "t", "--task-no", "x", "--content", "1", "--timeout", "0"
    )
    assert "007" in shell.refused(2, "task", "cancel", "007")
    wrong = {"TASKD_APP_KEY": "nobody", "TASKD_SECRET_KEY": "x" * 32}
    assert "app_key or signature" in shell.refused(1, "task", "detail", "1", **wrong)
    daemon.kill()
    assert daemon.url in shell.refused(3, "task", "detail", "1")


def test_a_clock_that_is_off_is_told_by_how_much(shell: Shell, tmp_path: Path) -> None:
    """The user's clock is ten minutes and a half behind the daemon's."""
    (tmp_path / "sitecustomize.py").write_text(
        "import taskd.clock\n"
        "true = taskd.clock.SystemClock.now_ms\n"
        "taskd.clock.SystemClock.now_ms = lambda self: true(self) - 630_000\n"
    )
    line = shell.refused(1, "task", "detail", "1", PYTHONPATH=str(tmp_path))
    assert "clock" in line
    assert "10 min" in line


def test_a_traceback_comes_with_debug_only(shell: Shell, daemon: Daemon) -> None:
    daemon.kill()
    assert "Traceback" not in shell.run("task", "detail", "1").err
    assert "Traceback" in shell.run("task", "detail", "1", "--debug").err


def test_init_writes_once_and_for_this_user_only(tmp_path: Path) -> None:
    shell = shell_in(tmp_path)
    assert shell.run("init").code == 0
    path = tmp_path / "taskd.toml"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = path.read_text()
    assert re.search(r'^admin_secret = "\S{32,}"$', before, re.MULTILINE)
    assert "nothing was changed" in shell.refused(1, "init")
    assert path.read_text() == before
    said = shell.run("check-config")
    assert said.code == 0
    assert before.partition('admin_secret = "')[2][:16] not in said.out


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ("[server]\nport = 70000\n", "[server] port"),
        ("[server]\nprot = 1\n", "port"),
        ("[sever]\nport = 1\n", "server"),
        ("[server]\nport = true\n", "[server] port"),
        ('[server]\ntimezone = "Mars/Base"\n', "[server] timezone"),
        ('[server]\ntls_cert = "cert.pem"\n', "tls_key"),
        ('[auth]\nadmin_secret = "short"\n', "admin_secret"),
        ('[store]\nurl = "mysql://u:hunter22@h/db"\n', "[store] url"),
        ('[queue]\nurl = "nsq://h:4150"\n', "[queue] url"),
        ("[worker]\nmax_running = 5\nmax_per_origin = 6\n", "max_per_origin"),
        ('[delivery]\ndenied_networks = ["10.0.0.0/33"]\n', "denied_networks"),
        ("port = = 1\n", "taskd.toml"),
    ],
)
def test_a_wrong_config_is_refused_in_one_sentence(tmp_path: Path, config: str, told: str) -> None:
    (tmp_path / "taskd.toml").write_text(config)
    (tmp_path / "taskd.toml").chmod(0o600)
    shell = shell_in(tmp_path)
    for command in ("serve", "check-config"):
        line = shell.refused(1, command)
        assert told in line
        assert "hunter22" not in line
    assert not (tmp_path / "taskd.db").exists()


def test_a_port_that_is_taken_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        shell = shell_in(tmp_path, TASKD_SERVER_PORT=str(port))
        said = shell.run("serve")
    assert said.code == 1
    assert f"port {port}" in said.err
    assert "Traceback" not in said.err


def commands(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            yield from commands(child, (*path, name))


@pytest.mark.parametrize("path", list(commands(cli)), ids=" ".join)
def test_every_help_shows_an_example_and_no_option_takes_a_secret(
    tmp_path: Path, path: tuple[str, ...]
) -> None:
    said = shell_in(tmp_path).run(*path, "--help")
    assert said.code == 0
    if path and path not in {("app",), ("task",)}:
        assert "Example:" in said.out
        assert "--json" in said.out
    for option in re.findall(r"--[a-z-]+", said.out):
        assert "secret" not in option or option.endswith("-file")


def test_the_command_line_starts_without_the_web_framework(tmp_path: Path) -> None:
    program = "import sys, taskd.cli; print('quart' in sys.modules, 'hypercorn' in sys.modules)"
    said = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert said.stdout == "False False\n"


def test_completion_is_there_for_bash(tmp_path: Path) -> None:
    said = shell_in(tmp_path, _TASKD_COMPLETE="bash_source").run()
    assert said.code == 0
    assert "complete" in said.out


def test_a_daemon_that_is_told_to_stop_prints_nothing_more(daemon: Daemon) -> None:
    wait_until(lambda: '"started"' in daemon.log())
    assert daemon.stop() == 0


def read_until(fd: int, sign: str) -> str:
    """What a terminal shows up to a word, within 30 s."""
    text = b""
    deadline = time.monotonic() + 30
    while sign.encode() not in text:
        assert time.monotonic() < deadline, text
        if select.select([fd], [], [], 0.2)[0]:
            text += os.read(fd, 65536)
    return text.decode(errors="replace")


@pytest.mark.parametrize("words", [["--version"], ["--help"], ["task", "detail", "--help"]])
def test_what_can_not_be_printed_is_told_in_one_line(words: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "taskd", *words],
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, b"Error: No space left on device\n")


def read_all(fd: int) -> str:
    """What a terminal shows until its program ends, for 30 s at most."""
    text = b""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        ready, _, _ = select.select([fd], [], [], 0.2)
        if not ready:
            continue
        try:
            data = os.read(fd, 65536)
        except OSError:  # the other end of a terminal is closed
            break
        if not data:
            break
        text += data
    os.close(fd)
    return text.decode(errors="replace")

"""``taskd task submit --from`` in this process, against a client that a test scripts."""

from __future__ import annotations

import errno
import io
import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from taskd.cli.bulk import command
from taskd.cli.bulk.lines import Batch, Line
from taskd.cli.bulk.progress_bar import Bar, bar_line
from taskd.cli.bulk.sender import Answered, Failed, Sender
from taskd.client import Client
from taskd.errors import DaemonUnreachable, RequestRefused
from tests.support.commands import invoke

Results = list[dict[str, Any]]
Script = Callable[[list[dict[str, Any]]], Results]

_LOST = DaemonUnreachable("no answer from http://h: it took too long")


class Daemon:
    """Keeps tasks by their taskNo, as the real one does; ``script`` comes before it."""

    def __init__(self) -> None:
        self.kept: dict[str, int] = {}
        self.failed: set[str] = set()
        """The taskNos of tasks that have failed."""
        self.tells = True
        """Whether it says which task has a taskNo that is taken."""
        self.calls = 0
        self.lock = threading.Lock()
        self.script: Callable[[Results], None] = lambda tasks: None

    def submit(self, tasks: Results) -> Results:
        with self.lock:
            self.calls += 1
            self.script(tasks)
            return [self._one(task) for task in tasks]

    def _one(self, task: dict[str, Any]) -> dict[str, Any]:
        if "bad" in task:
            return {"code": 422, "msg": f"bad: {task['bad']}"}
        if task["taskNo"] in self.kept:
            state = "failed" if task["taskNo"] in self.failed else "succeeded"
            existing = {"taskId": self.kept[task["taskNo"]], "state": state}
            return {"code": 1, "msg": "taken"} | ({"existing": existing} if self.tells else {})
        self.kept[task["taskNo"]] = len(self.kept) + 1
        return {"taskId": len(self.kept), "coroutine_id": len(self.kept)}


class FakeClient(Client):
    """A client of that daemon."""

    def __init__(self, daemon: Daemon) -> None:
        super().__init__("http://h", "key", "secret")
        self.daemon = daemon

    def copy(self) -> FakeClient:
        return FakeClient(self.daemon)

    def create_tasks(
        self, tasks: Sequence[Mapping[str, object] | bytes], *, atomic: bool = False
    ) -> Results:
        return self.daemon.submit([json.loads(task) for task in tasks])  # type: ignore[arg-type] # bytes only


@pytest.fixture
def daemon() -> Daemon:
    return Daemon()


@pytest.fixture
def submit(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Result]:
    """Submits a file of these tasks."""
    monkeypatch.setattr("taskd.cli.tasks.app_client", lambda **_: FakeClient(daemon))
    monkeypatch.setattr(command, "Sender", partial(Sender, patience_s=1.0))

    def run(*tasks: object, options: Sequence[str] = ()) -> Result:
        path = tmp_path / "tasks.ndjson"
        path.write_text("".join(_text(task) + "\n" for task in tasks))
        return invoke("task", "submit", "--from", str(path), *options)

    return run


def _text(task: object) -> str:
    return task if isinstance(task, str) else json.dumps(task)


def tasks(count: int) -> list[dict[str, Any]]:
    return [{"taskNo": f"no-{number}"} for number in range(count)]


def counts(result: Result) -> tuple[int, int, int, bool]:
    data = json.loads(result.stdout)
    return data["submitted"], data["alreadyThere"], data["refused"], data["complete"]


def test_a_file_is_submitted_in_batches_and_counted(
    submit: Callable[..., Result], daemon: Daemon
) -> None:
    result = submit(*tasks(1_001))
    assert result.exit_code == 0, result
    assert daemon.kept.keys() == {task["taskNo"] for task in tasks(1_001)}
    assert daemon.calls == 6
    assert result.stdout.startswith("1,001 tasks submitted, 0 were there already, 0 refused; ")
    assert result.stderr == ""


def test_what_is_there_already_is_no_refusal(submit: Callable[..., Result]) -> None:
    assert submit(*tasks(300)).exit_code == 0
    again = submit(*tasks(500), options=["--json"])
    assert again.exit_code == 0
    assert counts(again) == (200, 300, 0, True)


def test_what_is_there_and_has_failed_is_told_and_fails(
    submit: Callable[..., Result], daemon: Daemon
) -> None:
    assert submit(*tasks(300)).exit_code == 0
    daemon.failed = {"no-6", "no-249"}
    again = submit(*tasks(500))
    assert again.exit_code == 1
    assert again.stdout.startswith(
        "200 tasks submitted, 300 were there already (2 of them failed), 0 refused; "
    )
    assert sorted(again.stderr.splitlines()) == [
        f"line 250: is there already, and has failed: task {daemon.kept['no-249']}",
        f"line 7: is there already, and has failed: task {daemon.kept['no-6']}",
    ]
    told = submit(*tasks(500), options=["--json"])
    assert told.exit_code == 1
    assert json.loads(told.stdout)["alreadyFailed"] == 2
    daemon.failed = set()
    well = submit(*tasks(500), options=["--json"])
    assert (well.exit_code, json.loads(well.stdout)["alreadyFailed"]) == (0, 0)


def test_a_daemon_that_tells_no_states_is_understood(
    submit: Callable[..., Result], daemon: Daemon
) -> None:
    assert submit(*tasks(3)).exit_code == 0
    daemon.failed, daemon.tells = {"no-1"}, False
    assert submit(*tasks(3)).exit_code == 0


def test_refused_lines_are_told_by_number_and_the_rest_goes_on(
    submit: Callable[..., Result], daemon: Daemon
) -> None:
    bad = {"taskNo": "bad", "bad": "a\nb\x1b[2J"}
    result = submit(*tasks(2), "[", "", bad, {"taskNo": "no-0"}, "7", {"taskNo": "last"})
    assert result.exit_code == 1
    assert set(daemon.kept) == {"no-0", "no-1", "last"}
    assert sorted(result.stderr.splitlines()) == [
        "line 3: is not JSON: Expecting value at character 1",
        "line 5: bad: a\\u000ab\\u001b[2J",
        "line 6: has the taskNo of line 1",
        "line 7: is no JSON object",
    ]
    assert "3 tasks submitted, 0 were there already, 4 refused" in result.stdout


@pytest.mark.parametrize("code", [400, 413, 422])
def test_a_batch_that_is_refused_whole_is_halved_down_to_its_cause(
    submit: Callable[..., Result], daemon: Daemon, code: int
) -> None:
    def script(batch: Results) -> None:
        if any(task["taskNo"] == "no-77" for task in batch):
            raise RequestRefused(code, "the whole is refused", [])

    daemon.script = script
    result = submit(*tasks(150), options=["--json"])
    assert result.exit_code == 1
    assert counts(result) == (149, 0, 1, True)
    assert result.stderr == "line 78: the whole is refused\n"


@pytest.mark.parametrize("error", [_LOST, RequestRefused(503, "the daemon is draining", [])])
@pytest.mark.parametrize("arrived", [True, False])
def test_a_batch_without_an_answer_is_sent_again(
    submit: Callable[..., Result],
    daemon: Daemon,
    error: Exception,
    *,
    arrived: bool,
) -> None:
    failures = iter(range(3))

    def script(batch: Results) -> None:
        if next(failures, None) is not None:
            if arrived:
                for task in batch:
                    daemon._one(task)
            raise error

    daemon.script = script
    result = submit(*tasks(150), options=["--json"])
    assert result.exit_code == 0, result
    assert counts(result) == ((0, 150, 0, True) if arrived else (150, 0, 0, True))
    assert len(daemon.kept) == 150
    assert result.stderr == f"{error}; trying again\n"


def test_a_daemon_that_stays_away_ends_it_with_what_is_known(
    submit: Callable[..., Result], daemon: Daemon
) -> None:
    def script(_batch: Results) -> None:
        if len(daemon.kept) >= 400:
            raise _LOST

    daemon.script = script
    result = submit(*tasks(5_000), options=["--json"])
    assert result.exit_code == 3
    submitted, there, refused, complete = counts(result)
    assert (submitted, there, refused, complete) == (len(daemon.kept), 0, 0, False)
    told = result.stderr.splitlines()[-1]
    assert "it took too long" in told
    assert f"{submitted:,} tasks are there, of the rest it is not known" in told
    assert "run the same command again" in told


def test_keys_that_are_refused_end_it_at_once(
    submit: Callable[..., Result], daemon: Daemon
) -> None:
    def script(_batch: Results) -> None:
        raise RequestRefused(401, "app_key or signature: wrong", [])

    daemon.script = script
    result = submit(*tasks(5_000))
    assert result.exit_code == 1
    assert "0 tasks submitted" in result.stdout
    assert "app_key or signature: wrong" in result.stderr
    assert daemon.calls <= command.CONNECTIONS


def test_a_failure_ends_it_although_the_pipe_stays_open_and_quiet(
    submit: Callable[..., Result],
    daemon: Daemon,
    tmp_path: Path,
) -> None:
    def script(_batch: Results) -> None:
        raise RequestRefused(401, "app_key or signature: wrong", [])

    daemon.script = script
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    done = threading.Event()

    def write() -> None:
        with pipe.open("w") as file:
            file.write(_text(tasks(1)[0]) + "\n")
            file.flush()
            done.wait(30)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        began = time.monotonic()
        result = invoke("task", "submit", "--from", str(pipe))
        assert time.monotonic() - began < 20
    finally:
        done.set()
        writer.join()
    assert result.exit_code == 1
    assert "app_key or signature: wrong" in result.stderr


def test_a_file_that_breaks_off_is_reported_as_far_as_it_came(
    submit: Callable[..., Result], daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_stream: object) -> Iterator[bytes]:
        yield "".join(_text(task) + "\n" for task in tasks(250)).encode()
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(command, "chunks", broken)
    result = submit("", options=["--json"])
    assert result.exit_code == 1
    assert "Input/output error" in result.stderr
    told = json.loads(result.stdout)
    assert told["complete"] is False
    assert told["submitted"] == len(daemon.kept)


def test_an_empty_file_is_no_error(submit: Callable[..., Result], daemon: Daemon) -> None:
    result = submit("", "  ", options=["--json"])
    assert result.exit_code == 0
    assert counts(result) == (0, 0, 0, True)
    assert daemon.calls == 0


def test_a_file_that_is_not_there_is_told(submit: Callable[..., Result], tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        result = invoke("task", "submit", "--from", str(path))
        assert result.exit_code == 1
        assert f"--from: {path} can't be read: " in result.stderr


@pytest.mark.parametrize(
    "option",
    [
        ("--task-no", "1"),
        ("--name", ""),
        ("--content", "1"),
        ("--timeout", "0"),
        ("--runtime", "1"),
        ("--step", "0"),
        ("--retry-total", "0"),
        ("--wait",),
    ],
)
def test_what_describes_one_task_does_not_go_with_a_file(
    submit: Callable[..., Result], option: tuple[str, ...]
) -> None:
    result = submit(*tasks(1), options=option)
    assert result.exit_code == 2
    assert f"--from can't be given together with {option[0]}" in result.stderr


def test_without_a_file_a_task_needs_its_options() -> None:
    whole = {"--task-no": "1", "--name": "n", "--content": "1", "--timeout": "5"}
    for missing in whole:
        options = [part for name in whole if name != missing for part in (name, whole[name])]
        result = invoke("task", "submit", *options)
        assert result.exit_code == 2
        assert f"Missing option '{missing}' (or '--from')." in result.stderr


def test_ctrl_c_waits_for_the_answers_that_are_on_their_way(
    submit: Callable[..., Result], daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, interrupted = threading.Event(), threading.Event()

    def script(_batch: Results) -> None:
        entered.set()
        assert interrupted.wait(20)

    def interrupt(self: Sender, batch: Batch | None) -> bool:
        if batch is None or self._batches.full():
            assert entered.wait(20)
            threading.Timer(0.05, interrupted.set).start()
            raise KeyboardInterrupt
        self._batches.put(batch)
        return True

    daemon.script = script
    monkeypatch.setattr(Sender, "offer", interrupt)
    result = submit(*tasks(5_000), options=["--json"])
    assert result.exit_code == 1
    submitted, *_, complete = counts(result)
    assert not complete
    assert 0 < submitted == len(daemon.kept) < 5_000
    assert "interrupted; run the same command again to go on" in result.stderr


def test_a_stopped_sender_tries_no_more() -> None:
    daemon = Daemon()

    def script(_batch: Results) -> None:
        raise _LOST

    daemon.script = script
    sender = Sender([FakeClient(daemon)], patience_s=1000)
    assert sender.offer(Batch([Line(1, b'{"taskNo":"1"}')], size=15))
    deadline = time.monotonic() + 20
    events = list(sender.events())
    while not events:
        assert time.monotonic() < deadline
        events = list(sender.events())
    assert isinstance(events[0], Failed)
    sender.stop()
    assert sender.finish(20)
    assert sender.failure is _LOST
    (answered,) = [event for event in sender.events() if isinstance(event, Answered)]
    assert (answered.size, answered.submitted, answered.there) == (15, 0, 0)


def test_the_bar_tells_rate_remaining_and_refused() -> None:
    marks = deque([(10.0, 100, 10), (12.0, 500, 5_010)])
    assert bar_line(marks, 1_000, 3) == (
        "[############............]  50 %  5,010 tasks  2,500/s  3 refused  about 5,010 left, 2 s"
    )
    assert bar_line(marks, None, 1_234) == "5,010 tasks  2,500/s  1,234 refused"
    assert bar_line(deque([(1.0, 0, 0)]), 1_000, 0) == (
        "[........................]   0 %  0 tasks  0/s  0 refused"
    )
    slow = deque([(0.0, 0, 0), (10.0, 100, 1)])
    assert bar_line(slow, 400_000, 0).endswith("about 3,999 left, 11 h 6 min")
    assert bar_line(slow, 1_000, 0).endswith("about 9 left, 1 min 30 s")


def test_the_bar_is_drawn_on_a_terminal_only_and_goes_away() -> None:
    stream = io.StringIO()
    bar = Bar(stream, live=False, size=10)
    bar.draw(1.0, done=1, tasks=1, refused=0)
    bar.clear()
    assert stream.getvalue() == ""
    bar = Bar(stream, live=True, size=10)
    bar.draw(1.0, done=1, tasks=1, refused=0)
    bar.draw(1.1, done=2, tasks=2, refused=0)
    assert stream.getvalue().count("\r") == 1
    bar.draw(1.3, done=3, tasks=3, refused=0)
    assert stream.getvalue().count("\r") == 2
    bar.clear()
    assert stream.getvalue().endswith("\r\x1b[K")
    bar.draw(1.35, done=3, tasks=3, refused=0)
    assert stream.getvalue().count("\r") == 4

"""``taskd task submit --from`` against the real daemon: refused lines, an interruption,
a daemon that is killed in the middle."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pty
import re
import signal
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from taskd.client import Client
from taskd.errors import DaemonUnreachable
from tests.acceptance.test_command_line import read_all
from tests.support.daemon import Daemon, wait_until

_NOBODY = "http://127.0.0.1:9/cb"
_FROM = (sys.executable, "-m", "taskd", "task", "submit", "--from")


def line(number: int) -> bytes:
    task = {
        "taskNo": f"no-{number}",
        "name": "t",
        "content": {"n": number},
        "timeout": 5000,
        "runtime": "2099-01-01 00:00:00",
    }
    return json.dumps(task).encode() + b"\n"


class Shop:
    """An application, and what a user types for it."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.keys = daemon.create_keys(_NOBODY)

    def environ(self) -> dict[str, str]:
        return {
            **os.environ,
            "TASKD_URL": self.daemon.url,
            "TASKD_APP_KEY": self.keys[0],
            "TASKD_SECRET_KEY": self.keys[1],
            "TERM": "xterm",
        }

    def start(self, source: str, *options: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*_FROM, source, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.environ(),
        )

    def submit(self, source: str, stdin: bytes = b"") -> tuple[int, dict[str, object], str]:
        """Exit code, the report, and what was told beside it."""
        process = self.start(source, "--json")
        out, err = process.communicate(stdin, timeout=60)
        return process.returncode, json.loads(out), err.decode()

    def knows(self, number: int) -> bool:
        with Client(self.daemon.url, *self.keys) as client:
            return client.detail(task_no=f"no-{number}")["state"] is not None

    def kept(self) -> list[str]:
        """The taskNos in the store, one as often as it is there."""
        path = self.daemon.folder / "taskd.db"
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as store:
            return [task_no for (task_no,) in store.execute("SELECT task_no FROM tasks")]


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    with Daemon(tmp_path) as daemon:
        yield Shop(daemon)


def names(count: int) -> list[str]:
    return sorted(f"no-{number}" for number in range(count))


def test_a_stream_with_bad_lines_is_submitted_but_for_those(shop: Shop) -> None:
    stream = [line(number) for number in range(1_000)]
    stream[10] = b"{\n"
    stream[500] = line(500).replace(b"5000", b'"soon"')
    stream[999] = line(998)
    code, report, told = shop.submit("-", b"".join(stream))
    assert code == 1
    assert (report["submitted"], report["alreadyThere"], report["refused"]) == (997, 0, 3)
    lines = sorted(told.splitlines())
    assert len(lines) == 3
    assert lines[0] == "line 1000: has the taskNo of line 999"
    assert lines[1].startswith("line 11: is not JSON")
    assert lines[2].startswith("line 501: timeout: must be an integer number of milliseconds")
    assert len(shop.kept()) == 997


def test_content_arrives_as_it_stands_in_the_file(shop: Shop, tmp_path: Path) -> None:
    path = tmp_path / "tasks.ndjson"
    text = b'{"taskNo":"no-0","name":"t","content":"{\\"a\\": 1.10}","timeout":1,"runtime":0}'
    path.write_bytes(text)
    code, report, _ = shop.submit(str(path))
    assert (code, report["submitted"]) == (0, 1)
    with contextlib.closing(sqlite3.connect(shop.daemon.folder / "taskd.db")) as store:
        assert store.execute("SELECT content FROM tasks").fetchall() == [('{"a": 1.10}',)]


def test_a_pipe_that_pauses_is_submitted_as_it_comes_and_ctrl_c_loses_nothing(
    shop: Shop,
) -> None:
    process = shop.start("-")
    assert process.stdin is not None
    process.stdin.write(b"".join(line(number) for number in range(500)))
    process.stdin.flush()
    wait_until(lambda: shop.knows(499), what="the last line before the pause")
    process.send_signal(signal.SIGINT)
    # Its input stays open until then: an end of it would be a success as well.
    assert process.wait(timeout=20) == 1
    out, err = process.communicate()
    assert out.startswith(b"500 tasks submitted, 0 were there already, 0 refused")
    assert err == (
        b"interrupted; run the same command again to go on: what is there already is passed over\n"
    )
    code, report, _ = shop.submit("-", b"".join(line(number) for number in range(1_500)))
    assert code == 0
    assert (report["submitted"], report["alreadyThere"]) == (1_000, 500)
    assert sorted(shop.kept()) == names(1_500)


def test_a_daemon_that_is_killed_in_the_middle_gets_every_task_once(shop: Shop) -> None:
    count = 20_000
    daemon = shop.daemon
    port = urlsplit(daemon.url).port
    assert port is not None
    daemon.write_config({}, port=port)
    process = shop.start("-", "--json")
    stdin = process.stdin
    assert stdin is not None
    half, gone_on = threading.Event(), threading.Event()

    def feed() -> None:
        with stdin:
            for number in range(count):
                if number == count // 2:
                    half.set()
                    assert gone_on.wait(30)
                stdin.write(line(number))

    feeding = threading.Thread(target=feed)
    feeding.start()
    for _ in range(2):
        # While lines are on their way, and again while the rest is.
        wait_until(lambda: shop.knows(1_000), what="the first lines")
        daemon.kill()
        daemon.start()
        assert half.wait(30)
        gone_on.set()
    feeding.join()
    process.stdin = None  # closed by the feeder
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    report = json.loads(out)
    assert report["submitted"] + report["alreadyThere"] == count
    assert sorted(shop.kept()) == names(count)
    assert b"trying again" in err


def test_on_a_terminal_a_bar_is_drawn_and_taken_away(shop: Shop, tmp_path: Path) -> None:
    path = tmp_path / "tasks.ndjson"
    path.write_bytes(b"".join(line(number) for number in range(3_000)) + b"[\n")
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [*_FROM, str(path)], stdin=child, stdout=child, stderr=child, env=shop.environ()
    )
    os.close(child)
    text = read_all(parent)
    assert process.wait(20) == 1
    assert re.search(r"\[[#.]{24}\] +\d+ %  [\d,]+ tasks  [\d,]+/s  \d refused", text)
    assert "line 3001: is not JSON" in text
    last = text.rstrip().splitlines()[-1]
    assert "3,000 tasks submitted, 0 were there already, 1 refused" in last
    assert "%" not in last.rpartition("\x1b[K")[2]


def test_a_kill_leaves_all_of_a_batch_or_none(shop: Shop) -> None:
    rounds, size = 5, 50
    daemon = shop.daemon
    answered: set[str] = set()
    sent: set[str] = set()
    for turn in range(rounds):
        killed = threading.Event()

        def submit(name: str, killed: threading.Event = killed) -> None:
            with Client(daemon.url, *shop.keys) as client:
                for number in itertools.count():
                    batch = f"{name}-{number}"
                    sent.add(batch)
                    lines = [line(0).replace(b"no-0", f"{batch}.{n}".encode()) for n in range(size)]
                    try:
                        client.create_tasks(lines, atomic=number % 2 == 0)
                    except DaemonUnreachable:
                        assert killed.wait(20)
                        return
                    answered.add(batch)

        threads = [threading.Thread(target=submit, args=(f"{turn}-{n}",)) for n in range(3)]
        before = len(answered)
        for thread in threads:
            thread.start()
        wait_until(lambda before=before: len(answered) > before + 20, what="some batches")
        daemon.kill()
        killed.set()
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()
        daemon.start()
    kept = Counter(task_no.partition(".")[0] for task_no in shop.kept())
    assert set(kept.values()) == {size}
    assert answered <= set(kept) <= sent

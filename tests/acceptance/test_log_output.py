"""What the daemon writes: JSON from the first line to the last where it is asked for, and
nothing that a full, stuck or closed output could hold up."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from taskd.client import Client
from taskd.runtime import interpreter
from tests.support.daemon import Daemon, wait_until
from tests.support.workers import worker_pids
from tools.servers.reserved_port import ReservedPort

_PROGRAM = (sys.executable, "-m", "taskd")


def in_json(**environ: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TASKD_")}
    return {**kept, "TASKD_LOG_FORMAT": "json", "TASKD_SERVER_PORT": "0", **environ}


def served(
    folder: Path, *arguments: str, program: tuple[str, ...] = _PROGRAM, **environ: str
) -> tuple[int, list[dict[str, Any]]]:
    """Run a daemon that ends by itself; its exit code, and what it wrote."""
    done = subprocess.run(
        [*program, "serve", *arguments],
        cwd=folder,
        env=in_json(**environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=60,
        check=False,
    )
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


BROKEN_FILES = {
    "no TOML": "[server\n",
    "no UTF-8": "\xff",
    "an unknown key": "[server]\nports = 1\n",
    "half of TLS": '[server]\ntls_cert = "x.pem"\n',
    "no folder": '[store]\nurl = "sqlite:////proc/no/taskd.db"\n',
    "no address": '[server]\nhost = "192.0.2.1"\n',
}


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("case", BROKEN_FILES)
def test_what_keeps_it_from_starting_is_json(tmp_path: Path, case: str, workers: str) -> None:
    (tmp_path / "taskd.toml").write_bytes(BROKEN_FILES[case].encode("latin-1"))
    code, told = served(tmp_path, TASKD_SERVER_WORKERS=workers)
    assert code == 1
    assert told[-1]["message"] == "taskd serve failed"
    assert told[-1]["reason"]
    assert "exception" not in told[-1]


def test_what_it_can_not_use_is_json(tmp_path: Path) -> None:
    (tmp_path / "taskd.toml").write_text("")
    for arguments, code in ((("--nope",), 2), (("--port",), 2), (("--port", "x"), 1), (("x",), 2)):
        ended, told = served(tmp_path, *arguments)
        assert ended == code
        assert [one["message"] for one in told] == ["taskd serve failed"]
    _, (told_once,) = served(tmp_path, "--debug", "--config", "nowhere.toml")
    assert "FileNotFoundError" in told_once["exception"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        _, told = served(tmp_path, TASKD_SERVER_PORT=str(taken.getsockname()[1]))
    assert "can't listen" in told[-1]["reason"]


@pytest.mark.parametrize("text", ['[log]\nformat = "json"\n', '[log]\nformat = "json"\nbroken\n'])
def test_a_file_that_can_not_be_used_says_in_which_form_that_is_told(
    tmp_path: Path, text: str
) -> None:
    (tmp_path / "taskd.toml").write_text(f"{text}[server]\nport = -1\n")
    environ = in_json()
    del environ["TASKD_LOG_FORMAT"], environ["TASKD_SERVER_PORT"]
    done = subprocess.run(
        [*_PROGRAM, "serve"], cwd=tmp_path, env=environ, capture_output=True, check=False
    )
    (line,) = done.stderr.splitlines()
    assert json.loads(line)["message"] == "taskd serve failed"


DEFECTS = {
    "in the loop": "import taskd.daemon.node as n; n.Node.__init__ = lambda *a: 1 / 0",
    "in a thread": """
import threading, taskd.daemon.run as daemon
def broken():
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
    raise ValueError("a defect")
daemon.raise_file_limit = broken
""",
    "where nobody can be told": """
import warnings, taskd.daemon.run as daemon
class Bad:
    def __del__(self): 1 / 0
def broken():
    Bad()
    warnings.warn("be warned")
    raise ValueError("a defect")
daemon.raise_file_limit = broken
""",
}


@pytest.mark.parametrize("defect", DEFECTS.values(), ids=DEFECTS)
def test_what_breaks_within_is_json(tmp_path: Path, defect: str) -> None:
    (tmp_path / "taskd.toml").write_text("")
    program = (sys.executable, "-c", f"{defect}\nfrom taskd.__main__ import main; main()")
    code, told = served(tmp_path, program=program, PYTHONWARNINGS="default")
    assert code == 1
    assert any("exception" in one for one in told)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("built", ["without --enable-optimizations", None])
def test_a_python_that_is_slow_is_told_once_at_the_start(
    tmp_path: Path, built: str | None, workers: int
) -> None:
    """By one process of all, whatever is true of the Python that runs the test."""
    said = f"from taskd.runtime import interpreter; interpreter.slow_build = lambda: {built!r}"
    program = (sys.executable, "-c", f"{said}\nfrom taskd.__main__ import main; main()")
    with Daemon(tmp_path, command=program, sections={"server": {"workers": workers}}) as daemon:
        assert daemon.stop() == 0
    lines = [json.loads(line) for line in daemon.log().splitlines()]
    told = [line for line in lines if line["message"] == interpreter.SLOW]
    if built is None:
        assert told == []
    else:
        (line,) = told
        assert line["level"] == "warning"
        assert (line["python"], line["built"]) == (platform.python_version(), built)


def test_what_python_warns_of_while_it_imports_is_json(tmp_path: Path) -> None:
    (tmp_path / "taskd.toml").write_text("[server]\nport = -1\n")
    # A module of that name is imported by the command, and warns.
    (tmp_path / "tomllib.py").write_text("import warnings; warnings.warn('old'); import nothing")
    code, told = served(tmp_path, PYTHONPATH=str(tmp_path), PYTHONWARNINGS="default")
    assert code == 1
    assert "old" in told[0]["message"]
    assert "ModuleNotFoundError" in told[-1]["exception"]


@contextmanager
def serving(
    folder: Path, workers: int, stdout: int | IO[bytes], stderr: int | IO[bytes]
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A daemon with these outputs, on a port that was chosen; it is ready."""
    (folder / "taskd.toml").write_text("")
    with ReservedPort() as port:
        process = subprocess.Popen(
            [*_PROGRAM, "serve"],
            cwd=folder,
            env=in_json(TASKD_SERVER_PORT=str(port), TASKD_SERVER_WORKERS=str(workers)),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
        )
        url = f"http://127.0.0.1:{port}"
        try:
            wait_until(lambda: ready(process, url), within_s=30, what="that it is ready")
            yield process, url
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


def ready(process: subprocess.Popen[bytes], url: str) -> bool:
    assert process.poll() is None, "it has ended"
    with contextlib.suppress(Exception), Client(url, timeout=5) as client:
        return client.ready()
    return False


def ends_well(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_both_streams_as_one_are_json_from_the_first_line_to_the_last(
    tmp_path: Path, workers: int
) -> None:
    with (
        (tmp_path / "out").open("wb") as out,
        serving(tmp_path, workers, out, subprocess.STDOUT) as (process, url),
    ):
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
            process.send_signal(number)
        if workers > 1:
            log = tmp_path / "out"
            wait_until(lambda: "all workers are ready" in log.read_text(), within_s=20)
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
            os.kill(int(children.split()[0]), signal.SIGKILL)
            wait_until(lambda: "another takes its place" in log.read_text(), within_s=20)
        ends_well(process)
    events = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    (announced,) = [one for one in events if one["logger"] == "taskd.cli"]
    assert announced["url"] == url
    assert announced["message"] == f"taskd is listening on {url}"


def test_a_second_signal_is_told_in_json(tmp_path: Path) -> None:
    hung = "import time, taskd.engine.dispatcher as w; wait = w.Dispatcher.drain\n"
    hung += "async def drain(self, **k):\n import trio; await trio.sleep(60)\n"
    hung += "w.Dispatcher.drain = drain"
    (tmp_path / "taskd.toml").write_text("")
    with (
        (tmp_path / "out").open("wb") as out,
        subprocess.Popen(
            [sys.executable, "-c", f"{hung}\nfrom taskd.__main__ import main; main()", "serve"],
            cwd=tmp_path,
            env=in_json(),
            stdout=out,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        log = tmp_path / "out"
        wait_until(lambda: "listening" in log.read_text(), within_s=20)
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: "draining" in log.read_text())
        time.sleep(0.5)  # noqa: TID251 - sooner, it passes for the first one again
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 1
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert "a second signal: ended at once" in {one["message"] for one in events}


@pytest.mark.skipif(shutil.which("jq") is None, reason="no jq here: apt-get install jq")
def test_jq_reads_it(tmp_path: Path) -> None:
    (tmp_path / "taskd.toml").write_text("[server]\nport = -1\n")
    done = subprocess.run(
        f"{sys.executable} -m taskd serve 2>&1 | jq -r .reason",
        shell=True,
        cwd=tmp_path,
        env={name: value for name, value in in_json().items() if name != "TASKD_SERVER_PORT"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("[server] port: must be")
    assert not done.stderr


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_for_logs_ends_nothing(tmp_path: Path, workers: int) -> None:
    with (
        Path("/dev/full").open("wb") as full,
        serving(tmp_path, workers, full, full) as (process, url),
    ):
        with Client(url) as client:
            wait_until(lambda: "lines are lost" in degraded(client), what="that it is told")
        ends_well(process)


def degraded(client: Client) -> str:
    import http.client  # noqa: PLC0415 - only here
    from urllib.parse import urlsplit  # noqa: PLC0415 - only here

    where = urlsplit(client.url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=10)
    connection.request("GET", "/readyz")
    answer = json.loads(connection.getresponse().read())
    connection.close()
    return " ".join((answer["data"] or {}).get("degraded", ()))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_reader_that_has_left_ends_nothing(tmp_path: Path, workers: int) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        with serving(tmp_path, workers, writing, writing) as (process, _):
            ends_well(process)
    finally:
        os.close(writing)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_reader_that_is_stuck_holds_nothing_up(tmp_path: Path, workers: int) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while os.write(writing, b"x" * 4096):
            pass
    os.set_blocking(writing, True)
    try:
        with serving(tmp_path, workers, writing, writing) as (process, _):
            ends_well(process)
    finally:
        os.close(writing)
        os.close(reading)


@pytest.mark.parametrize("workers", [1, 2])
def test_outputs_that_are_closed_end_nothing(tmp_path: Path, workers: int) -> None:
    closing = ("sh", "-c", 'exec "$@" 0<&- 1>&- 2>&-', "sh", *_PROGRAM)
    (tmp_path / "taskd.toml").write_text("")
    with ReservedPort() as port:
        environ = in_json(TASKD_SERVER_PORT=str(port), TASKD_SERVER_WORKERS=str(workers))
        process = subprocess.Popen([*closing, "serve"], cwd=tmp_path, env=environ)
        try:
            wait_until(lambda: ready(process, f"http://127.0.0.1:{port}"), within_s=30)
            ends_well(process)
        finally:
            process.kill()
            process.wait()


_LONG_LINES = """
import logging
import taskd.engine.registry as registry
from taskd.runtime.logs import log_event
add = registry.Registry.add
def more(self, execution):
    add(self, execution)
    log_event(
        logging.getLogger("taskd.x"), 20, "long", text="名" * 3000, error=ValueError("x" * 9000)
    )
registry.Registry.add = more
from taskd.__main__ import main
main()
"""


def test_lines_of_several_processes_are_whole_though_the_reader_is_slow(tmp_path: Path) -> None:
    """And though some are longer than a pipe takes as a whole."""
    daemon = Daemon(tmp_path, sections={"server": {"workers": 3}, "log": {"level": "debug"}})
    reading, writing = os.pipe()
    lines: list[bytes] = []

    def read() -> None:
        with os.fdopen(reading, "rb", buffering=0) as pipe:
            rest = b""
            while data := pipe.read(3000):
                *whole, rest = (rest + data).split(b"\n")
                lines.extend(whole)
                time.sleep(0.002)  # noqa: TID251 - a slow reader

    reader = threading.Thread(target=read)
    reader.start()
    daemon.command = (sys.executable, "-c", _LONG_LINES)
    process = subprocess.Popen(
        [*daemon.command, "serve", "--config", str(daemon.config_path)],
        stdout=subprocess.PIPE,
        stderr=writing,
    )
    os.close(writing)
    daemon._process = process  # type: ignore[assignment]  # bytes, not text
    try:
        assert process.stdout is not None
        daemon.url = json.loads(process.stdout.readline())["url"]
        with daemon.create_app("http://127.0.0.1:9/", retry_total=0) as app:
            for number in range(150):
                app.create_task(task_no=f"{number}", name="t", content="1", timeout=5000)
        wait_until(lambda: sum(b'"long"' in line for line in list(lines)) >= 150, within_s=60)
        assert len(worker_pids(daemon)) == 3
        process.terminate()
        assert process.wait(30) == 0
    finally:
        daemon.kill()
    reader.join(30)
    events = [json.loads(line) for line in lines]
    long_ones = [one for one in events if one["message"] == "long"]
    assert len(long_ones) >= 150
    assert all(one["text"].startswith("名") and "xxx" in one["exception"] for one in long_ones)

"""``taskd demo``: the real daemon and a real receiver, in a temporary folder."""

from __future__ import annotations

import queue
import secrets
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click

from taskd.cli.boundary import Command, CommandError, print_json, wants_json
from taskd.cli.demo_receiver import Receiver
from taskd.cli.demo_stories import STEP_S, STORIES, NotAsPromised, Stage, Story
from taskd.client import Client
from taskd.clock import SystemClock
from taskd.errors import ClientError

_START_S = 20.0
_STOP_S = 10.0
_READY = "taskd is listening on "
_LOG_LINES = 15
_TITLE_WIDTH = max(len(story.title) for story in STORIES)


@dataclass(frozen=True, slots=True)
class Result:
    """How a story ended."""

    title: str
    kept: bool
    ending: str


@click.command(cls=Command, example="taskd demo")
def demo() -> None:
    """Show taskd at work: deliver, retry, time out, cancel, inspect.

    Runs the real daemon in a temporary folder against a receiver of its own, and
    ends with exit code 0 if everything was as promised.
    """
    with tempfile.TemporaryDirectory(prefix="taskd-demo-") as name:
        folder = Path(name)
        with Receiver(SystemClock()) as receiver, _daemon(folder) as (url, admin_secret):
            board = _Board()
            board.say(f"daemon: {url}   receiver: {receiver.url}")
            results = _play(url, admin_secret, receiver, board)
            unsigned = receiver.unsigned()
        if unsigned:
            results.append(Result("signatures", kept=False, ending=f"{unsigned} did not hold"))
        _conclude(results, folder)


def _play(url: str, admin_secret: str, receiver: Receiver, board: _Board) -> list[Result]:
    with Client(url, "admin", admin_secret) as admin:
        app = admin.create_app(name="demo", link_url=receiver.url, step=STEP_S, retry_total=3)
    app_key, receiver.secret_key = str(app["appKey"]), str(app["secretKey"])
    board.say(f"application created over the API: app_key {app_key}")
    stage = Stage(
        client=lambda: Client(url, app_key, receiver.secret_key),
        receiver=receiver,
        clock=SystemClock(),
        pause=threading.Event(),
    )
    with ThreadPoolExecutor(len(STORIES)) as pool:
        playing = [pool.submit(_tell_story, story, stage, board) for story in STORIES]
        results = _collect(playing)
    board.close()
    return results


def _collect(playing: list[Future[Result]]) -> list[Result]:
    return [future.result() for future in playing]


def _tell_story(story: Story, stage: Stage, board: _Board) -> Result:
    def tell(line: str) -> None:
        board.say(f"{story.title:<{_TITLE_WIDTH}}  {line}")

    try:
        result = Result(story.title, kept=True, ending=story.play(stage, tell))
    except (NotAsPromised, ClientError) as error:
        tell(f"NOT AS PROMISED: {error}")
        result = Result(story.title, kept=False, ending=str(error))
    board.done()
    return result


def _conclude(results: list[Result], folder: Path) -> None:
    broken = [result for result in results if not result.kept]
    if wants_json():
        print_json(
            {
                "results": [
                    {"story": result.title, "asPromised": result.kept, "ending": result.ending}
                    for result in results
                ]
            }
        )
    else:
        click.echo()
        for result in results:
            mark = click.style("as promised", fg="green") if result.kept else "NOT AS PROMISED"
            click.echo(f"  {result.title:<{_TITLE_WIDTH}}  {mark:<15}  {result.ending}")
    if broken:
        _show_log(folder)
        titles = ", ".join(result.title for result in broken)
        raise CommandError(f"not as promised: {titles}")


class _Board:
    """Lines as things happen; on a terminal, a progress line below them."""

    def __init__(self) -> None:
        # With --json, stdout is the answer's alone.
        self._error = wants_json()
        self._live = sys.stderr.isatty() if self._error else sys.stdout.isatty()
        self._lock = threading.Lock()
        self._done = 0
        self._began = SystemClock().now_ms()

    def say(self, line: str) -> None:
        """Print a line above the progress."""
        with self._lock:
            seconds = (SystemClock().now_ms() - self._began) / 1000
            self._clear()
            click.echo(f"{seconds:6.2f} s  {line}", err=self._error)
            self._draw()

    def done(self) -> None:
        """Count a story that has ended."""
        with self._lock:
            self._done += 1
            self._clear()
            self._draw()

    def close(self) -> None:
        """Take the progress line away."""
        with self._lock:
            self._clear()
            self._live = False

    def _clear(self) -> None:
        if self._live:
            click.echo("\r\x1b[2K", nl=False, err=self._error)

    def _draw(self) -> None:
        if self._live:
            bar = "#" * self._done + "." * (len(STORIES) - self._done)
            text = f"[{bar}] {self._done} of {len(STORIES)} stories told"
            click.echo(text, nl=False, err=self._error)


@contextmanager
def _daemon(folder: Path) -> Iterator[tuple[str, str]]:
    """The real daemon as a process: its URL, and the administrator's secret."""
    admin_secret = secrets.token_urlsafe(24)
    config = folder / "taskd.toml"
    config.touch(mode=0o600)
    config.write_text(
        f'[server]\nport = 0\ndrain_timeout = 1\n[auth]\nadmin_secret = "{admin_secret}"\n'
    )
    # The single executable is its own interpreter.
    program = [sys.executable] if getattr(sys, "frozen", False) else [sys.executable, "-m", "taskd"]
    with (folder / "taskd.log").open("w") as log:
        process = subprocess.Popen(  # noqa: S603 - our own program, with our own file
            [*program, "serve", "--config", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    try:
        yield _wait_ready(process, folder), admin_secret
    finally:
        _end(process)


def _wait_ready(process: subprocess.Popen[str], folder: Path) -> str:
    stdout = process.stdout
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    read: Callable[[], str] = stdout.readline if stdout is not None else str
    threading.Thread(target=lambda: lines.put(read()), daemon=True).start()
    try:
        line = lines.get(timeout=_START_S)
    except queue.Empty:
        line = ""
    if not line.startswith(_READY):
        _show_log(folder)
        raise CommandError("the daemon did not start; its log is above")
    return line.removeprefix(_READY).strip()


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _show_log(folder: Path) -> None:
    log = folder / "taskd.log"
    lines = log.read_text().splitlines() if log.exists() else []
    click.echo("the daemon's last log lines:", err=True)
    for line in lines[-_LOG_LINES:]:
        click.echo(f"  {line}", err=True)

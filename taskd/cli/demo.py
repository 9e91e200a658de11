"""``taskd demo``: the whole thing, in a temporary folder, against itself."""

from __future__ import annotations

import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click

from taskd.cli.boundary import Command, CommandError, hint, plain, print_json, wants_json
from taskd.cli.demo_daemon import DaemonFailed, last_log_lines, running_daemon
from taskd.cli.demo_display import Display, is_live, table
from taskd.cli.demo_receiver import Receiver, running_receiver
from taskd.cli.demo_stories import STEP_S, STORIES, Broken, Stage, Story
from taskd.client import Client
from taskd.clock import SystemClock
from taskd.errors import TaskdError
from taskd.signing import random_token

_LIMIT_S = 28.0
_TICK_S = 0.1
_SECRET_LENGTH = 40


@dataclass(frozen=True, slots=True)
class Result:
    """How a story went."""

    story: Story
    kept: bool
    seen: str


@click.command(cls=Command, example="taskd demo")
def demo() -> None:
    """Watch seven tasks: delivered, scheduled, retried, timed out, cancelled twice
    and looked into.

    Runs the real daemon in a temporary folder against a receiver that checks
    every signature. Takes about 5 seconds, leaves nothing behind, and fails if
    anything is not as promised.
    """
    as_json = wants_json()
    stream = sys.stderr if as_json else sys.stdout
    display = Display(stream, [story.key for story in STORIES], live=is_live(stream))
    with _ended_by_signals():
        results = _perform(display)
    if as_json:
        print_json(
            [{"story": r.story.promise, "asPromised": r.kept, "seen": r.seen} for r in results]
        )
    else:
        rows = [("task", "as promised", "seen")]
        rows += [(r.story.promise, "yes" if r.kept else "NO", plain(r.seen)) for r in results]
        click.echo("\n" + "\n".join(table(rows)))
    if broken := [r.story.promise for r in results if not r.kept]:
        raise CommandError(f"not as promised: {', '.join(broken)}")


def _perform(display: Display) -> list[Result]:
    clock = SystemClock()
    admin_secret = random_token(_SECRET_LENGTH)
    # A TemporaryDirectory is 0700.
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="taskd-demo-")))
        receiver = stack.enter_context(running_receiver(clock))
        display.say(f"receiver: {receiver.url}")
        try:
            with running_daemon(folder, admin_secret) as url:
                display.say(f"daemon:   {url}, in {folder}")
                with Client(url, "admin", admin_secret) as admin:
                    app = admin.create_app(
                        name="demo", link_url=receiver.url, step=STEP_S, retry_total=3
                    )
                display.say(f"created application {app['appKey']}")
                receiver.secret_key = app["secretKey"]
                results = _play_all(display, receiver, url, app["appKey"], app["secretKey"])
        except DaemonFailed as error:
            _show_log(folder)
            raise CommandError(str(error)) from error
        except TaskdError:
            _show_log(folder)
            raise
        if not all(result.kept for result in results):
            _show_log(folder)
        return results


def _play_all(
    display: Display, receiver: Receiver, url: str, app_key: str, secret_key: str
) -> list[Result]:
    """Play all stories at the same time, each with a connection of its own."""
    results: dict[str, Result] = {}

    def play(story: Story) -> None:
        with Client(url, app_key, secret_key) as client:
            stage = Stage(
                key=story.key,
                client=client,
                receiver=receiver,
                clock=receiver.clock,
                tell=lambda text: display.tell(story.key, text),
            )
            try:
                result = Result(story, kept=True, seen=story.play(stage))
            except (Broken, TaskdError) as error:
                result = Result(story, kept=False, seen=str(error))
            except Exception as error:  # noqa: BLE001 - a thread's error would be lost: it is the story's end
                seen = f"{type(error).__name__}: {error}"
                result = Result(story, kept=False, seen=seen)
        results[story.key] = result
        display.end(story.key, result.seen, kept=result.kept)

    # Daemon threads: Ctrl-C ends the demo, whatever they wait for.
    threads = [
        threading.Thread(target=play, args=(story,), name=story.key, daemon=True)
        for story in STORIES
    ]
    for thread in threads:
        thread.start()
    for _ in range(round(_LIMIT_S / _TICK_S)):
        display.tick()
        alive = [thread for thread in threads if thread.is_alive()]
        if not alive:
            break
        alive[0].join(_TICK_S)
    missing = Broken(f"had not ended after {_LIMIT_S:g} s")
    return [
        results.get(story.key, Result(story, kept=False, seen=str(missing))) for story in STORIES
    ]


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Unwind on SIGTERM and SIGHUP as on Ctrl-C, so that the daemon ends too."""

    def unwind(number: int, _frame: FrameType | None) -> NoReturn:
        raise CommandError(f"ended by {signal.Signals(number).name}")

    caught = (signal.SIGTERM, signal.SIGHUP)
    before = [(number, signal.signal(number, unwind)) for number in caught]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def _show_log(folder: Path) -> None:
    lines = last_log_lines(folder)
    hint("the daemon's last log lines:" if lines else "the daemon logged nothing")
    for line in lines:
        hint(f"  {line}")

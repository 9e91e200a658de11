"""``taskd demo``: runs the daemon and a receiver, plays the stories, shows the results."""

from __future__ import annotations

import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click

from taskd.cli.boundary import Command, CommandError, hint, print_json, wants_json
from taskd.cli.demo.daemon import DaemonFailed, last_log_lines, running_daemon
from taskd.cli.demo.display import Display, is_live
from taskd.cli.demo.receiver import Receiver, running_receiver
from taskd.cli.demo.signals import Signals
from taskd.cli.demo.stories import STEP_S, STORIES, Broken, Stage, Story
from taskd.client import Client
from taskd.clock import SystemClock
from taskd.domain.signing import random_token
from taskd.errors import TaskdError

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
@click.option("--verbose", is_flag=True, help="Show all frames of the task that is looked into.")
def demo(*, verbose: bool) -> None:
    """Watch seven tasks: delivered, scheduled, retried, timed out, cancelled twice
    and looked into.

    Runs the real daemon in a temporary folder against a receiver that checks
    every signature. Takes about 5 seconds, leaves nothing behind, and fails if
    anything is not as promised.
    """
    as_json = wants_json()
    stream = sys.stderr if as_json else sys.stdout
    display = Display(stream, [story.key for story in STORIES], live=is_live(stream))
    signals = Signals()
    with signals.caught():
        results = _perform(display, signals, verbose=verbose)
    if as_json:
        print_json(
            [{"story": r.story.promise, "asPromised": r.kept, "seen": r.seen} for r in results]
        )
    else:
        display.results([(r.story.promise, r.kept, r.seen) for r in results], noun="task")
    if broken := [r.story.promise for r in results if not r.kept]:
        raise CommandError(f"not as promised: {', '.join(broken)}")


def _perform(display: Display, signals: Signals, *, verbose: bool) -> list[Result]:
    clock = SystemClock()
    admin_secret = random_token(_SECRET_LENGTH)
    # A TemporaryDirectory is 0700.
    with ExitStack() as stack:
        with signals.held():
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="taskd-demo-")))
            receiver = stack.enter_context(running_receiver(clock))
        display.say(f"receiver: {receiver.url}")
        try:
            with running_daemon(folder, admin_secret, signals) as url:
                display.say(f"daemon:   {url}, in {folder}")
                with Client(url, "admin", admin_secret) as admin:
                    app = admin.create_app(
                        name="demo", link_url=receiver.url, step=STEP_S, retry_total=3
                    )
                display.say(f"created application {app['appKey']}")
                receiver.app_key, receiver.secret_key = app["appKey"], app["secretKey"]

                def play(story: Story) -> Result:
                    with Client(url, app["appKey"], app["secretKey"]) as client:
                        return _play(story, client, receiver, display, verbose=verbose)

                results = _play_all(play, display, signals)
        except DaemonFailed as error:
            _show_log(folder)
            raise CommandError(str(error)) from error
        except TaskdError:
            _show_log(folder)
            raise
        if not all(result.kept for result in results):
            _show_log(folder)
        return results


def _play(
    story: Story, client: Client, receiver: Receiver, display: Display, *, verbose: bool
) -> Result:
    stage = Stage(
        key=story.key,
        client=client,
        receiver=receiver,
        clock=receiver.clock,
        tell=partial(display.tell, story.key),
        verbose=verbose,
    )
    try:
        return Result(story, kept=True, seen=story.play(stage))
    except (Broken, TaskdError) as error:
        return Result(story, kept=False, seen=str(error))
    except Exception as error:  # noqa: BLE001 - a thread's error would be lost: it is the story's end
        return Result(story, kept=False, seen=f"{type(error).__name__}: {error}")


def _play_all(play: Callable[[Story], Result], display: Display, signals: Signals) -> list[Result]:
    """Play all stories at the same time."""
    results: dict[str, Result] = {}

    def note(story: Story) -> None:
        result = results[story.key] = play(story)
        display.end(story.key, result.seen, kept=result.kept)

    # Daemon threads, so that Ctrl-C ends the demo, whatever they wait for.
    threads = [
        threading.Thread(target=note, args=(story,), name=story.key, daemon=True)
        for story in STORIES
    ]
    try:
        with signals.held():
            for thread in threads:
                thread.start()
        for _ in range(round(_LIMIT_S / _TICK_S)):
            display.tick()
            alive = [thread for thread in threads if thread.is_alive()]
            if not alive:
                break
            alive[0].join(_TICK_S)
    except BaseException:
        display.mute()
        raise
    missing = f"had not ended after {_LIMIT_S:g} s"
    return [results.get(story.key, Result(story, kept=False, seen=missing)) for story in STORIES]


def _show_log(folder: Path) -> None:
    lines = last_log_lines(folder)
    hint("the daemon's last log lines:" if lines else "the daemon logged nothing")
    for line in lines:
        hint(f"  {line}")

"""``python -m tools.clusterdemo``: sets the cluster up, plays the stories, and tells of both."""

from __future__ import annotations

import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click

from taskd.cli.boundary import CommandError, hint
from taskd.cli.demo.display import Display, is_live
from taskd.cli.demo.receiver import running_receiver
from taskd.cli.demo.signals import Signals
from taskd.cli.demo.stories import STEP_S, Broken
from taskd.client import Client
from taskd.clock import SystemClock
from taskd.domain.signing import random_token
from taskd.errors import TaskdError
from tools.clusterdemo import losses, tasks
from tools.clusterdemo.cluster import (
    ADMIN_KEY,
    Cluster,
    SetupFailed,
    check_programs,
    running_cluster,
)
from tools.clusterdemo.stage import ClusterStage, ClusterStory
from tools.servers import ServerFailed, ServerMissing

STORIES = (*tasks.STORIES, *losses.STORIES)

_SECRET_LENGTH = 40
_CALL_S = 10.0
_TICK_S = 0.1


@dataclass(frozen=True, slots=True)
class Result:
    """How a story went."""

    story: ClusterStory
    kept: bool
    seen: str


@click.command()
def cluster_demo() -> None:
    """Watch three nodes share tasks on MariaDB, Redis and NSQ, and lose each other.

    Runs real nodes on private servers in a temporary folder, against a receiver
    that checks every signature. Takes half a minute, leaves nothing behind, and
    fails if anything is not as promised.
    """
    display = Display(
        sys.stdout,
        [story.key for story in STORIES],
        live=is_live(sys.stdout),
        noun="stories",
    )
    signals = Signals()
    try:
        with signals.caught():
            results = _perform(display, signals)
    except ServerFailed as error:
        what, *log = str(error).splitlines()
        for line in log:
            hint(f"  {line}")
        raise CommandError(what.removesuffix(":")) from error
    except (ServerMissing, SetupFailed, TaskdError) as error:
        raise CommandError(str(error)) from error
    except BrokenPipeError:
        raise  # nobody reads any more: click ends in silence
    except OSError as error:
        where = "" if error.filename is None else f"{error.filename}: "
        raise CommandError(f"{where}{error.strerror or error}") from error
    display.results([(r.story.promise, r.kept, r.seen) for r in results], noun="story")
    if broken := [r.story.promise for r in results if not r.kept]:
        raise CommandError(f"not as promised: {', '.join(broken)}")


def _perform(display: Display, signals: Signals) -> list[Result]:
    check_programs()
    admin_secret = random_token(_SECRET_LENGTH)
    stack = ExitStack()
    try:
        with signals.held():
            # A TemporaryDirectory is 0700.
            folder = Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix="taskd-cluster-demo-"))
            )
            receiver = stack.enter_context(running_receiver(SystemClock()))
        display.say(f"folder:   {folder}")
        display.say(f"receiver: {receiver.url}")
        with running_cluster(folder, admin_secret, signals, display.say) as cluster:
            first = cluster.nodes[0]
            with Client(first.url, ADMIN_KEY, admin_secret, timeout_s=_CALL_S) as admin:
                app = admin.create_app(
                    name="cluster demo", link_url=receiver.url, step=STEP_S, retry_total=3
                )
            display.say(f"created application {app['appKey']} through {first}")
            receiver.app_key, receiver.secret_key = app["appKey"], app["secretKey"]

            def stage_of(story: ClusterStory) -> ClusterStage:
                return ClusterStage(
                    key=story.key,
                    cluster=cluster,
                    clients=clients,
                    receiver=receiver,
                    tell=partial(display.tell, story.key),
                )

            with ExitStack() as open_clients:
                clients = {
                    node.number: open_clients.enter_context(
                        Client(node.url, app["appKey"], app["secretKey"], timeout_s=_CALL_S)
                    )
                    for node in cluster.nodes
                }
                with _ticking(display):
                    results = [_play(story, stage_of(story), display) for story in STORIES]
            if not all(result.kept for result in results):
                _show_logs(cluster)
            return results
    finally:
        with signals.held():
            stack.close()


def _play(story: ClusterStory, stage: ClusterStage, display: Display) -> Result:
    try:
        result = Result(story, kept=True, seen=story.play(stage))
    except (Broken, TaskdError, ServerFailed, SetupFailed, LookupError, OSError) as error:
        seen = next(iter(str(error).splitlines()), type(error).__name__)
        result = Result(story, kept=False, seen=seen)
    display.end(story.key, result.seen, kept=result.kept)
    return result


@contextmanager
def _ticking(display: Display) -> Iterator[None]:
    """Let the display's clock go on meanwhile."""
    over = threading.Event()

    def tick() -> None:
        while not over.wait(_TICK_S):
            display.tick()

    thread = threading.Thread(target=tick, name="ticker", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _show_logs(cluster: Cluster) -> None:
    for node in cluster.nodes:
        lines = node.last_complaints()
        hint(f"{node}'s last complaints:" if lines else f"{node} had nothing to complain of")
        for line in lines:
            hint(f"  {line}")


if __name__ == "__main__":
    cluster_demo(prog_name="cluster-demo")

"""The stories of single tasks: wherever they run, any node answers for them."""

from __future__ import annotations

import time
from collections import Counter

from taskd.cli.demo import stories
from taskd.cli.demo.stories import Broken
from taskd.cli.task_text import Detail, live_frames
from tools.clusterdemo.cluster import Node
from tools.clusterdemo.stage import ClusterStage, ClusterStory, Errand, wait_for

_SPREAD = 24
_TRIES = 8
_ANSWER_MS = 1000
"""How soon a node answers for what runs on another."""

_ALONE = {story.key: story for story in stories.STORIES}


def _spread(stage: ClusterStage) -> str:
    errands = stage.submit_held(_SPREAD)
    # Whoever is asked, the answer names the node that does the work.
    found = Counter(
        str(stage.runner_of(errand, through=next(stage.others(errand.node)))) for errand in errands
    )
    seen = ", ".join(f"{node}: {found[str(node)]}" for node in stage.nodes)
    stage.tell(f"{_SPREAD} tasks are under way at the same time, on {seen}", lasting=True)
    if missing := [str(node) for node in stage.nodes if not found[str(node)]]:
        raise Broken(f"nothing ran on {' and '.join(missing)}: {seen}")
    for errand in errands:
        errand.answered()
    for errand in errands:
        stage.settled(errand)
        errand.stage.expect_calls(1)
    return seen


def _at_once(stage: ClusterStage) -> str:
    return _ALONE["at-once"].play(stage.through(stage.nodes[0]))


def _scheduled(stage: ClusterStage) -> str:
    return _ALONE["in-2-s"].play(stage.through(stage.nodes[2]))


def _cancelled(stage: ClusterStage) -> str:
    errand, runner = _running_elsewhere(stage)
    third = next(stage.others(errand.node, runner))
    stage.tell(f"cancelling task {errand.task_id} through {third}")
    began = time.monotonic()
    answer = stage.clients[third.number].cancel(errand.task_id)
    took_ms = _since_ms(began)
    errand.stage.expect("delivery", answer["delivery"], "aborted_before_response")
    task = errand.stage.end_of(errand.task_id)
    errand.stage.expect("state", task["state"], "cancelled")
    errand.stage.expect_calls(1)
    _expect_soon(took_ms)
    return f"accepted by {errand.node}, on {runner}, unwound through {third} in {took_ms} ms"


def _inspected(stage: ClusterStage) -> str:
    errand, runner = _running_elsewhere(stage)
    third = next(stage.others(errand.node, runner))
    detail, took_ms = _look(stage, errand, third)
    errand.stage.expect("node", detail["task"]["node"], runner.name)
    frames = live_frames(detail)
    if not frames:
        raise Broken("its stack was empty")
    stage.tell(f"asked {third}: it is on {runner}, called {runner.name}", lasting=True)
    for frame in frames:
        stage.tell(f"at {frame['file']}:{frame['line']} in {frame['function']}", lasting=True)
    errand.answered()
    stage.settled(errand)
    errand.stage.expect_calls(1)
    _expect_soon(took_ms)
    return f"{len(frames)} frames of {runner}, seen through {third} in {took_ms} ms"


def _running_elsewhere(stage: ClusterStage) -> tuple[Errand, Node]:
    """A held task that runs on another node than the one that accepted it."""
    # Always the same one accepts: NSQ's turns and ours could go in step.
    accepting = stage.nodes[0]
    for number in range(_TRIES):
        errand = stage.submit(accepting, f"-{number}", hold=True)
        errand.stage.called()
        runner = stage.runner_of(errand)
        stage.tell(f"task {errand.task_id}: accepted by {accepting}, runs on {runner}")
        if runner is not accepting:
            return errand, runner
        errand.answered()
        stage.settled(errand)
    raise Broken(f"{_TRIES} tasks that {accepting} accepted all ran there")


def _look(stage: ClusterStage, errand: Errand, through: Node) -> tuple[Detail, int]:
    """The detail of a task that awaits the receiver's answer, and how long it took."""

    def look() -> tuple[Detail, int] | None:
        began = time.monotonic()
        detail = stage.clients[through.number].detail(coroutine_id=errand.task_id)
        took_ms = _since_ms(began)
        return (detail, took_ms) if detail["task"]["phase"] == "awaiting_response" else None

    return wait_for(look, f"task {errand.task_id} awaiting its answer")


def _since_ms(began: float) -> int:
    return round((time.monotonic() - began) * 1000)


def _expect_soon(took_ms: int) -> None:
    if took_ms > _ANSWER_MS:
        raise Broken(f"answered after {took_ms} ms, promised within {_ANSWER_MS} ms")


STORIES = (
    ClusterStory(key="spread", promise="spread over three nodes", play=_spread),
    ClusterStory(key="at-once", promise="delivered at once", play=_at_once),
    ClusterStory(key="in-2-s", promise="delivered in 2 s, never early", play=_scheduled),
    ClusterStory(key="cancelled", promise="cancelled through a third node", play=_cancelled),
    ClusterStory(key="inspected", promise="looked into through a third node", play=_inspected),
)

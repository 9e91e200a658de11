"""The stories of losses: a node that is killed, NSQ and Redis that go and come back."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable
from http import HTTPStatus

from taskd.cli.demo.stories import Broken
from taskd.errors import RequestRefused
from tools.clusterdemo.cluster import LEASE_S, Node
from tools.clusterdemo.stage import MS_PER_S, ClusterStage, ClusterStory, Errand, pause, wait_for

RERUN_S = LEASE_S + 2.0
"""How soon a dead node's tasks run elsewhere."""

LATE_MS = 2000
"""How late a delivery may be while a server is away, or just after."""

_HELD = 6
_STREAM_S = 1.5
_STREAM_GAP_S = 0.1
_DUE = 9
_DUE_GAP_MS = 300
_RETURN_S = 15.0


def _killed(stage: ClusterStage) -> str:
    errands = stage.submit_held(_HELD)
    runners = {errand.task_id: stage.runner_of(errand) for errand in errands}
    victim = Counter(runners.values()).most_common(1)[0][0]
    lost = [errand for errand in errands if runners[errand.task_id] is victim]
    numbers = _listed(lost)
    stage.tell(f"{victim} is in the middle of {numbers}: kill -9 {victim.pid}", lasting=True)
    killed_ms = stage.now_ms()
    victim.kill()
    try:
        took_ms = [_called_again_ms(errand) - killed_ms for errand in lost]
        survivor = next(stage.others(victim))
        heirs = {str(stage.runner_of(errand, through=survivor)) for errand in lost}
        stage.tell(
            f"{numbers}: again, on {_listed_names(heirs)}, {_seconds(max(took_ms))} after the kill",
            lasting=True,
        )
        for errand in errands:
            errand.answered()
        for errand in errands:
            task = stage.settled(errand, through=survivor)
            again = runners[errand.task_id] is victim
            outcomes = [attempt["outcome"] for attempt in task["attempts"]]
            expected = ["abandoned", "succeeded"] if again else ["succeeded"]
            errand.stage.expect(f"outcomes of task {errand.task_id}", outcomes, expected)
            errand.stage.expect_calls(len(expected))
    finally:
        stage.cluster.start(victim)
        stage.tell(f"{victim} is back, called {victim.name}")
    if max(took_ms) > RERUN_S * MS_PER_S:
        raise Broken(f"run again after {_seconds(max(took_ms))}, promised {RERUN_S:g} s")
    return f"{victim} died with {len(lost)}; again elsewhere after {_seconds(max(took_ms))}"


def _called_again_ms(errand: Errand) -> int:
    """When the receiver got the task's second callback."""

    def look() -> int | None:
        calls = errand.stage.receiver.calls(errand.stage.key)
        return calls[1].at_ms if len(calls) > 1 else None

    return wait_for(look, f"another attempt of task {errand.task_id}")


def _without_nsq(stage: ClusterStage) -> str:
    nsqd = stage.cluster.nsqd
    held = stage.submit_held(len(stage.nodes), "-held-")
    before_ms = _stream(stage, "-before-")
    stage.tell(f"NSQ is stopped, while {len(held)} deliveries are under way", lasting=True)
    nsqd.stop()
    try:
        at_once_ms = _stream(stage, "-stop-")
        told = wait_for(lambda: _degraded(stage.nodes[0]), "a word of /readyz that NSQ is away")
        stage.tell(f"{stage.nodes[0]}, /readyz: {told}", lasting=True)
        without_ms = max(at_once_ms, _stream(stage, "-without-"))
        for errand in held:
            errand.answered()
            stage.settled(errand)
            errand.stage.expect_calls(1)
    finally:
        stage.cluster.start(nsqd)
    stage.tell("NSQ is started again", lasting=True)
    for node in stage.nodes:
        wait_for(_all_well(node), f"a word of {node} that all is well", within_s=_RETURN_S)
    after_ms = _stream(stage, "-after-")
    return f"at most {before_ms} ms late with NSQ, {without_ms} ms without, {after_ms} ms after"


def _without_redis(stage: ClusterStage) -> str:
    redis = stage.cluster.redis
    held = stage.submit_held(len(stage.nodes), "-held-")
    first_ms = stage.now_ms() + MS_PER_S
    due = {
        first_ms + number * _DUE_GAP_MS: stage.nodes[number % len(stage.nodes)]
        for number in range(_DUE)
    }
    waiting = {at: stage.submit(node, f"-due-{at}", due_ms=at) for at, node in due.items()}
    stage.tell(
        f"Redis is stopped, while {len(held)} deliveries are under way and {_DUE} tasks wait",
        lasting=True,
    )
    redis.stop()
    try:
        refusal = _expect_refusals(stage)
        stage.tell(f"a request that can't be checked is refused: {refusal}", lasting=True)
        for errand in held:
            errand.answered()
        late_ms = max(errand.stage.called() - at for at, errand in waiting.items())
        early_ms = min(errand.stage.called() - at for at, errand in waiting.items())
        stage.tell(f"{_DUE} tasks were delivered, at most {late_ms} ms late")
    finally:
        stage.cluster.start(redis)
    began = time.monotonic()
    stage.tell("Redis is started again, empty", lasting=True)
    fresh = [_accepted(stage, node) for node in stage.nodes]
    back = _seconds(round((time.monotonic() - began) * MS_PER_S))
    stage.tell(f"requests are accepted again, {back} later")
    for errand in [*held, *waiting.values(), *fresh]:
        stage.settled(errand)
        errand.stage.expect_calls(1)
    if early_ms < 0:
        raise Broken(f"a task came {-early_ms} ms early")
    _expect_punctual(late_ms)
    return f"{_DUE} due tasks at most {late_ms} ms late; requests accepted {back} after its return"


def _stream(stage: ClusterStage, part: str) -> int:
    """Submit tasks at a steady rate through all nodes in turn, until all are delivered;
    by how many milliseconds the latest was late."""
    submitted = []
    ends = time.monotonic() + _STREAM_S
    for number, node in enumerate(itertools.cycle(stage.nodes)):
        if time.monotonic() > ends:
            break
        at = stage.now_ms()
        submitted.append((at, stage.submit(node, f"{part}{number}")))
        pause(_STREAM_GAP_S)
    late_ms = max(errand.stage.called() - at for at, errand in submitted)
    for _, errand in submitted:
        stage.settled(errand)
        errand.stage.expect_calls(1)
    stage.tell(f"{len(submitted)} tasks submitted and delivered, at most {late_ms} ms late")
    _expect_punctual(late_ms)
    return late_ms


def _expect_punctual(late_ms: int) -> None:
    if late_ms > LATE_MS:
        raise Broken(f"delivered {late_ms} ms late, promised {LATE_MS} ms")


def _expect_refusals(stage: ClusterStage) -> str:
    """What the nodes say to a request while nobody can tell whether it is a repetition."""
    said = ""
    for node in stage.nodes:
        try:
            stage.submit(node, f"-refused-{node.number}")
        except RequestRefused as error:
            stage.through(node).expect("code", error.code, HTTPStatus.SERVICE_UNAVAILABLE)
            said = str(error)
        else:
            raise Broken(f"{node} accepted a request that it could not check")
    return said


def _accepted(stage: ClusterStage, node: Node) -> Errand:
    """A task of a node that accepts requests again."""

    def look() -> Errand | None:
        try:
            return stage.submit(node, f"-fresh-{node.number}")
        except RequestRefused:
            return None

    return wait_for(look, f"a request that {node} accepts", within_s=_RETURN_S)


def _degraded(node: Node) -> str | None:
    return node.ready_word()[1] or None


def _all_well(node: Node) -> Callable[[], bool | None]:
    return lambda: node.ready_word() == (HTTPStatus.OK, "") or None


def _listed(errands: list[Errand]) -> str:
    numbers = ", ".join(str(errand.task_id) for errand in errands)
    return f"task {numbers}" if len(errands) == 1 else f"tasks {numbers}"


def _listed_names(names: set[str]) -> str:
    return " and ".join(sorted(names))


def _seconds(ms: int) -> str:
    return f"{ms / MS_PER_S:.1f} s"


STORIES = (
    ClusterStory(key="killed", promise="run again elsewhere after kill -9", play=_killed),
    ClusterStory(key="nsq-away", promise="delivered while NSQ is away", play=_without_nsq),
    ClusterStory(key="redis-away", promise="delivered while Redis is away", play=_without_redis),
)

"""What the stories are played on, and what one of them is."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from taskd.cli.demo.receiver import Receiver
from taskd.cli.demo.stories import PATIENCE_S, Broken, Stage, Tell
from taskd.client import Client
from tools.clusterdemo.cluster import Cluster, Node

MS_PER_S = 1000
POLL_S = 0.05


_T = TypeVar("_T")


def wait_for(look: Callable[[], _T | None], what: str, *, within_s: float = PATIENCE_S) -> _T:
    """What the look gives, once it gives something.

    Raises:
        Broken: it gave nothing in time; names what was waited for.
    """
    deadline = time.monotonic() + within_s
    while True:
        found = look()
        if found is not None:
            return found
        if time.monotonic() > deadline:
            raise Broken(f"{what}: not seen within {within_s:g} s")
        pause()


def pause(seconds: float = POLL_S) -> None:
    """Wait a little before asking again: nothing here is told of what changes."""
    time.sleep(seconds)  # noqa: TID251 - a synchronous client can only ask again


@dataclass(frozen=True, kw_only=True)
class Errand:
    """One task of a story: a part of it that has its own callbacks."""

    stage: Stage
    """Submits it, and looks at it, through ``node``."""
    node: Node
    task_id: int

    def answered(self) -> None:
        """Let the receiver answer its held callback."""
        self.stage.receiver.release(self.stage.key)


@dataclass(frozen=True, kw_only=True)
class ClusterStage:
    """What a story is played on."""

    key: str
    cluster: Cluster
    clients: dict[int, Client]
    """Of each node by its number, all of them the same application's."""
    receiver: Receiver
    tell: Tell

    @property
    def nodes(self) -> tuple[Node, ...]:
        """All three."""
        return self.cluster.nodes

    def now_ms(self) -> int:
        """The time by this machine's clock."""
        return self.receiver.clock.now_ms()

    def through(self, node: Node, part: str = "", *, aloud: bool = True) -> Stage:
        """A stage of `taskd demo`, whose tasks go through one node."""
        return Stage(
            key=f"{self.key}{part}",
            client=self.clients[node.number],
            receiver=self.receiver,
            clock=self.receiver.clock,
            tell=self.tell if aloud else _quiet,
        )

    def submit(
        self, node: Node, part: str, *, due_ms: int | None = None, hold: bool = False
    ) -> Errand:
        """Submit a task of the story through a node; if it is to be held, its callback
        has no answer until `Errand.answered`."""
        stage = self.through(node, part, aloud=False)
        task_id = stage.submit(due_ms=due_ms, hold=hold)
        return Errand(stage=stage, node=node, task_id=task_id)

    def submit_held(self, count: int, part: str = "-") -> list[Errand]:
        """Submit tasks through all nodes in turn; back once the receiver has them all,
        and answers none."""
        pairs = zip(range(count), itertools.cycle(self.nodes), strict=False)
        errands = [self.submit(node, f"{part}{number}", hold=True) for number, node in pairs]
        for errand in errands:
            errand.stage.called()
        return errands

    def runner_of(self, errand: Errand, *, through: Node | None = None) -> Node:
        """The node that runs a task, as its detail names it.

        Args:
            through: the node that is asked; the one that accepted the task if None.
        """
        client = self.clients[(through or errand.node).number]

        def look() -> Node | None:
            name = client.detail(coroutine_id=errand.task_id)["task"]["node"]
            if name is None:
                return None
            try:
                return self.cluster.named(name)
            except LookupError:
                return None  # it was killed, and its lease has not ended yet

        return wait_for(look, f"the node of task {errand.task_id}")

    def settled(self, errand: Errand, *, through: Node | None = None) -> dict[str, Any]:
        """A task that was let go, once it has ended well.

        Raises:
            Broken: it has not.
        """
        stage = errand.stage
        if through is not None:
            stage = dataclasses.replace(stage, client=self.clients[through.number])
        task = stage.end_of(errand.task_id)
        stage.expect(f"state of task {errand.task_id}", task["state"], "succeeded")
        return task

    def others(self, *nodes: Node) -> Iterator[Node]:
        """The nodes but these."""
        return (node for node in self.nodes if node not in nodes)


def _quiet(text: str, *, lasting: bool = False) -> None:
    """Tell nothing: there are too many of them."""


@dataclass(frozen=True, kw_only=True)
class ClusterStory:
    """One story: its name, what is promised, and how it is played."""

    key: str
    promise: str
    play: Callable[[ClusterStage], str]
    """Returns what was seen; raises `Broken`."""

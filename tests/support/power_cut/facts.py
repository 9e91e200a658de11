"""What a daemon has told by a moment, and whether a store found after a power cut agrees.

What was told by an answer must not be undone: a task that exists, an end and the word of a
cancel, the number of an attempt, a nonce that was used. Nor may what a receiver has been sent:
the attempt under way is one that the store knows of, or a later cancel would say ``never_sent``.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tests.support.power_cut.recording import Event

ENDED = frozenset({"succeeded", "failed", "cancelled"})
_CREATES = frozenset({"create", "batch"})


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asked."""

    kind: str
    """``create``, ``batch``, ``cancel`` or ``detail``."""
    nonce: str
    """The hexadecimal digest of its nonce, as stores keep it."""
    task_id: int = 0


class Told(NamedTuple):
    """What has been told of a task."""

    state: str = ""
    """Its end, or nothing."""
    attempt: int = 0
    """The highest number that was told or sent."""
    word: str | None = None
    """The delivery word of its cancel."""
    ended: bool = False
    """Whether it was said to have ended, if not how."""


class Found(NamedTuple):
    """A task in a store."""

    state: str
    attempt: int
    word: str | None


@dataclass(frozen=True, slots=True)
class Content:
    """What is in a store."""

    tasks: Mapping[int, Found]
    nonces: frozenset[str]
    last_id: int
    """The highest id that was given to a task."""


@dataclass
class Facts:
    """What was told so far. Made of the events of a recording, one after the other.

    Args:
        asked: the requests of each client, in order; a client is known by its port.
        receiver: the port that tasks are delivered to.
    """

    asked: Mapping[int, Sequence[Request]]
    receiver: int
    tasks: dict[int, Told] = field(default_factory=dict)
    nonces: set[str] = field(default_factory=set)
    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """How many answers of each kind were good, and how many attempts were sent."""
    _parts: dict[tuple[int, int], bytes] = field(default_factory=lambda: defaultdict(bytes))
    _answered: dict[int, int] = field(default_factory=lambda: defaultdict(int))

    def note(self, event: Event) -> bool:
        """Take note of what is sent. Returns whether it tells what nothing before has told."""
        port = event.place
        if port == self.receiver:
            return self._note_attempt(bytes(event.data[:2048]))
        if port not in self.asked:
            return False
        whole = self._parts[event.pid, port] + event.data
        told = False
        while (end := whole.find(b"\r\n\r\n")) >= 0:
            status, *lines = whole[:end].decode("latin-1").split("\r\n")
            headers = {
                name.lower(): value.strip()
                for name, _, value in (line.partition(":") for line in lines)
            }
            length = int(headers.get("content-length", 0))
            if len(whole) < end + 4 + length:
                break
            body, whole = whole[end + 4 : end + 4 + length], whole[end + 4 + length :]
            if status.split()[1] == "100":
                continue
            request = self.asked[port][self._answered[port]]
            self._answered[port] += 1
            told |= self._note_answer(request, json.loads(body), headers)
        self._parts[event.pid, port] = whole
        return told

    def _note_attempt(self, data: bytes) -> bool:
        if not data.startswith(b"POST "):
            return False
        headers = {
            name.lower(): value.strip()
            for name, _, value in (
                line.partition(b":") for line in data.partition(b"\r\n\r\n")[0].split(b"\r\n")
            )
        }
        self.counts["attempt"] += 1
        return self._tell(int(headers[b"taskd-task-id"]), attempt=int(headers[b"taskd-attempt"]))

    def _note_answer(
        self, request: Request, answer: Mapping[str, Any], headers: Mapping[str, str]
    ) -> bool:
        data: Any = answer.get("data")
        kind, good = request.kind, answer["code"] == 0
        news = False
        match kind:
            case "create" if good:
                news = self._tell(int(data["coroutine_id"]))
            case "create" if "taskd-existing" in headers:
                task_id, state = headers["taskd-existing"].split()
                kind, news = "existing", self._tell(int(task_id), state=state)
            case "batch" if good:
                ids = [int(one["coroutine_id"]) for one in data["results"]]
                news = sum(map(self._tell, ids)) > 0
            case "cancel" if good:
                news = self._tell(request.task_id, state="cancelled", word=data["delivery"])
            case "cancel" if answer["msg"] == "Unknown!":
                kind, news = "ended", self._tell(request.task_id, ended=True)
            case "detail" if good and (task := data.get("task")):
                news = self._tell(
                    int(task["taskId"]),
                    state=task["state"],
                    attempt=task["attempt"],
                    word=task["delivery"],
                )
            case _:
                kind = f"{kind} refused"
        if kind in _CREATES:
            self.nonces.add(request.nonce)
        self.counts[kind] += 1
        return news

    def _tell(
        self,
        task_id: int,
        *,
        state: str = "",
        attempt: int = 0,
        word: str | None = None,
        ended: bool = False,
    ) -> bool:
        known = self.tasks.get(task_id)
        before = known or Told()
        told = self.tasks[task_id] = Told(
            state if state in ENDED else before.state,
            max(attempt, before.attempt),
            word or before.word,
            ended or before.ended,
        )
        return told != known


def losses(
    told: Mapping[int, Told], nonces: frozenset[str], found: Content, live: Content | None
) -> list[str]:
    """Return a sentence for each fact that a power cut has undone.

    Args:
        told: of each task.
        nonces: that were used.
        found: the store after the power cut.
        live: the store as the daemon itself saw it at that moment: what it had purged may be
            gone. None: it had purged nothing.
    """
    lost = [
        f"nonce {nonce} can be used again"
        for nonce in nonces - found.nonces
        if live is None or nonce in live.nonces
    ]
    if told and found.last_id < max(told):
        lost.append(f"the id {max(told)} would be given again, after {found.last_id}")
    for task_id, fact in told.items():
        task = found.tasks.get(task_id)
        if task is None:
            if live is None or task_id in live.tasks:
                lost.append(f"task {task_id}, told {fact}, is gone")
        elif (
            (fact.state and task.state != fact.state)
            or (fact.ended and task.state not in ENDED)
            or task.attempt < fact.attempt
            or (fact.word is not None and task.word != fact.word)
        ):
            lost.append(f"task {task_id}, told {fact}, is {task}")
    return lost

"""The Bus port: what nodes tell each other. Four parts: signals, notices, nonces, leadership."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import trio

from taskd.domain.model import CancelCertainty, Inspection, NonceUse, TaskState


@dataclass(frozen=True, slots=True)
class CancelSignal:
    """Ends the coroutine of a task whose cancel wish is durable."""

    task_id: int


@dataclass(frozen=True, slots=True)
class CancelReply:
    """The coroutine has unwound and its end is durable; ``state`` is None if no
    such coroutine lived there."""

    state: TaskState | None
    certainty: CancelCertainty | None


@dataclass(frozen=True, slots=True)
class InspectSignal:
    """Asks for a look into the coroutine of a task."""

    task_id: int


@dataclass(frozen=True, slots=True)
class InspectReply:
    """``inspection`` is None if no such coroutine lives there."""

    inspection: Inspection | None


Signal = CancelSignal | InspectSignal
Reply = CancelReply | InspectReply
SignalHandler = Callable[[Signal], Awaitable[Reply]]


@dataclass(frozen=True, slots=True)
class AppChanged:
    """An application is another than it was: what was read of it before is out of date."""

    app_id: int
    app_key: str


Notice = AppChanged
NoticeHandler = Callable[[Notice], None]


class Signalling(Protocol):
    """Signals between nodes, and their replies."""

    @property
    def node(self) -> str:
        """This node's name, unique among those alive and not used by any before."""
        ...

    async def serve(
        self, handler: SignalHandler, *, task_status: trio.TaskStatus[None] = ...
    ) -> None:
        """Answer the signals sent to this node, until cancelled: each as it comes,
        whatever becomes of the others. One may be handled again, and never twice at a
        time."""
        ...

    async def send(self, node: str, signal: Signal) -> Reply | None:
        """Send a signal and wait for its reply; None if the node is not alive or can't
        be reached, or its handler failed. Waits as long as the caller lets it, and the
        node takes: it may give up what it can't handle soon."""
        ...


class Announcing(Protocol):
    """Notices to all nodes, which nobody answers.

    A notice is best effort. It may be lost, for one node or for all: one that does not
    serve yet, that hears nothing at this moment, or that falls behind gets none, and is
    not told later. It may come twice, before or after others that were sent earlier, and
    before or after what it tells of is seen in the Store by a read that is under way. So
    whoever goes by notices has to find out by itself as well, after a time that it
    states; a notice only makes that sooner.
    """

    def on_notice(self, handler: NoticeHandler) -> None:
        """Have each notice given to this handler from here on, in place of an earlier
        one. It must not wait."""
        ...

    def announce(self, notice: Notice) -> None:
        """Tell all nodes, once what it tells of is durable. This node's handler has been
        called on return; where others can't be told, they are not. Never waits and never
        fails. What waits to be sent is bounded; more is dropped."""
        ...


class SharedNonces(Protocol):
    """Nonces that all nodes know."""

    async def use_nonce(self, nonce: NonceUse) -> bool:
        """Use a nonce up, for all nodes; False where the Store has to as well: this
        Bus keeps none, or can't tell by itself whether this one was used before.

        Raises:
            NonceUsed: it was used before.
            SignedBeforeEpoch: that can't be known, as it was signed too early.
            BusUnavailable: that can't be known now.
        """
        ...

    def unready(self) -> str | None:
        """Why signed requests can't be accepted now, or None."""
        ...


class Leadership(Protocol):
    """Which node's timer reads what falls due."""

    def leads_timer(self) -> bool:
        """Whether this node is the one whose timer reads what falls due.

        One leads, and soon another where it has ended. For a moment it may be none,
        or two where they learn of it one after the other; and where nodes can't hear
        of each other, each leads: what is read twice costs time only.
        """
        ...


class Bus(Signalling, Announcing, SharedNonces, Leadership, Protocol):
    """All four, which one connection carries."""

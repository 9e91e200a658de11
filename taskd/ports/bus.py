"""The Bus port: what nodes tell each other. Four parts: signals, notices, nonces, leadership."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

import trio

from taskd.domain.model import CancelCertainty, Inspection, NonceUse, TaskState
from taskd.domain.record import record


@record
class CancelSignal:
    """Ends the coroutine of a task whose cancel request is in the Store already."""

    task_id: int


@record
class CancelReply:
    """The coroutine has ended, and its settlement is in the Store; ``state`` is None if
    the node had no such coroutine."""

    state: TaskState | None
    certainty: CancelCertainty | None


@record
class InspectSignal:
    """Asks for a look into the coroutine of a task."""

    task_id: int


@record
class InspectReply:
    """The answer to an `InspectSignal`; ``inspection`` is None if the node has no such
    coroutine."""

    inspection: Inspection | None


Signal = CancelSignal | InspectSignal
Reply = CancelReply | InspectReply
SignalHandler = Callable[[Signal], Awaitable[Reply]]


@record
class AppChanged:
    """An application has changed: values of it that were read earlier are out of date."""

    app_id: int
    app_key: str


Notice = AppChanged
NoticeHandler = Callable[[Notice], None]


class Signalling(Protocol):
    """Signals between nodes, and their replies."""

    @property
    def node(self) -> str:
        """This node's name. No other node has it, or had it before."""
        ...

    async def serve(
        self, handler: SignalHandler, *, task_status: trio.TaskStatus[None] = ...
    ) -> None:
        """Answer the signals sent to this node, until cancelled. They are handled
        concurrently, and one that fails does not affect the others. The same signal may
        be handled several times, but never twice at once."""
        ...

    async def send(self, node: str, signal: Signal) -> Reply | None:
        """Send a signal and wait for its reply; None if the node is not alive, can't be
        reached, or its handler failed or took too long. There is no deadline here: the
        caller sets its own."""
        ...


class Announcing(Protocol):
    """Notices to all nodes. Nobody answers them.

    Notices are best effort:

    - One may be lost, for one node or for all. A node that does not serve yet, has lost
      its connection or falls behind does not get it later.
    - One may come twice, and notices may overtake each other.
    - A read of the Store that is under way when a notice comes may or may not see the
      change.

    So the receiver also has to find changes without notices, within a time that its
    documentation states. A notice only makes that sooner.
    """

    def on_notice(self, handler: NoticeHandler) -> None:
        """Call this handler with each notice from now on, instead of an earlier handler.
        It must not wait."""
        ...

    def announce(self, notice: Notice) -> None:
        """Send a notice to all nodes. Call it after the change is committed.

        This node's own handler is called before this returns. Nodes that can't be reached
        miss the notice. Never waits and never fails. The number of notices that wait to be
        sent is bounded; more are dropped."""
        ...


class SharedNonces(Protocol):
    """Nonces that all nodes know."""

    async def use_nonce(self, nonce: NonceUse) -> bool:
        """Use a nonce up, for all nodes. False: the Store has to use it up as well, since
        this Bus keeps no nonces, or can't tell alone whether this one was used before.

        Raises:
            NonceUsed: it was used before.
            SignedBeforeEpoch: it was signed before the time from which on the Bus knows
                the used nonces.
            BusUnavailable: the Bus can't be asked now.
        """
        ...

    def unready(self) -> str | None:
        """Why signed requests can't be accepted now, or None."""
        ...


class Leadership(Protocol):
    """Which node leads the timer: reads ahead the tasks that fall due."""

    def leads_timer(self) -> bool:
        """Whether this node leads the timer.

        One node leads, and another soon after the leader has ended. During a change none
        or two may lead for a moment. Where nodes can't reach each other, each of them
        leads. Two leaders cost time only: they read and publish the same tasks.
        """
        ...


class Bus(Signalling, Announcing, SharedNonces, Leadership, Protocol):
    """All four parts, in one adapter."""

"""The Queue port on NSQ: wake-ups that any node may take.

::

    publish ── outbox ── MPUB ──► nsqd ──► one of the nodes ── inbox ── lanes ── take
                 │ none can be used                               ▲
                 └────────────────────────────────────────────────┤
    backfill (what this node's sweep found) ──────────────────────┘

A message is a wake-up and nothing else. Without any nsqd this is a `LocalQueue`, and the
nodes find all work by their sweeps.

Apps take turns in the lanes; an nsqd delivers its messages in its own order. If an app's
messages wait there behind many of another app, sweeps find its tasks and bring them to
the lanes. Messages that a dying node has not answered go to another one after
``message_timeout_s``; those in the memory of an nsqd that dies are lost.
"""

from __future__ import annotations

import logging
import random
import ssl
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import trio
from nsq.response import Message  # type: ignore[import-untyped]  # it has no types

from taskd.clock import Clock
from taskd.domain.model import WHOLE, DueTask, Shard
from taskd.errors import InvalidInput
from taskd.queues.local import LocalQueue
from taskd.queues.nsq import ready as nsq_ready
from taskd.queues.nsq import wire
from taskd.queues.nsq.connection import ConnectionSettings, NsqConnection
from taskd.queues.nsq.discovery import Discovery
from taskd.queues.nsq.inbox import Inbox, InboxCounts, Received
from taskd.queues.nsq.link import NsqLink
from taskd.queues.nsq.outbox import Outbox
from taskd.queues.nsq.target import Address, NsqTarget
from taskd.queues.nsq.watch import Watch
from taskd.runtime.certificates import show_to_servers, why_no_authorities
from taskd.runtime.logs import log_event

logger = logging.getLogger("taskd.queues.nsq")

IN_FLIGHT_GRACE_MS = 900
"""How long a wake-up may be under way before sweeps look for its task. As they come once
a second, a lost wake-up costs less than two seconds."""

MOST_AT_ONCE = 500
"""Wake-ups that may be under way to this node, however much room it has: other nodes
have room too, and begin wake-ups faster than this many are delivered to one."""

_NOT_USABLE, _JUST_BACK = "can't be used", "is back, but not for long yet"
_GATHER_S = 0.002
_START_S = 1.0
_TURN_S = 0.5
_TOLD_BAD_S = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class NsqStatistics:
    """What an `NsqQueue` holds and has done."""

    connected: int
    """nsqd that can be used now."""
    ready: int
    """Messages that may be in flight to this node, from all nsqd together."""
    in_flight: int
    """Messages received and not answered."""
    waiting: int
    """Wake-ups in the lanes."""
    unpublished: int
    """Wake-ups that wait to be published."""
    published: int
    """Wake-ups that an nsqd has confirmed, since the start."""
    kept: int
    """Wake-ups that stayed here: no nsqd confirmed them, or only degraded ones."""
    bad: int
    """Messages that were no wake-ups."""
    connects: int
    """Connections made."""
    counts: InboxCounts
    """How many messages came, and how they were answered."""


class NsqQueue:
    """See the module, and `taskd.ports.queue.Queue`.

    Args:
        target: which nsqd.
        clock: the Store's; no wake-up is handed out before its task is due by it.
        node: this node's name, as nsqd's statistics show it.
        heartbeat_s, message_timeout_s, publish_s: see `ConnectionSettings`.
        lookup_every_s: how often nsqlookupd is asked.

    Raises:
        InvalidInput: one of the target's files can't be used.
    """

    def __init__(
        self,
        target: NsqTarget,
        *,
        clock: Clock,
        node: str,
        heartbeat_s: float = 5.0,
        message_timeout_s: float = 60.0,
        publish_s: float = 1.0,
        lookup_every_s: float = 30.0,
    ) -> None:
        self._clock = clock
        self._settings = ConnectionSettings(
            topic=target.topic,
            channel=target.channel,
            client_id=node,
            tls=_tls_context(target) if target.tls else None,
            shows_certificate=target.cert_file is not None,
            secret=target.secret,
            heartbeat_s=heartbeat_s,
            message_timeout_s=message_timeout_s,
            publish_s=publish_s,
        )
        self._discovery = Discovery(target, every_s=lookup_every_s, well=self._well)
        self._lanes = LocalQueue()
        self._inbox = Inbox(self._lanes)
        self._watch = Watch(topic=target.topic, channel=target.channel)
        self._outbox = Outbox(self._usable, self._reachable, self._watch, self._lanes.publish)
        self._links: dict[Address, NsqLink] = {}
        self._connections: list[NsqConnection] = []
        self._free = 0
        self._turn = 0
        self._turned_at = 0.0
        self._raise = trio.Event()
        self._bad = 0
        self._bad_told_at = float("-inf")

    def publish(self, tasks: Iterable[DueTask]) -> None:
        """See `Queue.publish`."""
        self._outbox.put(tasks)

    def backfill(self, tasks: Iterable[DueTask]) -> None:
        """See `Queue.backfill`."""
        tasks = list(tasks)
        self._watch.found(
            tasks, now=trio.current_time(), ready=self._was_ready, elsewhere=self._inbox.refuses
        )
        self._lanes.publish(tasks)
        self._balance(raising=False)

    def local_capacity(self) -> int:
        """See `Queue.local_capacity`: all are published, so that any node with room takes them."""
        return 0

    def in_flight_grace_ms(self) -> int:
        """See `Queue.in_flight_grace_ms`. The same while all nsqd are degraded: only the
        publishing node's `Watch` can note a lost wake-up, so no other should find it sooner."""
        return IN_FLIGHT_GRACE_MS if self._connections else 0

    def shard(self) -> Shard:
        """See `Queue.shard`: NSQ does not tell which other nodes there are."""
        return WHOLE

    def saturated(self) -> frozenset[int]:
        """See `Queue.saturated`."""
        return self._lanes.saturated()

    def take(self, limit: int, admit: Callable[[int], bool]) -> list[DueTask]:
        """See `Queue.take`."""
        tasks = self._inbox.take(limit, admit, now=trio.current_time())
        self._free = max(self._free - len(tasks), 0)
        return tasks

    def resume(self, app_ids: Iterable[int]) -> None:
        """See `Queue.resume`."""
        self._lanes.resume(app_ids)

    def room(self, free: int) -> None:
        """See `Queue.room`."""
        self._free = min(free, MOST_AT_ONCE)
        self._balance(raising=False)

    def finish(self, tasks: Iterable[DueTask]) -> None:
        """See `Queue.finish`."""
        done = self._inbox.finish(tasks, now=trio.current_time())
        # RDY first: while it is unchanged, each FIN would bring another message.
        self._balance(raising=False)
        for message in done:
            message.source.finish(message.message_id)

    def release(self, tasks: Iterable[DueTask]) -> None:
        """See `Queue.release`."""
        self._inbox.release(tasks)
        self._balance(raising=False)

    async def wait(self) -> None:
        """See `Queue.wait`."""
        await self._lanes.wait()

    def degraded(self) -> str | None:
        """See `Queue.degraded`."""
        reasons = [
            f"nsqd {link.address} {_JUST_BACK if link.up else _NOT_USABLE} ({link.degraded})"
            for link in self._links.values()
            if link.degraded is not None and not (link.up and self._watch.doubts(link.address))
        ]
        reasons += self._watch.degraded()
        if self._discovery.degraded is not None:
            reasons.append(self._discovery.degraded)
        reliable = len(self._reliable())
        if not reliable:
            instead = "each node looks for due tasks in the store once a second"
            return f"NSQ: {'; '.join(reasons) or 'no nsqd is connected'}: {instead}"
        if not reasons:
            return None
        return f"NSQ: {'; '.join(reasons)}: the {reliable} connected carry on"

    def statistics(self) -> NsqStatistics:
        """What the queue holds and has done."""
        return NsqStatistics(
            connected=len(self._connections),
            ready=sum(connection.rdy for connection in self._connections),
            in_flight=self._inbox.in_flight(),
            waiting=self._lanes.waiting,
            unpublished=len(self._outbox),
            published=self._outbox.published,
            kept=self._outbox.kept,
            bad=self._bad,
            connects=sum(link.connects for link in self._links.values()),
            counts=self._inbox.counts,
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """See `Queue.run`. Started once the first attempts to connect have ended, or
        after a second: a node works without NSQ too."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._discovery.run, lambda found: self._link(found, nursery))
            nursery.start_soon(self._outbox.run)
            nursery.start_soon(self._tend)
            with trio.move_on_after(_START_S):
                await self._discovery.asked.wait()
                for link in list(self._links.values()):
                    await link.tried.wait()
            task_status.started()

    def _link(self, addresses: Iterable[Address], nursery: trio.Nursery) -> None:
        for address in addresses:
            if address not in self._links:
                link = NsqLink(
                    address,
                    self._settings,
                    on_up=self._on_up,
                    on_leave=self._on_leave,
                    on_down=self._on_down,
                    on_messages=self._on_messages,
                    wanted=self._discovery.wanted,
                )
                self._links[address] = link
                nursery.start_soon(self._run_link, link)

    async def _run_link(self, link: NsqLink) -> None:
        try:
            await link.run()
        finally:
            del self._links[link.address]
            self._watch.gone(link.address)

    def _well(self) -> bool:
        return all(link.degraded is None for link in self._links.values())

    def _reliable(self) -> Sequence[NsqConnection]:
        """Connections to nsqd that are not degraded."""
        if self._watch.easy:
            return self._connections
        return [one for one in self._connections if not self._watch.doubts(one.address)]

    def _reachable(self) -> bool:
        if self._watch.easy:
            return bool(self._connections)
        now = trio.current_time()
        return any(not self._watch.rests(one.address, now=now) for one in self._connections)

    def _usable(self) -> Sequence[NsqConnection]:
        """Connections to publish to, the preferred ones first: those not degraded, except
        for a probe now and then."""
        if self._watch.easy:
            return self._connections
        now = trio.current_time()
        reliable = list(self._reliable())
        doubtful = [
            one
            for one in self._connections
            if one not in reliable and not self._watch.rests(one.address, now=now)
        ]
        if reliable and doubtful and self._watch.probes(now=now):
            return doubtful + reliable
        return reliable + doubtful

    def _was_ready(self, address: Address, since: float) -> bool:
        return any(
            one.ready_since <= since and one.full_at < since
            for one in self._connections
            if one.address == address
        )

    def _on_up(self, connection: NsqConnection) -> None:
        # At a random place: nodes publish to their first, and should not all have the same.
        place = random.randint(0, len(self._connections))  # noqa: S311 - no secret
        self._connections.insert(place, connection)
        self._raise.set()

    def _on_leave(self, connection: NsqConnection) -> None:
        # RDY first: while there is room, messages sent back would return at once.
        connection.set_ready(0)
        self._inbox.give_back(connection)

    def _on_down(self, connection: NsqConnection) -> None:
        if connection in self._connections:
            self._connections.remove(connection)
            self._watch.forget(connection.address)
            self._discovery.hurry()
        self._inbox.lose(connection)
        self._raise.set()

    def _on_messages(self, connection: NsqConnection, messages: list[Message]) -> None:
        now, now_ms = trio.current_time(), self._clock.now_ms()
        for message in messages:
            task = wire.decode_body(message.body)
            if task is None:
                self._refuse(connection, message, now)
                continue
            received = Received(
                source=connection,
                message_id=message.id,
                attempts=message.attempts,
                task=task,
                since=now,
            )
            self._watch.arrived(connection.address, task, now=now, now_ms=now_ms)
            self._inbox.arrive(received, now_ms=now_ms)
        self._note_full(connection)
        self._raise.set()

    def _note_full(self, connection: NsqConnection) -> None:
        in_flight = self._inbox.in_flight_on(connection)
        if nsq_ready.nearly_full(connection.rdy, in_flight):
            connection.full_at = trio.current_time()

    def _refuse(self, connection: NsqConnection, message: Message, now: float) -> None:
        self._bad += 1
        connection.finish(message.id)
        if now - self._bad_told_at >= _TOLD_BAD_S:
            self._bad_told_at = now
            log_event(
                logger,
                logging.WARNING,
                "a message is no wake-up of this version's, it is dropped: "
                "does something else publish to the topic?",
                nsqd=str(connection.address),
                topic=self._settings.topic,
                bytes=len(message.body),
                dropped=self._bad,
            )

    async def _tend(self) -> None:
        pause = 0.0
        while True:
            with trio.move_on_after(pause):
                await self._raise.wait()
                # Changes within this moment become one command.
                await trio.sleep(_GATHER_S)
            self._raise = trio.Event()
            now = trio.current_time()
            pause = self._inbox.tend(now=now, now_ms=self._clock.now_ms(), room=self._free > 0)
            self._watch.tend(now=now)
            self._take_turns(now)
            self._balance(raising=True)

    def _take_turns(self, now: float) -> None:
        if now - self._turned_at >= _TURN_S:
            self._turned_at = now
            self._turn += 1

    def _balance(self, *, raising: bool) -> None:
        """Let RDY follow the free room. Lowered at once; raised only with ``raising``, and
        otherwise in the next round of `_tend`."""
        connections = self._connections
        spare = nsq_ready.spare_room(free=self._free, waiting=self._inbox.waiting_without_message())
        parts = nsq_ready.share(spare, len(connections), self._turn)
        for connection, part in zip(connections, parts, strict=True):
            wanted = nsq_ready.target(part, self._inbox.occupied(connection), connection.max_rdy)
            if nsq_ready.worth_lowering(connection.rdy, wanted):
                connection.set_ready(wanted)
                self._note_full(connection)
            elif nsq_ready.worth_raising(connection.rdy, wanted):
                if raising:
                    connection.set_ready(wanted)
                else:
                    self._raise.set()


def _tls_context(target: NsqTarget) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_default_certs()
    if target.ca_file is not None:
        try:
            context.load_verify_locations(cafile=target.ca_file)
        except OSError as error:
            reason = why_no_authorities(target.ca_file, error)
            raise InvalidInput("url", f"names the ca_file {target.ca_file}: {reason}") from error
    if target.cert_file is not None and target.key_file is not None:
        show_to_servers(context, target.cert_file, target.key_file)
    return context

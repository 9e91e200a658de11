"""A node's heartbeat, once a second: it shows that the node is alive, takes or renews the
lead of the timer, and finds out whether Redis can be used.

The lead is a key that lives for `LEAD_MS`: a node that finds none sets it, and its owner
renews it. The owner counts on it until `_DOUBT_S` before the key could expire, counted
from before the renewal was sent: so two never lead at once while Redis works. After a
leader's death another leads within `LEAD_MS` and a second: when the key has expired, and
that node's next heartbeat has come. A leader that stops in order deletes the key.

If Redis has not answered for longer than the key lives, every node leads: doubled
wake-ups do no harm, but without any leader tasks would be late.

Every new leadership has a number greater than any before, which the log tells. It could
serve as a fencing token; nothing needs one, since two leaders do no harm.
"""

from __future__ import annotations

import logging
import random

import trio

from taskd.buses.redis.health import Health
from taskd.buses.redis.link import Command, Link
from taskd.buses.redis.nonces import Nonces
from taskd.clock import since_boot_ns
from taskd.errors import BusUnavailable
from taskd.runtime.logs import log_event

logger = logging.getLogger("taskd.buses.redis")

LEAD_MS = 3_000
ALIVE_MS = 4_000
HEARTBEAT_S = 1.0

_DOUBT_S = 0.5
_HURRY_S = 0.1
_JITTER = 0.1
_FAREWELL_S = 0.1

LEAD = """
local kept = redis.call('GET', KEYS[1])
if kept then
  local number, owner = string.match(kept, '^(%d+) (.*)$')
  if owner == ARGV[1] then
    redis.call('PEXPIRE', KEYS[1], ARGV[2])
    return tonumber(number)
  end
  if number then return 0 end
end
local number = redis.call('INCR', KEYS[2])
redis.call('SET', KEYS[1], number .. ' ' .. ARGV[1], 'PX', ARGV[2])
return number
"""
"""Renews the lead, or takes it if no node has it.

KEYS: the lead's, the numbers'. ARGV: the node, the key's life in ms. Returns the
leadership's number, or 0 if another node leads.
"""

LEAVE = """
local kept = redis.call('GET', KEYS[1])
if kept and string.match(kept, '^%d+ (.*)$') == ARGV[1] then redis.call('DEL', KEYS[1]) end
return redis.call('DEL', KEYS[2])
"""
"""Gives the lead up, if it is this node's, and deletes the node's presence.

KEYS: the lead's, the presence's. ARGV: the node.
"""


def _now_s() -> float:
    # Not Trio's time: it may stand still while the machine is suspended, when the key's
    # life goes on.
    return since_boot_ns() / 1e9


class Pulse:
    """See the module.

    Args:
        link: its own.
        nonces: each heartbeat begins their epoch if there is none.
        health: where each heartbeat notes whether Redis works.
        node: this node's name.
        prefix: of its keys.
    """

    def __init__(
        self, link: Link, nonces: Nonces, health: Health, *, node: str, prefix: str
    ) -> None:
        self._link = link
        self._nonces = nonces
        self._health = health
        self._node = node
        self._lead_key = f"{prefix}:lead"
        self._numbers_key = f"{prefix}:lead:number"
        self._presence_key = presence_key(prefix, node)
        self._leads_until = 0.0
        self._reached_at = _now_s()
        self._running = False
        self.number = 0
        """The number of this node's leadership; 0 while it has none."""

    def leads(self) -> bool:
        """See `Bus.leads_timer`."""
        if not self._running:
            return False
        now = _now_s()
        return now < self._leads_until or now - self._reached_at > LEAD_MS / 1000

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Send heartbeats until cancelled. Started after the first, whether it failed or
        not."""
        self._running = True
        self._reached_at = _now_s()
        try:
            await self._heartbeat()
            task_status.started()
            while True:
                await self._pause()
                await self._heartbeat()
        finally:
            self._running = False
            await self._leave()

    async def _pause(self) -> None:
        self._health.hurry = trio.Event()
        await trio.sleep(_HURRY_S)
        # At random, so that the heartbeats of many nodes spread, after an outage too.
        with trio.move_on_after(HEARTBEAT_S * random.uniform(1 - _JITTER, 1) - _HURRY_S):  # noqa: S311 - no secret
            await self._health.hurry.wait()

    async def _heartbeat(self) -> None:
        sent_at = _now_s()
        try:
            _, number = await self._link.call(self._presence(), self._lead())
            self._reached_at = _now_s()
            self._note_lead(int(number), sent_at)
            await self._nonces.ensure_epoch(self._link)
        except BusUnavailable as error:
            self._health.fail(error)
        else:
            self._health.recover()

    def _presence(self) -> Command:
        return ("SET", self._presence_key, "1", "PX", ALIVE_MS)

    def _lead(self) -> Command:
        return ("EVAL", LEAD, 2, self._lead_key, self._numbers_key, self._node, LEAD_MS)

    def _note_lead(self, number: int, sent_at: float) -> None:
        self._leads_until = sent_at + LEAD_MS / 1000 - _DOUBT_S if number else 0.0
        if number == self.number:
            return
        if number:
            log_event(logger, logging.INFO, "leads the timer", node=self._node, leadership=number)
        else:
            log_event(logger, logging.INFO, "leads the timer no more", node=self._node)
        self.number = number

    async def _leave(self) -> None:
        """Let another node lead at once."""
        if self._health.unready is not None:
            return
        keys = (self._lead_key, self._presence_key)
        try:
            with trio.move_on_after(_FAREWELL_S, shield=True):
                await self._link.call(("EVAL", LEAVE, 2, *keys, self._node))
        except BusUnavailable as error:
            logger.info("the lead was not given up, it ends by itself: %s", error)


def presence_key(prefix: str, node: str) -> str:
    """The name of the key that exists while a node is alive."""
    return f"{prefix}:node:{node}"

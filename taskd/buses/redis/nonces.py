"""Nonces in Redis, and the epoch that tells when they were forgotten.

A nonce is a key that is set only where there is none, and expires. Redis may
forget: it is flushed, restarted, restored from an older snapshot, or a replica
takes over that had not heard of the last ones. A nonce that was used before would
then be taken again, while the request it belongs to is still valid. So there is an
epoch: the moment from which on Redis is known to remember. What was signed before
is refused.

The epoch belongs to a server process and its history: the key holds their ids
(``run_id``, ``master_replid``). Where the key is missing, or holds others, a new
epoch begins, in two steps::

    nothing, or another server's ──► pending, with a token ──► kept, from a moment on
             (any call of NONCES)            (SETTLE)

The moment is read from the clock after the answer "pending" has come, so after
the forgetting, however long a call was under way; and the token lets only those
settle it who saw this very one pending. Until then no nonce is taken. `_MARGIN_MS`
is for what the clocks of two nodes may differ by.

All of that is looked at in the same script that sets the nonces: nothing can happen
in between.

What the epoch can't tell: a request signed by a clock that is ahead may have been
used before the epoch began and still look younger. So of such a request the Store
keeps a record too, and is asked about all that might have been one: `kept_alone`.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from taskd.buses.redis.batcher import Batcher
from taskd.buses.redis.health import Health
from taskd.buses.redis.link import CLUSTER_MODE, Answer, Command, Link
from taskd.clock import Clock, iso_utc
from taskd.domain.model import NonceUse
from taskd.errors import BusUnavailable, NonceUsed, SignedBeforeEpoch

BATCH = 256
"""Nonces that go in one script."""

_MARGIN_MS = 1_000
_TRIES = 5
_SECOND_MS = 1_000

NONCES = """
local server = redis.call('INFO', 'server')
local run = string.match(server, 'run_id:(%w+)')
local history = string.match(redis.call('INFO', 'replication'), 'master_replid:(%w+)')
if not run or not history then return {'unknown'} end
if string.match(server, '\\n%w+_mode:(%w+)') == 'cluster' then return {'cluster'} end
local memory = redis.call('INFO', 'memory')
local policy = string.match(memory, 'maxmemory_policy:([%w-]+)')
if string.match(memory, 'maxmemory:(%d+)') ~= '0' and policy ~= 'noeviction' then
  redis.call('DEL', KEYS[1])
  return {'evicts', policy or '?'}
end
local id = run .. ' ' .. history
local epoch = redis.call('HMGET', KEYS[1], 'server', 'token', 'from')
if epoch[1] ~= id then
  redis.call('DEL', KEYS[1])
  redis.call('HSET', KEYS[1], 'server', id, 'token', ARGV[1])
  return {'pending', ARGV[1]}
end
if not epoch[3] then return {'pending', epoch[2]} end
local from = tonumber(epoch[3])
local answers = {'kept', epoch[3]}
for i = 2, #KEYS do
  if tonumber(ARGV[2 * i - 2]) < from then
    answers[i + 1] = 'early'
  elseif redis.call('SET', KEYS[i], '1', 'NX', 'PX', ARGV[2 * i - 1]) then
    answers[i + 1] = 'fresh'
  else
    answers[i + 1] = 'used'
  end
end
return answers
"""
"""Makes sure of the epoch, then uses nonces up.

KEYS: the epoch's, then the nonces'. ARGV: a token for an epoch that begins, then
two for each nonce: when it was signed, and how long it is kept, in ms.
"""

SETTLE = """
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return 0 end
return redis.call('HSETNX', KEYS[1], 'from', ARGV[2])
"""
"""Lets an epoch begin, if it is still this one that is pending.

KEYS: the epoch's. ARGV: its token, the moment.
"""


@dataclass(frozen=True, slots=True)
class _Use:
    nonce: NonceUse
    keep_ms: int


@dataclass(frozen=True, slots=True)
class _Used:
    word: bytes
    epoch: int


class Nonces:
    """See the module.

    Args:
        link: its own.
        clock: the one that requests are judged by.
        health: where failures are told.
        prefix: of its keys.
    """

    def __init__(self, link: Link, clock: Clock, health: Health, *, prefix: str) -> None:
        self._link = link
        self._health = health
        self._clock = clock
        self._prefix = prefix
        self._epoch_key = f"{prefix}:epoch"
        self.epoch: int | None = None
        """The epoch that was last heard of, in ms."""
        self.batcher = Batcher[_Use, _Used](self._carry, limit=BATCH)

    async def use(self, nonce: NonceUse) -> bool:
        """See `Bus.use_nonce`. False: the Store has to keep it, too.

        Raises:
            NonceUsed, SignedBeforeEpoch, BusUnavailable: as there.
        """
        # The clock is read before anything is sent: what counts is whether the
        # nonce's use can have come before it was signed.
        now = self._clock.now_ms()
        used = await self.batcher.call(_Use(nonce, max(1, nonce.expires_at - now)))
        if used.word == b"used":
            raise NonceUsed("the nonce was used before")
        if used.word == b"early":
            raise SignedBeforeEpoch(
                "the request was signed before the bus began to keep nonces, at "
                f"{iso_utc(used.epoch)}: sign it anew"
            )
        return kept_alone(nonce, now=now, epoch=used.epoch)

    async def ensure_epoch(self, link: Link) -> None:
        """Let an epoch begin where there is none.

        Raises:
            BusUnavailable: it can't, or the server can't be trusted with nonces.
        """
        await self._run_script(link, [])

    def unready(self) -> str | None:
        """Why what is signed now would be refused, or None."""
        if self.epoch is None:
            return "the bus keeps no nonces yet"
        # Timestamps are whole seconds: the first that is not before the epoch.
        first = -(-self.epoch // _SECOND_MS) * _SECOND_MS
        left = first - self._clock.now_ms()
        if left <= 0:
            return None
        return (
            f"the bus began to keep nonces at {iso_utc(self.epoch)} by the database's clock: "
            f"what is signed before is refused, so all requests for {left / 1000:.1f} s"
        )

    async def _carry(self, uses: Sequence[_Use]) -> list[_Used]:
        try:
            epoch, words = await self._run_script(self._link, uses)
        except BusUnavailable as error:
            self._health.fail(error)
            raise
        return [_Used(word, epoch) for word in words]

    async def _run_script(self, link: Link, uses: Sequence[_Use]) -> tuple[int, list[bytes]]:
        for _ in range(_TRIES):
            (answer,) = await link.call(self._nonces_command(uses))
            words = _words(answer)
            match words[0]:
                case b"kept" if len(words) == len(uses) + 2 and words[1].isdigit():
                    self.epoch = int(words[1])
                    return self.epoch, words[2:]
                case b"pending" if len(words) == 2:  # noqa: PLR2004 - the word, the token
                    # No nonce was taken. The clock is read only now: see the module.
                    self.epoch = None
                    begins = self._clock.now_ms() + _MARGIN_MS
                    await link.call(("EVAL", SETTLE, 1, self._epoch_key, words[1], begins))
                case _:
                    self.epoch = None
                    raise BusUnavailable(_unfit(words))
        raise BusUnavailable("Redis forgets all it is told: no epoch of nonces could begin")

    def _nonces_command(self, uses: Sequence[_Use]) -> Command:
        keys = [self._key(use.nonce) for use in uses]
        arguments = [part for use in uses for part in (use.nonce.signed_at, use.keep_ms)]
        token = secrets.token_hex(8)
        return ("EVAL", NONCES, len(keys) + 1, self._epoch_key, *keys, token, *arguments)

    def _key(self, nonce: NonceUse) -> str:
        # The length says where the one ends and the other begins.
        return f"{self._prefix}:nonce:{len(nonce.app_key)}:{nonce.app_key}:{nonce.nonce}"


def kept_alone(nonce: NonceUse, *, now: int, epoch: int) -> bool:
    """Whether Redis' word on a nonce that it took is enough.

    It is not for one signed in the future, of which the Store has to keep a record,
    and for one that may have been used in its future before the epoch, of which the
    Store may have one. ``now`` is a moment before it was used. A request is valid
    for less time than its nonce is kept, so it can't have been used longer before
    it was signed than that.
    """
    ahead = max(nonce.signed_at, nonce.signed_latest) > now
    return not ahead and nonce.signed_at >= epoch + (nonce.expires_at - now)


def _words(answer: Answer) -> list[bytes]:
    if not isinstance(answer, list) or not answer:
        return [b""]
    return [word for word in answer if isinstance(word, bytes)]


def _unfit(words: list[bytes]) -> str:
    match words[0]:
        case b"evicts":
            policy = words[1].decode(errors="replace")
            return (
                f"Redis may drop nonces before their time (maxmemory-policy {policy}): "
                "set maxmemory-policy to noeviction, or maxmemory to 0"
            )
        case b"cluster":
            return f"Redis {CLUSTER_MODE}"
        case b"unknown":
            return "Redis does not tell its run_id or master_replid, so a loss could not be noticed"
    return "Redis answered what the bus can't read: is it Redis, of version 7?"

"""Nonces in Redis, and the epoch: the time from which on Redis remembers them.

A used nonce is a key that expires, set only if it does not exist yet. Redis may lose
keys: it is flushed, restarted, restored from an older snapshot, or replaced by a replica
that had not received the last ones. Used nonces would then be accepted again while
their requests are still valid. So there is an epoch: the moment from which on Redis is
known to remember all nonces. Requests signed before it are refused.

The epoch belongs to a server process and its history: its key holds their ids
(``run_id``, ``master_replid``). If the key is missing, or holds other ids, a new epoch
begins, in two steps::

    nothing, or another server's ──► pending, with a token ──► kept, from a moment on
             (any call of NONCES)            (SETTLE)

The moment is read from the clock after the answer "pending" has come: so it lies after
the loss, however long a call was under way. The token lets only callers settle the epoch
that saw this very one pending. Until then no nonce is accepted. `_MARGIN_MS` covers the
difference between the clocks of two nodes.

One script checks all of that and sets the nonces, so nothing can happen in between.

The epoch leaves one gap: a request signed by a clock that is ahead may have been used
before the epoch began, although its timestamp is later. So the Store records the nonces
of requests that are ahead, too, and is asked about all that might be among them: see
`kept_alone`.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from taskd.buses.redis.batcher import Batcher
from taskd.buses.redis.health import Health
from taskd.buses.redis.link import CLUSTER_MODE, Answer, Command, Link
from taskd.clock import Clock, iso_utc
from taskd.domain.model import NonceUse
from taskd.domain.record import record
from taskd.errors import BusUnavailable, NonceUsed, SignedBeforeEpoch

BATCH = 256
"""The most nonces of one script call."""

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
"""Checks the epoch, or begins one, then uses nonces up.

KEYS: the epoch's, then the nonces'. ARGV: a token, for an epoch that begins; then two
for each nonce: when it was signed, in Unix ms, and how long it is kept, in ms.
"""

SETTLE = """
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return 0 end
return redis.call('HSETNX', KEYS[1], 'from', ARGV[2])
"""
"""Settles a pending epoch, if it is still the one with this token.

KEYS: the epoch's. ARGV: its token, the moment in Unix ms.
"""


@record
class _Use:
    nonce: NonceUse
    keep_ms: int


@record
class _Used:
    word: bytes
    epoch: int


class Nonces:
    """See the module.

    Args:
        link: its own.
        clock: the clock that the timestamps of requests are checked against.
        health: where failures are noted.
        prefix: of its keys.
    """

    def __init__(self, link: Link, clock: Clock, health: Health, *, prefix: str) -> None:
        self._link = link
        self._health = health
        self._clock = clock
        self._prefix = prefix
        self._epoch_key = f"{prefix}:epoch"
        self.epoch: int | None = None
        """The epoch that Redis last told, in Unix ms; None while none is settled."""
        self.batcher = Batcher[_Use, _Used](self._carry, limit=BATCH)

    async def use(self, nonce: NonceUse) -> bool:
        """See `Bus.use_nonce`. False: the Store has to keep the nonce, too.

        Raises:
            NonceUsed, SignedBeforeEpoch, BusUnavailable: as there.
        """
        # Read before the call is sent: `kept_alone` needs a moment before the nonce's use.
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
        """Begin an epoch if there is none.

        Raises:
            BusUnavailable: none could begin, or the server is not fit to keep nonces.
        """
        await self._run_script(link, [])

    def unready(self) -> str | None:
        """Why requests signed now would be refused, or None."""
        if self.epoch is None:
            return "the bus keeps no nonces yet"
        # Timestamps are whole seconds: this is the first not before the epoch.
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
        # The length tells where the app key ends and the nonce begins.
        return f"{self._prefix}:nonce:{len(nonce.app_key)}:{nonce.app_key}:{nonce.nonce}"


def kept_alone(nonce: NonceUse, *, now: int, epoch: int) -> bool:
    """Whether Redis alone can vouch for a nonce that it accepted as fresh.

    It can't in two cases, and the Store has to keep the nonce too:

    - The request was signed in the future, by a clock that is ahead.
    - The request may have been used before the epoch, by such a clock: the Store may have
      its record. It can be used no longer before its timestamp than its nonce is kept,
      since a request is valid for less time than that.

    Args:
        nonce: the accepted nonce.
        now: a moment before its use, in Unix ms.
        epoch: in Unix ms.
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

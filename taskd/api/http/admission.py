"""Decides which connections stay open where there are too many.

::

                    ┌─────────────── stranger ────────────────┐      ┌─ signer ─┐
      accepted ─────► waiting ─► served ─► resting ─► waiting │      │          │
                    └───────────────────┬──▲──────────────────┘      └──▲──┬────┘
                                        │  └─── a request not signed ───┼──┘
                                        └── a head signed right ────────┘

A **stranger** is a connection whose latest request was not signed right, or that has sent
none: it may be anything from a TLS handshake to half a body. Where others need room,
strangers are closed in this order: one that rests (has had its answer); of the address with
the most waiting ones, the one that has waited longest; one that is served (has sent a whole
request). One that has been served for `GRACE_S` goes before one that came after it. So an
attack from one address, or from hundreds, pushes out its own connections, and a newcomer is
heard. Signers can have `most` places, and never the `reserve` beyond. Health checks come as
strangers, and are answered where all else is full.

A **signer** is never closed for a stranger. It is closed for another signer where all
places of signers are taken: first the one that has been idle longest; else, of those that
wait for their client, one of the application with the most of these. Where that application
has only one more than the newcomer's, the newcomer is refused.

`sweep` closes strangers that have waited for more than `GRACE_S`, where their address has
more than `per_address` that wait. A connection from a trusted address, such as a proxy's,
counts as an address of its own.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

import trio

from taskd.api.http.addresses import origin_of

GRACE_S = 1.0
"""How long a stranger may wait before `per_address` applies to it, and be served before a
newcomer is preferred. Many that come at once and soon send their requests are no attack."""

_PER_ADDRESS = 8
"""One address may have as many strangers that wait as the reserve divided by this."""

_AT_ONCE = 64

_A_SWEEP = 50
"""Connections of one address that a sweep closes at most. Most attackers connect again at
once: to close more would only make them do so faster."""


class Stage(Enum):
    """What a connection waits for."""

    IDLE = auto()
    """The first byte of a request."""
    HEAD = auto()
    """The rest of its line and headers."""
    BODY = auto()
    """The rest of its body."""
    IN_HAND = auto()
    """Its answer."""
    SENDING = auto()
    """Room to send its answer."""
    LINGERING = auto()
    """The client's close: the last answer is sent."""


_FOR_ITS_CLIENT = frozenset({Stage.HEAD, Stage.BODY, Stage.SENDING})


class NoPlace(Exception):
    """All places of signers are taken, and none of them may be closed for the newcomer."""


class Guest(Protocol):
    """A connection."""

    @property
    def stage(self) -> Stage:
        """What it waits for."""
        ...

    @property
    def idle_since(self) -> float:
        """When its last request ended."""
        ...

    def give_up(self) -> None:
        """Close it, to make room for others. Must not wait."""
        ...


class _Standing(Enum):
    WAITING = auto()
    SERVED = auto()
    RESTING = auto()
    SIGNER = auto()


@dataclass(slots=True)
class _Seat:
    origin: Hashable
    standing: _Standing
    since: float
    holder: Hashable = None
    """The application that a signer is of, or the administrator; None before it has signed."""
    claim: Hashable = None
    """Names the signed request whose body it waits for."""


class Admission:
    """See the module.

    Args:
        most: signers at a time.
        reserve: further connections, of strangers only.
        trusted: networks whose addresses are not counted.
        now: a monotonic clock, in seconds.
    """

    def __init__(
        self,
        most: int,
        reserve: int,
        *,
        trusted: Iterable[str] = (),
        now: Callable[[], float] = trio.current_time,
    ) -> None:
        self.most = most
        self.reserve = reserve
        self.per_address = max(1, reserve // _PER_ADDRESS)
        self.given_up = 0
        """Connections that were closed for others so far."""
        self.refused = 0
        """Signed requests that there was no place for."""
        self._now = now
        self.trust(trusted)
        self._seats: dict[Guest, _Seat] = {}
        self._signers: dict[Guest, None] = {}
        self._resting: dict[Guest, None] = {}
        self._served: dict[Guest, None] = {}
        self._queues = _Queues()
        self._claims: set[Hashable] = set()

    def trust(self, networks: Iterable[str]) -> None:
        """Trust these networks from now on. Connections that are open count as before."""
        self._trusted = [ipaddress.ip_network(network) for network in networks]

    @property
    def at_once(self) -> int:
        """How many connections may be accepted before those that came get a turn to run."""
        return max(1, min(_AT_ONCE, self.reserve // 4))

    @property
    def full(self) -> bool:
        """Whether a signer that comes now pushes out another, or is refused."""
        return len(self._signers) >= self.most

    @property
    def busiest(self) -> str:
        """The address with the most waiting strangers."""
        origin = self._queues.longest()
        return origin if isinstance(origin, str) else ""

    def enter(self, guest: Guest, address: str) -> None:
        """Give an accepted connection a place, if need be by closing another."""
        while len(self._seats) >= self.most + self.reserve:
            self.make_room()
        seat = _Seat(self._origin(guest, address), _Standing.WAITING, self._now())
        self._seats[guest] = seat
        self._queues.add(seat.origin, guest)

    def make_room(self) -> None:
        """Close one stranger's connection."""
        stranger = next(iter(self._resting), None) or self._queues.first()
        served = next(iter(self._served), None)
        if served is not None and (stranger is None or self._is_overdue(served, stranger)):
            stranger = served
        if stranger is not None:
            self._give_up(stranger)

    def _is_overdue(self, served: Guest, other: Guest) -> bool:
        """Whether a served stranger has been so for `GRACE_S`, and since before the other
        came."""
        since = self._seats[served].since
        return since <= self._now() - GRACE_S and since < self._seats[other].since

    def leave(self, guest: Guest) -> None:
        """Note that a connection has ended."""
        self.settle(guest)
        seat = self._seats.pop(guest, None)
        if seat is not None:
            self._stand_up(guest, seat)

    def wait(self, guest: Guest) -> None:
        """Note that a stranger that rested has begun a request."""
        self._move(guest, _Standing.WAITING)

    def serve(self, guest: Guest) -> None:
        """Note that a stranger has sent a whole request."""
        self._move(guest, _Standing.SERVED)

    def rest(self, guest: Guest) -> None:
        """Note that a stranger has had its answer, or any connection its last one."""
        self._move(guest, _Standing.RESTING)

    def sign(self, guest: Guest, holder: Hashable, claim: Hashable = None) -> bool:
        """Note that a connection's request is signed right, as far as its head tells.
        Returns whether the connection counts as a signer.

        Args:
            guest: the connection.
            holder: the application.
            claim: names the request while its body is awaited. Requests with the same claim
                can't all be right, so only the first counts.

        Raises:
            NoPlace: see there.
        """
        seat = self._seats.get(guest)
        if seat is None:
            return False  # it is being closed
        self.settle(guest)
        if claim is not None and claim in self._claims:
            self._move(guest, _Standing.WAITING)
            return False
        if seat.standing is not _Standing.SIGNER:
            if self.full and not self._push_out(holder):
                self.refused += 1
                raise NoPlace
            self._move(guest, _Standing.SIGNER)
        seat.holder = holder
        if claim is not None:
            self._claims.add(claim)
            seat.claim = claim
        return True

    def settle(self, guest: Guest) -> None:
        """Note that a connection no longer waits for its request's body."""
        seat = self._seats.get(guest)
        if seat is not None and seat.claim is not None:
            self._claims.discard(seat.claim)
            seat.claim = None

    def sweep(self) -> None:
        """Close waiting strangers of addresses that have too many of them (see the module)."""
        before = self._now() - GRACE_S
        for queue in self._queues.longer_than(self.per_address):
            for guest in queue[: min(len(queue) - self.per_address, _A_SWEEP)]:
                if self._seats[guest].since <= before:
                    self._give_up(guest)

    def _origin(self, guest: Guest, address: str) -> Hashable:
        origin = origin_of(address)
        if self._trusted and address:
            parsed = ipaddress.ip_address(address.partition("%")[0])
            if isinstance(parsed, ipaddress.IPv6Address):
                parsed = parsed.ipv4_mapped or parsed
            if any(parsed in network for network in self._trusted):
                return id(guest)  # shared with no other connection
        return origin

    def _move(self, guest: Guest, standing: _Standing) -> None:
        seat = self._seats.get(guest)
        if seat is None or seat.standing is standing:
            return
        self._stand_up(guest, seat)
        seat.standing = standing
        seat.since = self._now()
        if standing is _Standing.WAITING:
            self._queues.add(seat.origin, guest)
        else:
            self._of(standing)[guest] = None

    def _stand_up(self, guest: Guest, seat: _Seat) -> None:
        if seat.standing is _Standing.WAITING:
            self._queues.remove(seat.origin, guest)
        else:
            del self._of(seat.standing)[guest]

    def _of(self, standing: _Standing) -> dict[Guest, None]:
        if standing is _Standing.SIGNER:
            return self._signers
        return self._served if standing is _Standing.SERVED else self._resting

    def _push_out(self, holder: Hashable) -> bool:
        """Close a signer to make room for one of this application; returns whether one
        could be."""
        idle = [one for one in self._signers if one.stage is Stage.IDLE]
        if idle:
            self._give_up(min(idle, key=lambda one: one.idle_since))
            return True
        waiting = [one for one in self._signers if one.stage in _FOR_ITS_CLIENT]
        held = Counter(self._seats[one].holder for one in waiting)
        largest = max(held.values(), default=0)
        if held[holder] == largest:
            from_whom = holder  # one of its own
        elif held[holder] + 1 < largest:
            from_whom = next(one for one, number in held.items() if number == largest)
        else:
            return False
        for one in waiting:
            if self._seats[one].holder == from_whom:
                self._give_up(one)
                return True
        return False

    def _give_up(self, guest: Guest) -> None:
        self.leave(guest)
        self.given_up += 1
        guest.give_up()


class _Queues:
    """Waiting strangers by address, those of each in the order in which they began to wait.
    To add, remove or find one costs the same, however many there are."""

    def __init__(self) -> None:
        self._by_origin: dict[Hashable, dict[Guest, None]] = {}
        self._by_length: dict[int, dict[Hashable, None]] = {}
        """Addresses by how many strangers they have."""
        self._longest = 0

    def add(self, origin: Hashable, guest: Guest) -> None:
        queue = self._by_origin.setdefault(origin, {})
        self._file(origin, len(queue), len(queue) + 1)
        queue[guest] = None

    def remove(self, origin: Hashable, guest: Guest) -> None:
        queue = self._by_origin[origin]
        del queue[guest]
        self._file(origin, len(queue) + 1, len(queue))
        if not queue:
            del self._by_origin[origin]

    def _file(self, origin: Hashable, before: int, after: int) -> None:
        if before:
            same = self._by_length[before]
            del same[origin]
            if not same:
                del self._by_length[before]
        if after:
            self._by_length.setdefault(after, {})[origin] = None
        # The longest one grows or shrinks by one at a time.
        if after > self._longest or (before == self._longest and before not in self._by_length):
            self._longest = after

    def longest(self) -> Hashable:
        """The address with the most strangers; None if there are none."""
        return next(iter(self._by_length.get(self._longest, ())), None)

    def first(self) -> Guest | None:
        """The stranger of that address that has waited longest."""
        queue = self._by_origin.get(self.longest())
        return None if queue is None else next(iter(queue))

    def longer_than(self, length: int) -> list[list[Guest]]:
        """The queues that are longer than this."""
        lengths = [one for one in self._by_length if one > length]
        origins = [origin for one in lengths for origin in self._by_length[one]]
        return [list(self._by_origin[origin]) for origin in origins]

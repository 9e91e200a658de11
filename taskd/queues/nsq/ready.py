"""How a node's free room is shared among its connections, as RDY. No I/O.

RDY is the number of messages that nsqd may have in flight on a connection. It is not
used up by messages, so it need not be sent again for each.
"""

from __future__ import annotations

_PART_FOR_MESSAGES = 8
_TOLERANCE = 4


def spare_room(*, free: int, waiting: int) -> int:
    """How many messages may wait here at a time.

    A backlog that this node found itself leaves room for some messages: it would
    otherwise keep other apps' tasks out for as long as it lasts.

    Args:
        free: tasks that this node could work on now.
        waiting: wake-ups that its sweep found, of apps that are not at their limit.
    """
    if free <= 0:
        return 0
    return max(free - waiting, -(-free // _PART_FOR_MESSAGES))


def share(room: int, connections: int, turn: int = 0) -> list[int]:
    """Divide the room among connections, as equally as can be.

    Args:
        room: messages in all, the sum of the parts.
        connections: how many parts.
        turn: where to begin, if there is less room than connections. The caller has to
            change it now and then, or other connections would never get any.
    """
    if connections == 0:
        return []
    each, left = divmod(max(room, 0), connections)
    first = 0 if each else turn
    return [each + ((position - first) % connections < left) for position in range(connections)]


def target(part: int, occupied: int, most: int) -> int:
    """The RDY of a connection.

    Args:
        part: the connection's part of the room.
        occupied: messages in flight on it that need no room: their tasks are being
            leased, or not due yet.
        most: the largest RDY that its nsqd takes.
    """
    return min(part + occupied, most) if part > 0 else 0


def worth_lowering(current: int, wanted: int) -> bool:
    """Whether lowering RDY is worth a command: always, if it becomes 0."""
    return wanted < current and (wanted == 0 or current - wanted > wanted // _TOLERANCE)


def worth_raising(current: int, wanted: int) -> bool:
    """Whether raising RDY is worth a command: always, if it was 0."""
    return wanted > current and (current == 0 or wanted - current > current // _TOLERANCE)


def nearly_full(current: int, in_flight: int) -> bool:
    """Whether so many messages are in flight that nsqd may hold further ones back."""
    return in_flight * _TOLERANCE >= current * (_TOLERANCE - 1)

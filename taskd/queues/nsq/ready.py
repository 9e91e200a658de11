"""How a node's free room is shared among its connections, as RDY. No I/O.

nsqd takes RDY as the number of messages that may be in flight on a connection,
and not as a count that is used up: it need not be sent again per message.
"""

from __future__ import annotations

_PART_FOR_MESSAGES = 8
_TOLERANCE = 4


def spare_room(*, free: int, waiting: int) -> int:
    """How many messages may wait here at a time.

    Args:
        free: tasks that this node could work on now.
        waiting: wake-ups that it has found in the Store itself, and of apps that
            are not at their limit.

    Room for some messages is left beside a backlog of its own, which else would
    keep the tasks of other apps out for as long as it lasts.
    """
    if free <= 0:
        return 0
    return max(free - waiting, -(-free // _PART_FOR_MESSAGES))


def share(room: int, connections: int, turn: int = 0) -> list[int]:
    """Parts of the room, as equal as can be; their sum is the room.

    Args:
        turn: who gets the room where there is less of it than connections. It has to
            move on now and then, or messages at the others would never come.
    """
    if connections == 0:
        return []
    each, left = divmod(max(room, 0), connections)
    first = 0 if each else turn
    return [each + ((position - first) % connections < left) for position in range(connections)]


def target(part: int, occupied: int, most: int) -> int:
    """The RDY of a connection.

    Args:
        part: its part of the room.
        occupied: messages in flight on it that need no room: their tasks are being
            leased, or not due yet.
        most: the largest RDY that its nsqd takes.
    """
    return min(part + occupied, most) if part > 0 else 0


def worth_lowering(current: int, wanted: int) -> bool:
    """Whether so much less is worth a command: always when there is no room."""
    return wanted < current and (wanted == 0 or current - wanted > wanted // _TOLERANCE)


def worth_raising(current: int, wanted: int) -> bool:
    """Whether so much more is worth a command: always when there was no room."""
    return wanted > current and (current == 0 or wanted - current > current // _TOLERANCE)


def nearly_full(current: int, in_flight: int) -> bool:
    """Whether nsqd may have to keep messages back that are for this connection."""
    return in_flight * _TOLERANCE >= current * (_TOLERANCE - 1)

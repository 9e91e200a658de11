"""A worker process's link to its supervisor: the frames of both ends, and the worker's end.

It knows the runtime alone, so that the queue and the bus between workers can use it. Begin
with `frames`; `uplink` is the worker's end, `fd_passing` hands connections over.
"""

from taskd.link.fd_passing import Handover, answers, hand_over
from taskd.link.frames import MAY_BE_LOST, Kind, Malformed, Splitter, frame, split_address
from taskd.link.uplink import SupervisorLost, Uplink

__all__ = [
    "MAY_BE_LOST",
    "Handover",
    "Kind",
    "Malformed",
    "Splitter",
    "SupervisorLost",
    "Uplink",
    "answers",
    "frame",
    "hand_over",
    "split_address",
]

"""A worker process's link to its supervisor: what both ends speak, and the worker's end."""

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

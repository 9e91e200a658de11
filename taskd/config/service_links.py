"""Tells variables that link a container to a service from variables that set a key.

Kubernetes gives each pod seven or more variables for every service of its namespace,
Docker as many for a linked container. Those of a service called ``taskd-server`` begin
like the variables of ``[server]``, and one has the name of a key's variable::

    TASKD_SERVER_SERVICE_HOST=10.0.0.1      TASKD_SERVER_PORT=tcp://10.0.0.1:80
    TASKD_SERVER_SERVICE_PORT=80            TASKD_SERVER_PORT_80_TCP=tcp://10.0.0.1:80
    TASKD_SERVER_SERVICE_PORT_HTTP=80       TASKD_SERVER_PORT_80_TCP_ADDR=10.0.0.1

A variable counts as a link only if its value has the form of one, too. Any other value
under such a name is a mistake, to be reported.
"""

from __future__ import annotations

import re

_LONGEST_NAME = 256
"""Generous: a service's name has 63 characters at most, and a port's 15."""

_URL = r"(?:tcp|udp|sctp)://(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):[0-9]{1,5}"
_HOST = r"[0-9A-Za-z.:-]+"
_NUMBER = r"[0-9]{1,5}"
_PORT = r"_PORT_[0-9]{1,5}_(?:TCP|UDP|SCTP)"
_FORMS = tuple(
    (re.compile(rf"[A-Z0-9_]+{name}"), re.compile(value))
    for name, value in (
        (r"_PORT", _URL),
        (r"_SERVICE_HOST", _HOST),
        (r"_SERVICE_PORT(?:_[A-Z0-9_]+)?", _NUMBER),
        (_PORT, _URL),
        (rf"{_PORT}_PROTO", r"tcp|udp|sctp"),
        # Docker gives the start and the end of a range of ports.
        (rf"{_PORT}_(?:PORT(?:_START|_END)?|START|END)", rf"{_NUMBER}|{_URL}"),
        (rf"{_PORT}_ADDR", _HOST),
        # Docker only: the container's name, and its own variables.
        (r"_NAME", r"/[\w.-]+/[\w.-]+"),
        (r"_ENV_\w+", r"(?s:.*)"),
    )
)


def is_service_link(name: str, value: str) -> bool:
    """Whether a variable has the form of a link, by its name and by its value."""
    return len(name) <= _LONGEST_NAME and any(
        named.fullmatch(name) is not None and meant.fullmatch(value) is not None
        for named, meant in _FORMS
    )

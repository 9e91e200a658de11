"""Variables that link a container to a service, and no key.

Kubernetes gives each pod seven or more for every service of its namespace, Docker as
many for a linked container. Where the service is called ``taskd-server``, they begin
like keys of ``[server]``, and one of them is named like one::

    TASKD_SERVER_SERVICE_HOST=10.0.0.1      TASKD_SERVER_PORT=tcp://10.0.0.1:80
    TASKD_SERVER_SERVICE_PORT=80            TASKD_SERVER_PORT_80_TCP=tcp://10.0.0.1:80
    TASKD_SERVER_SERVICE_PORT_HTTP=80       TASKD_SERVER_PORT_80_TCP_ADDR=10.0.0.1

Of each form the value counts, too: whatever else is named like it is somebody's mistake.
"""

from __future__ import annotations

import re

_LONGEST_NAME = 256
"""A service's has 63 characters at most, and a port's 15."""

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
        # Docker tells of a range of ports by its start and its end.
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

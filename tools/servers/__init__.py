"""MariaDB or MySQL, Redis and nsqd as private processes of a test.

Nothing here knows pytest (see `tests.support.services`), so that a benchmark or a
demo can use it too.
"""

from tools.servers.database import Database
from tools.servers.mariadb import MariaDB
from tools.servers.mysql import MySQL
from tools.servers.nsqd import (
    Nsqd,
    RealNsqd,
    StandInNsqd,
    StandInNsqlookupd,
    find_nsq,
    has_real_nsqd,
)
from tools.servers.process import (
    HOST,
    INSTALL,
    Certificates,
    Server,
    ServerFailed,
    ServerMissing,
    find,
)
from tools.servers.redis import Redis
from tools.servers.tinyproxy import Tinyproxy

__all__ = [
    "HOST",
    "INSTALL",
    "Certificates",
    "Database",
    "MariaDB",
    "MySQL",
    "Nsqd",
    "RealNsqd",
    "Redis",
    "Server",
    "ServerFailed",
    "ServerMissing",
    "StandInNsqd",
    "StandInNsqlookupd",
    "Tinyproxy",
    "find",
    "find_nsq",
    "has_real_nsqd",
]

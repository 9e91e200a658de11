"""MariaDB or MySQL, Redis and nsqd as private processes of a test.

Nothing here knows pytest (see `tests.support.services`), so that a benchmark or a
demo can use it too.
"""

from tests.support.server_database import Database
from tests.support.server_mariadb import MariaDB
from tests.support.server_mysql import MySQL
from tests.support.server_nsqd import (
    Nsqd,
    RealNsqd,
    StandInNsqd,
    StandInNsqlookupd,
    find_nsq,
    has_real_nsqd,
)
from tests.support.server_process import (
    HOST,
    INSTALL,
    Certificates,
    Server,
    ServerFailed,
    ServerMissing,
    find,
)
from tests.support.server_redis import Redis
from tests.support.server_tinyproxy import Tinyproxy

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

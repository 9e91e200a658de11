"""The fixtures of the real servers: MariaDB or MySQL, Redis, nsqd, tinyproxy.

Each pytest process starts its own, the first time that a test asks: a data folder is
made in half a second, a MariaDB is up in another (with MySQL both take five), a Redis
in 20 ms. So the workers of a parallel run share nothing: no test sees another's
channels, locks or variables, and no worker has to find out whether it is the last. The
``private_`` ones are for tests that stop, kill or reconfigure a server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tools.servers import (
    Database,
    MariaDB,
    MySQL,
    Nsqd,
    RealNsqd,
    Redis,
    ServerMissing,
    StandInNsqd,
    StandInNsqlookupd,
    Tinyproxy,
    has_real_nsqd,
)

__all__ = [
    "Database",
    "Nsqd",
    "Redis",
    "StandInNsqd",
    "StandInNsqlookupd",
    "Tinyproxy",
    "faketime_library",
]


def faketime_library() -> str:
    """The library that, preloaded, shifts a process's clock; skips where there is none."""
    for folder in ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib"):
        path = Path(folder, "faketime", "libfaketime.so.1")
        if path.exists():
            return str(path)
    pytest.skip("no libfaketime here: apt-get install faketime")


@pytest.fixture(scope="session")
def _database_kind(pytestconfig: pytest.Config) -> type[Database]:
    return {"mariadb": MariaDB, "mysql": MySQL}[pytestconfig.getoption("--database")]


@pytest.fixture(scope="session")
def _template(tmp_path_factory: pytest.TempPathFactory, _database_kind: type[Database]) -> Path:
    try:
        return _database_kind.make_template(tmp_path_factory.mktemp("template"))
    except ServerMissing as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def database_server(
    tmp_path_factory: pytest.TempPathFactory, _database_kind: type[Database], _template: Path
) -> Iterator[Database]:
    """The MariaDB, or with ``--database=mysql`` the MySQL, of this process, for tests
    that leave it as it is: they make databases in it, and neither stop it nor set its
    global variables."""
    with _database_kind(tmp_path_factory.mktemp("database"), _template) as server:
        yield server


@pytest.fixture
def database_url(database_server: Database) -> Iterator[str]:
    """The URL of a fresh database, empty, which is gone after the test."""
    url = database_server.create_database()
    yield url
    database_server.drop_database(url)


@pytest.fixture
def private_database(
    tmp_path_factory: pytest.TempPathFactory, _database_kind: type[Database], _template: Path
) -> Iterator[Callable[..., Database]]:
    """Starts database servers of the test's own; takes what `Database` takes by name."""
    with ExitStack() as stack:

        def make(**options: Any) -> Database:  # noqa: ANN401 - what it takes
            return stack.enter_context(
                _database_kind(tmp_path_factory.mktemp("database"), _template, **options)
            )

        yield make


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    """The Redis of this process, for tests that neither stop nor reconfigure it."""
    with ExitStack() as stack:
        try:
            yield stack.enter_context(Redis(tmp_path_factory.mktemp("redis")))
        except ServerMissing as error:
            pytest.skip(str(error))


@pytest.fixture
def redis_url(redis_server: Redis) -> str:
    """The URL of an empty Redis: nothing else uses it during the test."""
    redis_server.execute("FLUSHALL")
    return redis_server.url


@pytest.fixture
def private_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Redis]]:
    """Starts Redis servers of the test's own; takes what `Redis` takes by name."""
    with ExitStack() as stack:

        def make(**options: Any) -> Redis:  # noqa: ANN401 - what it takes
            try:
                return stack.enter_context(Redis(tmp_path_factory.mktemp("redis"), **options))
            except ServerMissing as error:
                pytest.skip(str(error))

        yield make


@pytest.fixture
def tinyproxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Tinyproxy]]:
    """Starts proxies of the test's own; takes lines for their configuration."""
    with ExitStack() as stack:

        def make(*settings: str) -> Tinyproxy:
            folder = tmp_path_factory.mktemp("tinyproxy")
            try:
                return stack.enter_context(Tinyproxy(folder, settings=settings))
            except ServerMissing as error:
                pytest.skip(str(error))

        yield make


@pytest.fixture(params=["stand-in", "real"] if has_real_nsqd() else ["stand-in"])
def nsqd(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Nsqd]:
    """An nsqd of the test's own, which it may stop: the stand-in, and, in a second run
    of the test, the real one where it is here. Nobody can install that one from a
    package, so its absence is no skip."""
    folder = tmp_path_factory.mktemp("nsqd")
    with RealNsqd(folder) if request.param == "real" else StandInNsqd(folder) as nsqd:
        yield nsqd


@pytest.fixture
def stand_in_nsqd(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[..., StandInNsqd]]:
    """Starts stand-ins, that do wrong when told; takes what `StandInNsqd` takes by name."""
    with ExitStack() as stack:

        def make(**options: Any) -> StandInNsqd:  # noqa: ANN401 - what it takes
            return stack.enter_context(StandInNsqd(tmp_path_factory.mktemp("nsqd"), **options))

        yield make


@pytest.fixture
def nsqlookupd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandInNsqlookupd]:
    """A lookup of the test's own, that stand-ins register with by
    ``--lookupd-tcp-address``."""
    with StandInNsqlookupd(tmp_path_factory.mktemp("nsqlookupd")) as lookup:
        yield lookup

"""Every test of a port's contract runs on every adapter of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from taskd.ports.store import Store
from tests.support import bus_kinds, queue_kinds
from tests.support.bus_kinds import BusKind
from tests.support.mysql import opened_mysql
from tests.support.queue_kinds import QueueKind
from tests.support.stores import DEADLINE_S, opened
from tools.servers import Nsqd, RealNsqd, Redis, StandInNsqd, has_real_nsqd

NSQ = ["nsq", "real nsq"] if has_real_nsqd() else ["nsq"]


@pytest.fixture(params=["memory", "sqlite", "workers", "mysql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> AbstractAsyncContextManager[Store]:
    """A fresh store of each adapter, open while the test runs."""
    request.node.add_marker(pytest.mark.deadline(DEADLINE_S))
    if request.param == "mysql":
        return opened_mysql(request.getfixturevalue("database_url"))
    return opened(request.param, tmp_path)


@pytest.fixture(params=["local", "machine", *NSQ])
def queues(request: pytest.FixtureRequest) -> QueueKind:
    """Each adapter of the Queue port; what carries it, if anything, begins with the test."""
    return _queues(request)


@pytest.fixture(params=["machine", *NSQ])
def joined_queues(request: pytest.FixtureRequest) -> QueueKind:
    """Those that connect several nodes."""
    return _queues(request)


@pytest.fixture
def nsq_queues(nsqd: Nsqd) -> queue_kinds.NsqKind:
    """The one that has a server, which the test may stop, kill and start again."""
    return queue_kinds.NsqKind(nsqd)


@pytest.fixture(params=["machine", "nsq"])
def frozen_queues(request: pytest.FixtureRequest) -> QueueKind:
    """Those whose carrier may hang, for tests that have it hang."""
    if request.param == "machine":
        return queue_kinds.MachineKind()
    return queue_kinds.NsqKind(request.getfixturevalue("stand_in_nsqd")())


def _queues(request: pytest.FixtureRequest) -> QueueKind:
    if request.param == "local":
        return queue_kinds.LocalKind()
    if request.param == "machine":
        return queue_kinds.MachineKind()
    return queue_kinds.NsqKind(request.getfixturevalue(f"_{request.param.replace(' ', '_')}"))


@pytest.fixture(scope="module")
def _nsq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nsqd]:
    with StandInNsqd(tmp_path_factory.mktemp("nsqd")) as nsqd:
        yield nsqd


@pytest.fixture(scope="module")
def _real_nsq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nsqd]:
    with RealNsqd(tmp_path_factory.mktemp("nsqd")) as nsqd:
        yield nsqd


@pytest.fixture(params=["local", "machine", "redis"])
def buses(request: pytest.FixtureRequest) -> BusKind:
    """Each adapter of the Bus port."""
    return _buses(request)


@pytest.fixture(params=["machine", "redis"])
def joined_buses(request: pytest.FixtureRequest) -> BusKind:
    """Those that connect several nodes."""
    return _buses(request)


def _buses(request: pytest.FixtureRequest) -> BusKind:
    if request.param == "local":
        return bus_kinds.LocalKind()
    if request.param == "machine":
        return bus_kinds.MachineKind()
    server: Redis = request.getfixturevalue("redis_server")
    server.execute("FLUSHALL")
    return bus_kinds.RedisKind(server)

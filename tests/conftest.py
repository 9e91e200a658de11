"""Options of the whole suite."""

from __future__ import annotations

import signal
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

from taskd.domain import record

# Who assigns to a record shall fail here. Processes that tests start have records as in use.
record.FROZEN = True

pytest_plugins = ["tests.support.on_trio", "tests.support.services"]

# A shell starts what it puts into the background with SIGINT ignored, nohup with SIGHUP,
# and whatever the tests start would inherit that, those that are to hear them among them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


# How long an example takes depends on what else this machine does.
settings.register_profile("taskd", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("taskd")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-services",
        action="store_true",
        help="a test that would be skipped because something is missing here fails",
    )
    parser.addoption(
        "--database",
        choices=("mariadb", "mysql"),
        default="mariadb",
        help="the server that the tests of the MySQL store run on (default: mariadb)",
    )
    parser.addoption(
        "--kill-rounds",
        type=int,
        default=20,
        metavar="N",
        help="how often the daemon is killed under load (default: 20)",
    )
    parser.addoption(
        "--power-cuts",
        type=int,
        default=400,
        metavar="N",
        help="how often the power is cut in a recording of a daemon's life (default: 400)",
    )


@pytest.fixture
def kill_rounds(pytestconfig: pytest.Config) -> int:
    """How often the daemon is to be killed under load."""
    rounds: int = pytestconfig.getoption("--kill-rounds")
    return rounds


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if not hasattr(report, "wasxfail"):
        _refuse_skip(report, item.config)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _refuse_skip(report, collector.config)
    return report


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport, config: pytest.Config) -> None:
    if report.skipped and config.getoption("--require-services"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{reason} (--require-services does not let it be skipped)"

"""Every test of a port's contract runs on every adapter of it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from tests.support.mysql import run_on_mysql
from tests.support.stores import RunStore, run_on


@pytest.fixture(params=["memory", "sqlite", "workers", "mysql"])
def run_store(request: pytest.FixtureRequest, tmp_path: Path) -> RunStore:
    """Runs a check on a fresh store of each adapter."""
    if request.param == "mysql":
        return partial(run_on_mysql, request.getfixturevalue("database_url"))
    return partial(run_on, request.param, tmp_path)

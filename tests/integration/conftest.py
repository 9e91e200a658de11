"""What many integration tests run against."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from taskd.config import Config
from tests.support.api import Api, config_of, running_api


@pytest.fixture
def api_config() -> Config:
    """What `api` is configured with; a module may have another."""
    return config_of()


@pytest.fixture
@asynccontextmanager
async def api(api_config: Config) -> AsyncIterator[Api]:
    """An API of its own, which runs while the test does."""
    async with running_api(api_config) as api:
        yield api

"""What is chosen by URL, and what is refused before a server is asked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from taskd.clock import SystemClock
from taskd.config import Config, load_config
from taskd.daemon import adapters
from taskd.errors import ConfigError

_STORE = "mysql://user:hunter2@127.0.0.1:1/taskd"
_BUS = "redis://:hunter2@127.0.0.1:1/0"
_QUEUE = "nsq://127.0.0.1:1"


def environ(*, store: str = _STORE, bus: str = _BUS, queue: str = _QUEUE) -> dict[str, str]:
    return {"TASKD_STORE_URL": store, "TASKD_BUS_URL": bus, "TASKD_QUEUE_URL": queue}


@pytest.fixture(autouse=True)
def file(tmp_path: Path) -> Path:
    path = tmp_path / "taskd.toml"
    path.touch()
    return path


def config(tmp_path: Path, **urls: str) -> Config:
    return load_config(tmp_path / "taskd.toml", environ(**urls))


async def open_them(config: Config) -> None:
    async with adapters.opened(config, SystemClock(), close_store_s=1):
        raise AssertionError("it was opened")


@pytest.mark.parametrize(
    ("package", "key"), [("trio_mysql", "store"), ("redis", "bus"), ("nsq", "queue")]
)
def test_without_the_extra_a_clusters_url_is_refused_with_the_install_line(
    tmp_path: Path, package: str, key: str
) -> None:
    """As in an environment where the package is not."""
    program = f"import sys; sys.modules[{package!r}] = None; from taskd.cli import main; main()"
    for command in ("check-config", "serve", "migrate"):
        if command == "migrate" and key != "store":
            continue
        said = subprocess.run(
            [sys.executable, "-c", program, command, "--config", str(tmp_path / "taskd.toml")],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={**os.environ, **environ()},
        )
        assert said.returncode == 1
        last = said.stderr.splitlines()[-1]
        assert last.startswith(f"Error: [{key}] url: {package}")
        assert last.endswith(
            "is not installed: pip install 'taskd[cluster]', or in a checkout: "
            "pip install '.[cluster]'"
        )
        assert "hunter2" not in said.stderr


@pytest.mark.parametrize(
    ("key", "url"),
    [
        ("store", "mysql://user:hunter2@/taskd"),
        ("store", "mysql://user:hunter2@h/taskd?unknown=1"),
        ("bus", "redis://:hunter2@h/notanumber"),
        ("queue", "nsq://:hunter2@h:99999"),
    ],
)
async def test_a_url_that_an_adapter_can_not_use_is_refused_without_its_password(
    tmp_path: Path, key: str, url: str
) -> None:
    broken = config(tmp_path, **{key: url})
    with pytest.raises(ConfigError, match=rf"^\[{key}\] url: ") as raised:
        adapters.check(broken)
    assert "hunter2" not in str(raised.value)
    with pytest.raises(ConfigError, match=rf"^\[{key}\] url: "):
        await open_them(broken)


def test_what_is_right_is_checked_without_a_server(tmp_path: Path) -> None:
    adapters.check(config(tmp_path))
    adapters.check(config(tmp_path, queue="local:"))

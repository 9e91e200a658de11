"""The page that moves tasks from SQLite to a cluster, and back: its commands as they stand."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from taskd.client import Client
from taskd.errors import RequestRefused
from tests.support.daemon import Daemon
from tests.support.receiver import Receiver

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "from-sqlite-to-a-cluster.md"
_LATER = 4_102_444_800


def commands() -> list[list[str]]:
    """The page's ``taskd`` commands, in order."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [line.split()[1:] for line in lines if line.startswith("taskd ")]


def run(folder: Path, command: list[str]) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "taskd", *command],
        check=False,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout + done.stderr


def daemon(folder: Path, name: str, sections: dict[str, dict[str, object]]) -> Daemon:
    """A daemon whose configuration the page calls ``name``."""
    home = folder / name
    home.mkdir()
    made = Daemon(home, sections=sections)
    (folder / f"{name}.toml").symlink_to(made.config_path)
    return made


def test_the_page_names_the_commands_of_a_move() -> None:
    assert [command[0] for command in commands()] == ["export", "migrate", "import"]


@pytest.mark.parametrize("back", [False, True], ids=["there", "and back"])
def test_a_move_as_the_page_says_it_keeps_ids_keys_and_tasks(
    tmp_path: Path, database_url: str, redis_url: str, back: bool
) -> None:
    cluster = daemon(
        tmp_path, "cluster", {"store": {"url": database_url}, "bus": {"url": redis_url}}
    )
    alone = daemon(tmp_path, "alone", {"store": {"url": f"sqlite:///{tmp_path}/alone.db"}})
    old, new = (cluster, alone) if back else (alone, cluster)
    if back:
        run(tmp_path, ["migrate", "--config", "cluster.toml"])
    with Receiver() as receiver:
        with old:
            keys = old.create_keys(receiver.url)
            with Client(old.url, *keys) as client:
                done = client.create_task(task_no="done", name="n", content="{}", timeout=5_000)
                receiver.wait_for(lambda ledger: len(ledger) == 1)
                later, soon, purged = (
                    client.create_task(
                        task_no=name, name="n", content='{"a": 1.0}', timeout=5_000, runtime=_LATER
                    )["coroutine_id"]
                    for name in ("later", "soon", "cancelled")
                )
                client.cancel(purged)
            assert old.stop() == 0
        printed = ""
        for command in commands():
            if not (back and command[0] == "migrate"):
                exchanged = {"alone.toml": "cluster.toml", "cluster.toml": "alone.toml"}
                words = [exchanged.get(word, word) for word in command] if back else command
                printed = run(tmp_path, words)
                if command[0] == "export":
                    path = tmp_path / "tasks.ndjson"
                    moment = f"{_LATER * 1000}"
                    lines = path.read_text().splitlines(keepends=True)
                    path.write_text(
                        "".join(
                            line.replace(moment, "1700000000000") if '"soon"' in line else line
                            for line in lines
                        )
                    )
        assert "1 applications and 2 tasks" in printed
        with new, Client(new.url, *keys) as client:
            ledger = receiver.wait_for(lambda ledger: len(ledger) == 2)
            assert ledger[-1].task_id == soon
            assert client.detail(coroutine_id=later)["task"]["taskNo"] == "later"
            with pytest.raises(RequestRefused):
                client.create_task(task_no="later", name="n", content="{}", timeout=5_000)
            assert client.cancel(later)["delivery"] == "never_sent"
            # What had ended is not known any more, so its taskNo is free; its id is not.
            assert client.detail(coroutine_id=done["coroutine_id"]).get("task") is None
            again = client.create_task(task_no="done", name="n", content="{}", timeout=5_000)
            assert again["coroutine_id"] > purged
            receiver.wait_for(lambda ledger: len(ledger) == 3)
            assert new.stop() == 0

"""The example receivers on the servers that people run theirs on: a daemon delivers to each,
with each spelling of app_key, and what it did not sign is refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from taskd.client import Client
from tests.support.daemon import Daemon, wait_until
from tests.support.examples import post, program, signed
from tests.support.receiver_servers import (
    Apache,
    Nginx,
    PhpFpm,
    ReceiverServer,
    all_started,
    documented,
    home_of_php,
)
from tools.servers.process import ServerMissing

_BODY = b'{"data":{"order":1001}}'
_STYLES = ("both", "underscore", "hyphen")
_OF_PYTHON = {
    **documented(),
    # These two make one value of the two spellings.
    "gunicorn, mapping": "gunicorn --header-map dangerous --bind 127.0.0.1:9000 receiver_wsgi:app",
    "hypercorn, WSGI": "hypercorn --bind 127.0.0.1:9000 wsgi:receiver_wsgi:app",
}
_OTHERS = {
    "Node": "node receiver.mjs 9000",
    "php -S": "php -S 127.0.0.1:9000 receiver.php",
}
_DROP_UNDERSCORES = {"gunicorn", "waitress", "Flask", "Django", "nginx", "Apache"}


def test_on_servers_of_python(tmp_path: Path) -> None:
    assert len(_OF_PYTHON) > len(_DROP_UNDERSCORES)
    servers = _with_commands(tmp_path, _OF_PYTHON)
    with _serving(tmp_path, servers) as daemon:
        _check(daemon, servers)


def test_on_servers_of_node_and_php(tmp_path: Path) -> None:
    for command in _OTHERS.values():
        program(command.split()[0])
    servers = _with_commands(tmp_path, _OTHERS)
    with _serving(tmp_path, servers) as daemon:
        _check(daemon, servers)


def test_on_php_fpm_behind_servers_of_its_own(tmp_path: Path) -> None:
    try:
        with home_of_php() as home:
            servers = {
                "nginx": Nginx(home, "nginx"),
                "nginx, underscores on": Nginx(home, "nginx-2", underscores=True),
                "Apache": Apache(home, "apache"),
            }
            with _serving(tmp_path, servers, PhpFpm(home)) as daemon:
                _check(daemon, servers)
    except ServerMissing as missing:
        pytest.skip(str(missing))


def _with_commands(folder: Path, commands: Mapping[str, str]) -> dict[str, ReceiverServer]:
    servers = {}
    for number, (name, command) in enumerate(commands.items()):
        own = folder / f"{number}"
        own.mkdir()
        servers[name] = ReceiverServer(own, command)
    return servers


@contextmanager
def _serving(
    folder: Path, servers: Mapping[str, ReceiverServer], *behind: ReceiverServer
) -> Iterator[Daemon]:
    """A daemon that runs and has an application for each server; the servers, with its keys."""
    with Daemon(folder) as daemon:
        for server in servers.values():
            link = f"http://{server.address}/"
            server.app_key, server.secret_key = daemon.create_keys(link, retry_total=0)
        with all_started(*servers.values(), *behind):
            yield daemon


def _check(daemon: Daemon, servers: Mapping[str, ReceiverServer]) -> None:
    expected = {name: dict.fromkeys(_STYLES, "succeeded") for name in servers}
    for name in _DROP_UNDERSCORES & servers.keys():
        expected[name]["underscore"] = "401 app_key is missing"
    found: dict[str, dict[str, str]] = {name: {} for name in servers}
    for style in _STYLES:
        if style != "both":  # what it is by default
            daemon.stop()
            daemon.write_config({"delivery": {"header_style": style}})
            daemon.start()
        for name, how in _delivered(daemon, servers, style).items():
            found[name][style] = how
    assert found == expected
    for name, server in servers.items():
        _check_refusals(name, server)


def _delivered(
    daemon: Daemon, servers: Mapping[str, ReceiverServer], task_no: str
) -> dict[str, str]:
    """What has become of a task for each of the servers."""
    clients = {name: Client(daemon.url, s.app_key, s.secret_key) for name, s in servers.items()}
    for client in clients.values():
        client.create_task(task_no=task_no, name="n", content='{"order":1001}', timeout=20_000)
    how = {name: _end(client, task_no) for name, client in clients.items()}
    for client in clients.values():
        client.close()
    return how


def _end(client: Client, task_no: str) -> str:
    """The state in which a task ends, or the answer that failed it."""
    ended: list[str] = []

    def has_ended() -> bool:
        task = client.detail(task_no=task_no)["task"]
        if task["state"] not in {"succeeded", "failed"}:
            return False
        (attempt,) = task["attempts"]
        failure = f"{attempt['httpStatus']} {attempt['response'] or attempt['error']}"
        ended.append("succeeded" if task["state"] == "succeeded" else failure)
        return True

    wait_until(has_ended, within_s=30, what=f"the end of the task {task_no}")
    return ended[0]


def _check_refusals(name: str, server: ReceiverServer) -> None:
    right = {"app_key": server.app_key, "secret_key": server.secret_key}
    strange = {what: key[::-1] for what, key in right.items()}

    def answer(*, app_key: str, secret_key: str, other: str) -> tuple[int, str]:
        """To a callback with another key under the other spelling."""
        headers = signed(app_key, secret_key, _BODY) | {"app-key": other}
        return post(server.port, headers, _BODY)

    key, secret = right["app_key"], right["secret_key"]
    assert answer(**right, other=key) == (200, "success"), name
    wrong = (401, "unknown app_key or bad signature")
    assert answer(app_key=key, secret_key=strange["secret_key"], other=key) == wrong, name
    strange_key = strange["app_key"]
    assert answer(app_key=strange_key, secret_key=secret, other=strange_key) == wrong, name
    # Whichever of two keys a server shows, or that there are two.
    assert answer(app_key=key, secret_key=secret, other=strange_key)[0] == 401, name

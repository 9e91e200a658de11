"""The servers that the other tests rely on: data, ports, ends."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from trio_mysql.constants import CLIENT  # type: ignore[import-untyped] # it has no types

from tests.support.daemon import wait_until
from tools.servers import Database, Redis, Server, ServerFailed, ServerMissing, find


def test_each_test_is_given_an_empty_database(database_server: Database, database_url: str) -> None:
    name = database_url.rpartition("/")[2]
    assert database_server.execute("SHOW TABLES", database=name) == []
    database_server.execute("CREATE TABLE t (n INT); INSERT INTO t VALUES (1), (2)", database=name)
    assert database_server.execute("SELECT n FROM t ORDER BY n", database=name) == [["1"], ["2"]]
    assert database_server.create_database() != database_url


def test_the_shared_database_commits_to_disk_and_wants_its_password(
    database_server: Database,
) -> None:
    assert database_server.execute("SELECT @@innodb_flush_log_at_trx_commit") == [["1"]]
    right, database_server.password = database_server.password, ""
    try:
        with pytest.raises(AssertionError, match="Access denied"):
            database_server.execute("SELECT 1")
    finally:
        database_server.password = right


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_private_database_keeps_data_port_and_password_over_an_end(
    private_database: Callable[..., Database], end: str
) -> None:
    server = private_database()
    url = server.create_database("kept")
    server.execute(
        "CREATE TABLE t (n INT) ENGINE=InnoDB; INSERT INTO t VALUES (7)", database="kept"
    )
    getattr(server, end)()
    assert not server.running
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((server.host, server.port), timeout=5)
    server.start()
    assert server.url("kept") == url
    assert server.execute("SELECT n FROM t", database="kept") == [["7"]]


def test_a_private_database_takes_options_that_win(
    private_database: Callable[..., Database],
) -> None:
    server = private_database(options=["--innodb-flush-log-at-trx-commit=2"])
    assert server.execute("SELECT @@innodb_flush_log_at_trx_commit") == [["2"]]


@pytest.mark.parametrize("tls", [False, True])
def test_a_database_offers_tls_only_where_it_was_asked(
    private_database: Callable[..., Database], tls: bool
) -> None:
    server = private_database(tls=tls)
    with socket.create_connection((server.host, server.port), timeout=5) as sock:
        greeting = sock.recv(1000)
    # Packet's head, protocol's version, server's version and 0, connection's id, 8 of the
    # nonce and 0; then what it can do.
    after_version = greeting.index(b"\0", 5) + 1 + 4 + 9
    (abilities,) = struct.unpack_from("<H", greeting, after_version)
    assert bool(abilities & CLIENT.SSL) is tls


def test_a_user_has_the_privileges_that_were_given(
    database_server: Database, database_url: str
) -> None:
    name = database_url.rpartition("/")[2]
    password = database_server.create_user("reader", "SELECT", on=f"`{name}`.*")
    root = database_server.user, database_server.password
    database_server.user, database_server.password = "reader", password
    try:
        assert database_server.execute("SELECT 1", database=name) == [["1"]]
        with pytest.raises(AssertionError, match="denied"):
            database_server.execute("CREATE TABLE t (n INT)", database=name)
    finally:
        database_server.user, database_server.password = root
        database_server.execute(f"DROP USER reader@'{database_server.host}'")


def test_a_server_that_ends_at_its_start_says_why(
    private_database: Callable[..., Database],
) -> None:
    with pytest.raises(ServerFailed, match="no-such-option"):
        private_database(options=["--no-such-option"])


def test_redis_forgets_over_an_end_unless_told_otherwise(
    private_redis: Callable[..., Redis],
) -> None:
    for server, kept in ((private_redis(), ""), (private_redis(append_only=True), "1")):
        port = server.port
        assert server.execute("SET", "key", "1") == "OK"
        server.kill()
        server.start()
        assert server.port == port
        assert server.execute("GET", "key") == kept


def test_each_test_is_given_an_empty_redis(redis_url: str, redis_server: Redis) -> None:
    assert redis_url == f"redis://127.0.0.1:{redis_server.port}/0"
    assert redis_server.execute("DBSIZE") == "0"


def test_a_redis_with_tls_and_a_password_has_them_in_its_url(
    private_redis: Callable[..., Redis],
) -> None:
    server = private_redis(tls=True, password="tell-nobody")
    assert server.url == f"rediss://:tell-nobody@127.0.0.1:{server.port}/0"
    assert server.execute("PING") == "PONG"
    assert server.certificates is not None
    context = server.certificates.client_context()
    with (
        socket.create_connection((server.host, server.port), timeout=5) as sock,
        context.wrap_socket(sock, server_hostname=server.host) as tls,
    ):
        tls.sendall(b"PING\r\n")
        assert tls.recv(100).startswith(b"-NOAUTH")
    with (
        socket.create_connection((server.host, server.port), timeout=5) as sock,
        pytest.raises(ssl.SSLCertVerificationError),
    ):
        ssl.create_default_context().wrap_socket(sock, server_hostname=server.host)


def test_a_frozen_server_accepts_and_answers_once_it_is_thawed(
    private_redis: Callable[..., Redis],
) -> None:
    server = private_redis()
    with socket.create_connection((server.host, server.port), timeout=0.2) as sock:
        server.freeze()
        sock.sendall(b"PING\r\n")
        with pytest.raises(TimeoutError):
            sock.recv(100)
        server.thaw()
        sock.settimeout(5)
        assert sock.recv(100) == b"+PONG\r\n"
        server.freeze()
        server.stop()  # a frozen server ends too
        assert not server.running


def test_a_missing_program_is_told_with_the_line_that_installs_it() -> None:
    with pytest.raises(ServerMissing, match="no no-such-server here: apt-get install mariadb"):
        find("no-such-server")


@pytest.mark.parametrize(
    ("options", "told"), [([], "1 skipped"), (["--require-services"], "1 error")]
)
def test_a_test_whose_server_is_missing_skips_unless_services_are_required(
    tmp_path: Path, options: list[str], told: str
) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options,
         f"--basetemp={tmp_path / 'inner'}", __file__, "-k", "is_given_an_empty_redis"],
        cwd=Path(__file__).parents[2],
        env={name: value for name, value in os.environ.items() if name[:6] != "PYTEST"}
        | {"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )  # fmt: skip
    assert told in run.stdout, run.stdout
    assert "apt-get install mariadb-server redis-server" in run.stdout


def test_a_server_ends_with_a_test_run_that_is_killed(tmp_path: Path) -> None:
    """Without the guard, a killed run would leave its databases behind."""
    script = (
        "import sys; from pathlib import Path; from tools.servers import Redis\n"
        "with Redis(Path(sys.argv[1])) as server:\n"
        "    print(server.pid, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    try:
        find("redis-server")
    except ServerMissing as error:
        pytest.skip(str(error))
    run = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with run:
        assert run.stdout is not None
        pid = int(run.stdout.readline())
        run.send_signal(signal.SIGKILL)
    wait_until(lambda: not _lives(pid), what="the end of the server")


def _lives(pid: int) -> bool:
    try:
        # One that has ended may wait for a parent who asks; it serves no more.
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


class _Sleeper(Server):
    """Ignores SIGTERM, and never says that it is ready."""

    ready = rb"started"

    def command(self) -> list[str]:
        return ["sh", "-c", "trap '' TERM; echo started; while :; do sleep 0.1; done"]


def test_a_server_that_ignores_sigterm_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tools.servers.process._STOP_S", 0.2)
    with _Sleeper(tmp_path) as server:
        pid = server.pid
        server.stop()
        assert not server.running
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)

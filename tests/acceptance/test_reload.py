"""SIGHUP: the configuration is read again, checked as a whole, and counts."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import trustme

from taskd.client import Client
from taskd.config import SECTIONS, settings_of
from taskd.errors import RequestRefused
from tests.support.daemon import ADMIN_KEY, Daemon, wait_until
from tests.support.receiver import Answer, Receiver
from tests.support.workers import events, kill_worker, worker_pids

READ = "the configuration was read again"
REFUSED = "the configuration can't be used, so nothing of it has changed"

Sections = dict[str, dict[str, object]]


class Reloaded(Daemon):
    """A daemon whose file is written anew while it runs."""

    def __init__(self, folder: Path, workers: int, sections: Sections | None = None) -> None:
        self.workers = workers
        super().__init__(folder, sections=self._with_workers(sections or {}))

    def _with_workers(self, sections: Mapping[str, Mapping[str, object]]) -> Sections:
        merged = {name: dict(values) for name, values in sections.items()}
        merged.setdefault("server", {})["workers"] = self.workers
        return merged

    def reload(self, sections: Sections, said: str = READ) -> dict[str, Any]:
        """Have it read this; what it then said of it."""
        before = len(events(self, said))
        self.write_config(self._with_workers(sections))
        self.signal(signal.SIGHUP)
        wait_until(lambda: len(events(self, said)) > before, what=said)
        return events(self, said)[-1]


MakeDaemon = Callable[[Sections], Reloaded]


@pytest.fixture(params=[1, 2], ids=["one process", "two workers"])
def daemon_with(request: pytest.FixtureRequest, tmp_path: Path) -> MakeDaemon:
    return lambda sections: Reloaded(tmp_path, request.param, sections)


def submit(client: Client, number: int, size: int = 1, timeout: int = 30_000) -> int:
    data = client.create_task(task_no=f"no-{number}", name="t", content=[0] * size, timeout=timeout)
    return int(data["coroutine_id"])


def outcome(client: Client, task_id: int) -> str | None:
    attempts = client.detail(coroutine_id=task_id)["task"]["attempts"]
    return attempts[0]["outcome"] if attempts else None


def outcome_of(client: Client, number: int) -> str:
    task_id = submit(client, number)
    wait_until(lambda: outcome(client, task_id) is not None, what="the attempt's end")
    return str(outcome(client, task_id))


def test_limits_count_in_every_process(daemon_with: MakeDaemon) -> None:
    release = threading.Event()
    with (
        Receiver(lambda _: Answer(hold=release)) as receiver,
        daemon_with({"worker": {"max_running": 4, "max_per_origin": 4}}) as daemon,
        daemon.create_app(receiver.url) as app,
    ):
        for number in range(12):
            submit(app, number)
        receiver.wait_for(lambda ledger: len(ledger) > 0)
        assert app.detail(coroutine_id=12)["task"]["state"] == "scheduled"
        assert len(receiver.ledger()) <= 4
        said = daemon.reload({"worker": {"max_running": 100, "max_per_origin": 50}})
        assert said["changed"] == "worker.max_running = 100, worker.max_per_origin = 50"
        assert "needs_restart" not in said
        receiver.wait_for(lambda ledger: len(ledger) == 12)
        release.set()


def test_a_worker_that_comes_later_goes_by_what_was_read_last(tmp_path: Path) -> None:
    release = threading.Event()
    daemon = Reloaded(tmp_path, 2, {"worker": {"max_running": 4, "max_per_origin": 4}})
    with Receiver(lambda _: Answer(hold=release)) as receiver, daemon:
        daemon.reload({"worker": {"max_running": 2, "max_per_origin": 2}})
        former = set(worker_pids(daemon))
        for pid in former:
            kill_worker(daemon, pid)
        wait_until(lambda: len(set(worker_pids(daemon)) - former) == 2, what="two others")
        with daemon.create_app(receiver.url) as app:
            ids = [submit(app, number) for number in range(4)]
            receiver.wait_for(lambda ledger: len(ledger) == 2)
            states = [app.detail(coroutine_id=one)["task"]["state"] for one in ids]
            assert sorted(states) == ["running", "running", "scheduled", "scheduled"]
            release.set()
            receiver.wait_for(lambda ledger: len(ledger) == 4)


def test_the_longest_body_and_the_administrators_secret_change(daemon_with: MakeDaemon) -> None:
    with daemon_with({"server": {"max_body": 1024}}) as daemon:
        keys = daemon.create_keys("http://127.0.0.1:9/")
        with (
            Client(daemon.url, *keys) as app,
            pytest.raises(RequestRefused, match="longer than 1024 bytes"),
        ):
            submit(app, 1, size=1000)
        old, daemon.admin_secret = daemon.admin_secret, "another secret of some length"
        said = daemon.reload({"server": {"max_body": 1_000_000}})
        assert said["changed"] == 'server.max_body = 1000000, auth.admin_secret = "(set)"'
        assert "another secret" not in daemon.log()
        with Client(daemon.url, *keys) as app:
            submit(app, 1, size=1000)
        daemon.create_keys("http://127.0.0.1:9/")
        with Client(daemon.url, ADMIN_KEY, old) as former, pytest.raises(RequestRefused):
            former.create_app(name="n", link_url="http://127.0.0.1:9/")


def test_networks_count_for_kept_connections_too(daemon_with: MakeDaemon) -> None:
    with (
        Receiver() as receiver,
        daemon_with({}) as daemon,
        daemon.create_app(receiver.url, retry_total=0) as app,
    ):
        assert outcome_of(app, 1) == "succeeded"
        daemon.reload({"delivery": {"denied_networks": ["127.0.0.0/8"]}})
        for number in range(2, 6):
            assert outcome_of(app, number) == "denied"
        daemon.reload({})
        assert outcome_of(app, 6) == "succeeded"


def test_a_longer_answer_is_read_and_a_patience_counts(daemon_with: MakeDaemon) -> None:
    hung = threading.Event()

    def answer(delivery: object) -> Answer:
        return Answer(body=b" " * 3000 + b"success", hold=hung if held.is_set() else None)

    held = threading.Event()
    sections: Sections = {"server": {"drain_timeout": 60}, "delivery": {"max_response": 1024}}
    with Receiver(answer) as receiver, daemon_with(sections) as daemon:
        with daemon.create_app(receiver.url, retry_total=0) as app:
            assert outcome_of(app, 1) != "succeeded"
            daemon.reload({"server": {"drain_timeout": 0.5}, "delivery": {"max_response": 10_000}})
            assert outcome_of(app, 2) == "succeeded"
            held.set()
            submit(app, 3)
            receiver.wait_for(lambda ledger: len(ledger) == 3)
        began = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - began < 10
        hung.set()


def test_the_log_changes_its_level_and_its_form(daemon_with: MakeDaemon) -> None:
    with daemon_with({}) as daemon:
        assert daemon.reload({"log": {"level": "error"}})["changed"] == 'log.level = "error"'
        daemon.write_config(daemon._with_workers({"log": {"format": "text", "level": "debug"}}))
        daemon.signal(signal.SIGHUP)
        text = re.compile(r"^\d{4}-\S+Z INFO +the configuration was read again changed=", re.M)
        wait_until(lambda: text.search(daemon.log()), what="a line of text")
        assert daemon.stop() == 0
        last = daemon.log().splitlines()[-1]
        assert re.match(r"^\d{4}-\S+Z INFO +stopped", last)


def issue(authority: trustme.CA, folder: Path) -> bytes:
    """Put a new certificate in place, as a client of ACME does; its fingerprint."""
    issued = authority.issue_cert("127.0.0.1", "localhost")
    for name, blobs in (("key", [issued.private_key_pem]), ("cert", issued.cert_chain_pems)):
        new = folder / f"{name}.new"
        new.write_bytes(b"".join(blob.bytes() for blob in blobs))
        new.replace(folder / f"{name}.pem")
    return hashlib.sha256(
        ssl.PEM_cert_to_DER_cert(issued.cert_chain_pems[0].bytes().decode())
    ).digest()


def shown_by(daemon: Daemon, authority: trustme.CA) -> bytes:
    """The fingerprint of the certificate that a new connection sees."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    parts = urlsplit(daemon.url)
    with (
        socket.create_connection((parts.hostname, parts.port), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secured,
    ):
        return hashlib.sha256(secured.getpeercert(binary_form=True) or b"").digest()


def test_a_renewed_certificate_is_shown_and_a_broken_one_is_not(
    tmp_path: Path, daemon_with: MakeDaemon
) -> None:
    authority = trustme.CA()
    first = issue(authority, tmp_path)
    sections: Sections = {"server": {"tls_cert": "cert.pem", "tls_key": "key.pem"}}
    with daemon_with(sections) as daemon:
        assert {shown_by(daemon, authority) for _ in range(4)} == {first}
        second = issue(authority, tmp_path)
        said = daemon.reload(sections)
        assert (said["changed"], said["files"]) == ("no key", "tls_cert, tls_key")
        processes = [shown_by(daemon, authority) for _ in range(8)]
        assert set(processes) == {second}
        issued = authority.issue_cert("127.0.0.1")
        good = (tmp_path / "key.pem").read_bytes()
        issued.private_key_pem.write_to_path(tmp_path / "key.pem")
        said = daemon.reload({**sections, "log": {"level": "error"}}, REFUSED)
        assert "does not belong to the certificate" in said["reason"]
        assert {shown_by(daemon, authority) for _ in range(4)} == {second}
        (tmp_path / "key.pem").write_bytes(good)
        said = daemon.reload({"server": {}})  # it would be another URL
        assert said["needs_restart"] == "server.tls_cert, server.tls_key"
        assert {shown_by(daemon, authority) for _ in range(4)} == {second}


def test_a_new_authority_is_trusted(tmp_path: Path, daemon_with: MakeDaemon) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    trustme.CA().cert_pem.write_to_path(tmp_path / "ca.pem")
    sections: Sections = {"delivery": {"ca_file": "ca.pem"}}
    with (
        Receiver(tls=context) as receiver,
        daemon_with(sections) as daemon,
        daemon.create_app(receiver.url, retry_total=0) as app,
    ):
        assert outcome_of(app, 1) == "unreachable"
        authority.cert_pem.write_to_path(tmp_path / "ca.pem")
        assert daemon.reload(sections)["files"] == "ca_file"
        for number in range(2, 6):
            assert outcome_of(app, number) == "succeeded"


def test_a_new_client_certificate_is_shown(tmp_path: Path, daemon_with: MakeDaemon) -> None:
    authority, old = trustme.CA(), trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))

    def issue(issuer: trustme.CA) -> None:
        issued = issuer.issue_cert("taskd.test")
        issued.cert_chain_pems[0].write_to_path(str(tmp_path / "client.pem"))
        issued.private_key_pem.write_to_path(str(tmp_path / "client.key"))

    issue(old)
    client = {"client_cert": "client.pem", "client_key": "client.key"}
    sections: Sections = {"delivery": {"ca_file": "ca.pem", **client}}
    with (
        Receiver(tls=context) as receiver,
        daemon_with(sections) as daemon,
        daemon.create_app(receiver.url, retry_total=0) as app,
    ):
        assert outcome_of(app, 1) == "unreachable"
        issue(authority)
        assert daemon.reload(sections)["files"] == "ca_file, client_cert, client_key"
        for number in range(2, 6):
            assert outcome_of(app, number) == "succeeded"
        (tmp_path / "client.key").write_text("none")
        said = daemon.reload(sections, REFUSED)
        assert "[delivery] client_key: " in said["reason"]
        assert outcome_of(app, 6) == "succeeded"


BROKEN = (
    ("[server\n", "not valid TOML"),
    ("[log]\nlevel = 'loud'\n", "[log] level"),
    ("[worker]\nmax_running = 1\nmax_per_origin = 2\n", "max_per_origin"),
    ("[delivery]\nca_file = 'nowhere.pem'\n", "nowhere.pem cannot be read"),
)


def test_a_broken_file_changes_nothing(daemon_with: MakeDaemon) -> None:
    with daemon_with({}) as daemon:
        for number, (text, reason) in enumerate(BROKEN):
            daemon.config_path.write_text(text)
            daemon.signal(signal.SIGHUP)
            wait_until(lambda n=number: len(events(daemon, REFUSED)) > n, what="the refusal")
            assert reason in events(daemon, REFUSED)[-1]["reason"]
        daemon.create_keys("http://127.0.0.1:9/")
        said = daemon.reload({"log": {"level": "debug"}})
        assert said["changed"] == 'log.level = "debug"'
        assert daemon.stop() == 0


def test_what_needs_a_restart_is_told_and_waits(daemon_with: MakeDaemon) -> None:
    with daemon_with({}) as daemon:
        said = daemon.reload(
            {
                "server": {"host": "127.0.0.9", "timezone": "Asia/Shanghai"},
                "store": {"url": "sqlite:///other.db"},
                "worker": {"lease": 60},
                "retention": {"finished_days": 7},
            }
        )
        assert said["level"] == "warning"
        assert said["changed"] == "retention.finished_days = 7"
        waiting = "server.host, server.timezone, store.url, worker.lease"
        assert said["needs_restart"] == waiting
        daemon.create_keys("http://127.0.0.1:9/")
        # It is still compared with what runs, not with what was read.
        assert daemon.reload({})["changed"] == "retention.finished_days = 30"


def test_bounds_that_the_workers_can_not_share_are_refused(tmp_path: Path) -> None:
    with Reloaded(tmp_path, 2) as daemon:
        said = daemon.reload({"worker": {"max_running": 1, "max_per_origin": 1}}, REFUSED)
        assert "must be at least [server] workers (2)" in said["reason"]


def test_a_configuration_that_came_over_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    daemon = Reloaded(tmp_path, 2)
    text = daemon.config_path.read_text()
    daemon.config_path.unlink()
    os.mkfifo(daemon.config_path)
    writer = threading.Thread(target=lambda: daemon.config_path.write_text(text))
    writer.start()
    with daemon:
        writer.join(20)
        daemon.signal(signal.SIGHUP)
        wait_until(lambda: events(daemon, REFUSED) != [], what="the refusal")
        assert "is a pipe" in events(daemon, REFUSED)[0]["reason"]
        assert daemon.stop() == 0


def test_orders_that_come_in_a_crowd_are_borne(daemon_with: MakeDaemon) -> None:
    with daemon_with({}) as daemon:
        for _ in range(200):
            daemon.signal(signal.SIGHUP)
        wait_until(lambda: events(daemon, READ) != [], what="that it is read again")
        daemon.create_keys("http://127.0.0.1:9/")
        assert daemon.stop() == 0
        assert {event["changed"] for event in events(daemon, READ)} == {"no key"}


def test_the_page_lists_what_is_read_again() -> None:
    page = (Path(__file__).parents[2] / "docs/reference/configuration.md").read_text()
    _, _, part = page.partition("\n## Read again without a restart\n")
    part, _, _ = part.partition("\n## ")
    listed = {
        (section, key)
        for section, keys in re.findall(r"`\[(\w+)\] ([\w, ]+)`", part)
        for key in keys.split(", ")
    }
    live = {
        (section, key)
        for section in SECTIONS
        for key, setting in settings_of(section).items()
        if setting.live
    }
    assert listed == live

"""A private nsqd with its lookup: the real ones, or the stand-ins."""

from __future__ import annotations

import http.client
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode

from tools.servers.process import HOST, Certificates, Server, ServerMissing, find

_STAND_IN = "tools.servers.nsqd_stand_in."
_NSQ_READY = rb"(?s)TCP: listening on.*HTTP: listening on|HTTP: listening on.*TCP: listening on"


class Nsqd:
    """An nsqd and a lookup that knows it, as processes: the real ones or the stand-in.
    What was published is gone after `kill`."""

    stand_in: bool
    """Whether it is `tools.servers.nsqd_stand_in.nsqd`, and not the real one."""

    def __init__(self, daemon: Server, http_port: int, lookupd_port: int) -> None:
        self._daemon = daemon
        self._http_port = http_port
        self._lookupd_port = lookupd_port

    @property
    def address(self) -> str:
        """Where clients speak V2."""
        return self._daemon.address

    @property
    def lookupd(self) -> str:
        """Where the lookup answers HTTP."""
        return f"{HOST}:{self._lookupd_port}"

    @property
    def http(self) -> str:
        return f"{HOST}:{self._http_port}"

    @property
    def certificates(self) -> Certificates | None:
        """Those of its TLS, if it has it."""
        return self._daemon.certificates if isinstance(self._daemon, _StandIn) else None

    @property
    def running(self) -> bool:
        return self._daemon.running

    @property
    def pid(self) -> int:
        return self._daemon.pid

    def log(self) -> str:
        return self._daemon.log()

    def start(self) -> Self:
        self._daemon.start()
        return self

    def stop(self) -> None:
        self._daemon.stop()

    def kill(self) -> None:
        self._daemon.kill()

    def restart(self) -> None:
        self.stop()
        self.start()

    def freeze(self) -> None:
        self._daemon.freeze()

    def thaw(self) -> None:
        self._daemon.thaw()

    def stats(self) -> dict[str, Any]:
        """As ``/stats?format=json`` gives them: topics, channels, clients."""
        return dict(json.loads(self._request("GET", "/stats?format=json")))

    def channel(self, topic: str, name: str) -> dict[str, Any]:
        """The statistics of a channel; empty while there is none."""
        for each in self.stats()["topics"]:
            for channel in each["channels"] if each["topic_name"] == topic else ():
                if channel["channel_name"] == name:
                    return dict(channel)
        return {}

    def operate(self, verb: str, topic: str = "taskd", channel: str | None = None) -> None:
        """Do to a topic, or to a channel of it, what an operator may: ``create``,
        ``delete``, ``empty``, ``pause``, ``unpause``."""
        names = {"topic": topic} if channel is None else {"topic": topic, "channel": channel}
        kind = "topic" if channel is None else "channel"
        self._request("POST", f"/{kind}/{verb}?{urlencode(names)}", b"")

    def _request(self, method: str, path: str, body: bytes | None = None) -> bytes:
        connection = http.client.HTTPConnection(HOST, self._http_port, timeout=10)
        try:
            connection.request(method, path, body)
            response = connection.getresponse()
            data = response.read()
        finally:
            connection.close()
        assert response.status == 200, (response.status, data)
        return data

    def close(self) -> None:
        self._daemon.close()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class StandInNsqd(Nsqd):
    """The stand-in, which can be told to do wrong.

    Args:
        options: more of its options, see ``python -m tools.servers.nsqd_stand_in.nsqd --help``.
        tls: agree to TLS, with a certificate for 127.0.0.1.
        client_certificates: want one of each client, too, from the same authority.
    """

    stand_in = True

    def __init__(
        self,
        folder: Path,
        *,
        options: Sequence[str] = (),
        tls: bool = False,
        client_certificates: bool = False,
    ) -> None:
        daemon = _StandIn(folder, options, tls=tls, client_certificates=client_certificates)
        super().__init__(daemon, daemon.http_port, daemon.lookupd_port)

    def faults(self, **changes: object) -> None:
        """Switch faults by name; see `tools.servers.nsqd_stand_in.broker.Faults`."""
        self._request("POST", "/faults", json.dumps(changes).encode())

    def inject(self, raw: bytes) -> int:
        """Send bytes to every client, as if nsqd had; how many there were."""
        return int(json.loads(self._request("POST", "/inject", raw))["connections"])

    def cut(self) -> int:
        """Close every client's connection; how many there were."""
        return int(json.loads(self._request("POST", "/cut", b""))["connections"])


class _StandIn(Server):
    ready = rb"nsqd stand-in: tcp "

    def __init__(
        self, folder: Path, options: Sequence[str], *, tls: bool, client_certificates: bool
    ) -> None:
        super().__init__(folder)
        self._client_certificates = client_certificates
        self.certificates = Certificates.make(folder) if tls else None
        self._options = list(options)
        self.http_port = self.reserve()
        self.lookupd_port = self.reserve()

    def command(self) -> list[str]:
        command = [
            sys.executable,
            "-m",
            _STAND_IN + "nsqd",
            f"--tcp-port={self.port}",
        ]
        command += [f"--http-port={self.http_port}", f"--lookupd-port={self.lookupd_port}"]
        command += [f"--data-path={self.folder}"]
        if self.certificates is not None:
            command += [f"--tls-cert={self.certificates.certificate}"]
            command += [f"--tls-key={self.certificates.key}"]
            if self._client_certificates:
                command += [f"--tls-client-ca={self.certificates.ca}"]
        return [*command, *self._options]

    def environ(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


class StandInNsqlookupd(Server):
    """A lookup of its own, that nsqd register with: see `nsqd_stand_in.nsqlookupd`."""

    ready = rb"nsqlookupd stand-in: tcp "

    def __init__(self, folder: Path, *, options: Sequence[str] = ()) -> None:
        super().__init__(folder)
        self._options = list(options)
        self.http_port = self.reserve()

    @property
    def http(self) -> str:
        """Where clients ask."""
        return f"{HOST}:{self.http_port}"

    def command(self) -> list[str]:
        command = [
            sys.executable,
            "-m",
            _STAND_IN + "nsqlookupd",
            f"--tcp-port={self.port}",
        ]
        return [*command, f"--http-port={self.http_port}", *self._options]

    def environ(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}

    def tombstone(self, nsqd: Nsqd, topic: str = "taskd") -> None:
        """Hide an nsqd from those who look up a topic."""
        names = urlencode({"topic": topic, "node": nsqd.http})
        connection = http.client.HTTPConnection(HOST, self.http_port, timeout=10)
        try:
            connection.request("POST", f"/topic/tombstone?{names}", b"")
            assert connection.getresponse().status == 200
        finally:
            connection.close()


class RealNsqd(Nsqd):
    """The real nsqd, registered with the real nsqlookupd. `stop` keeps its messages on
    disk, as it does; the lookup runs on meanwhile."""

    stand_in = False

    def __init__(self, folder: Path) -> None:
        (folder / "lookupd").mkdir()
        self._lookup = _NsqlookupdProcess(folder / "lookupd")
        daemon = _NsqdProcess(folder, self._lookup)
        super().__init__(daemon, daemon.http_port, self._lookup.http_port)

    def start(self) -> Self:
        if not self._lookup.running:
            self._lookup.start()
        return super().start()

    def close(self) -> None:
        super().close()
        self._lookup.close()


class _NsqlookupdProcess(Server):
    ready = _NSQ_READY

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.http_port = self.reserve()

    def command(self) -> list[str]:
        return [
            find_nsq("nsqlookupd"),
            f"--tcp-address={self.address}",
            f"--http-address={HOST}:{self.http_port}",
            f"--broadcast-address={HOST}",
        ]


class _NsqdProcess(Server):
    ready = _NSQ_READY

    def __init__(self, folder: Path, lookup: _NsqlookupdProcess) -> None:
        super().__init__(folder)
        self._lookup = lookup
        self.http_port = self.reserve()

    def command(self) -> list[str]:
        return [
            find_nsq("nsqd"),
            f"--tcp-address={self.address}",
            f"--http-address={HOST}:{self.http_port}",
            f"--broadcast-address={HOST}",
            f"--lookupd-tcp-address={self._lookup.address}",
            f"--data-path={self.folder}",
        ]


def find_nsq(name: str) -> str:
    """The path of the real ``nsqd`` or ``nsqlookupd``: NSQD_BIN, NSQLOOKUPD_BIN, PATH.

    Raises:
        ServerMissing: there is none.
    """
    given = os.environ.get(f"{name.upper()}_BIN")
    return given or find(name, install="see https://nsq.io/deployment/installing.html")


def has_real_nsqd() -> bool:
    """Whether both programs of NSQ are here."""
    try:
        return bool(find_nsq("nsqd") and find_nsq("nsqlookupd"))
    except ServerMissing:
        return False

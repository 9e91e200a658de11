"""A certificate of the daemon's own, for receivers that demand one."""

from __future__ import annotations

import contextlib
import ssl
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trustme

from taskd.delivery.egress import Egress
from taskd.delivery.progress import Progress
from taskd.delivery.resolver import Resolver
from taskd.delivery.transport import Transport, parse_target
from taskd.errors import Unreachable
from tests.support.tls_server import tls_server

pytestmark = pytest.mark.deadline(40)

Files = tuple[Path, Path]


@dataclass
class Demanding:
    """A receiver's context that demands a client certificate, and whose it has got."""

    context: ssl.SSLContext
    ca_file: Path
    later: bool = False
    """Whether it demands one after the request, as a server does that protects a path."""
    names: list[str] = field(default_factory=list)

    def asked(self, sock: ssl.SSLSocket) -> None:
        if self.later:
            sock.verify_client_post_handshake()
            sock.settimeout(0.05)
            deadline = time.monotonic() + 15
            sock.sendall(b"HTTP/1.1 102 Wait\r\n\r\n")
            while not sock.getpeercert() and time.monotonic() < deadline:
                with contextlib.suppress(TimeoutError):
                    sock.recv(1)
            sock.settimeout(20)
        certificate = sock.getpeercert() or {}
        self.names += [str(name[1]) for name in certificate.get("subjectAltName", ())]


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def demanding(authority: trustme.CA, tmp_path: Path) -> Demanding:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("app.test").configure_cert(context)
    context.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return Demanding(context, tmp_path / "ca.pem")


def files_of(authority: trustme.CA, folder: Path, name: str) -> Files:
    issued = authority.issue_cert(name)
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    issued.cert_chain_pems[0].write_to_path(str(cert))
    issued.private_key_pem.write_to_path(str(key))
    return cert, key


async def post(demanding: Demanding, client: Files | None, times: int = 1) -> None:
    transport = Transport(
        egress=Egress(),
        resolver=Resolver(lambda _: ["127.0.0.1"]),
        ca_file=demanding.ca_file,
        client=client,
    )
    with tls_server(demanding.context, demanding.asked) as port:
        target = parse_target(f"https://app.test:{port}/")
        for _ in range(times):
            response = await transport.post(target, [], b"{}", Progress())
            assert response.body == b"success"
    await transport.aclose()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2])
async def test_a_receiver_that_demands_a_certificate_is_shown_it(
    demanding: Demanding, authority: trustme.CA, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    demanding.context.minimum_version = demanding.context.maximum_version = version
    await post(demanding, files_of(authority, tmp_path, "taskd.test"), times=2)
    assert demanding.names == ["taskd.test"] * 2


async def test_a_receiver_may_demand_it_after_the_handshake(
    demanding: Demanding, authority: trustme.CA, tmp_path: Path
) -> None:
    demanding.context.post_handshake_auth = True
    demanding.later = True
    await post(demanding, files_of(authority, tmp_path, "taskd.test"))
    assert demanding.names == ["taskd.test"]


async def test_a_receiver_that_demands_none_is_shown_none(
    demanding: Demanding, authority: trustme.CA, tmp_path: Path
) -> None:
    demanding.context.verify_mode = ssl.CERT_NONE
    await post(demanding, files_of(authority, tmp_path, "taskd.test"))
    assert demanding.names == []


async def test_a_certificate_that_is_not_accepted_is_told_so(
    demanding: Demanding, tmp_path: Path
) -> None:
    with pytest.raises(Unreachable, match="it does not accept the client certificate"):
        await post(demanding, files_of(trustme.CA(), tmp_path, "taskd.test"))


async def test_without_one_the_demand_is_told(demanding: Demanding) -> None:
    with pytest.raises(Unreachable, match="it demands a client certificate"):
        await post(demanding, None)

"""TLS to receivers: whom it trusts, and what it says when it does not."""

from __future__ import annotations

import datetime
import ssl
from pathlib import Path

import pytest
import trio
import trio.testing
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from taskd.delivery.egress import Egress
from taskd.delivery.progress import Progress
from taskd.delivery.resolver import Resolver
from taskd.delivery.transport import Transport, parse_target, tls_contexts
from taskd.domain.model import Phase
from taskd.errors import ConfigError, Unreachable, UnreadableResponse
from tests.support.scripted import SUCCESS, Peer, Script, scripted
from tests.support.tls_server import tls_server

pytestmark = pytest.mark.deadline(20)

LONG_AGO = datetime.datetime(2001, 1, 1, tzinfo=datetime.UTC)
IN_THE_FUTURE = datetime.datetime(9999, 1, 1, tzinfo=datetime.UTC)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def ca_file(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


def server_context(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["h2", "http/1.1"])
    certificate.configure_cert(context)
    return context


async def serve_forever(peer: Peer) -> None:
    while True:
        await peer.answer()


async def exchange(
    context: ssl.SSLContext,
    ca_file: Path | None,
    *,
    host: str = "app.test",
    body: bytes = b"{}",
    times: int = 1,
    script: Script = serve_forever,
    problem: str | None = None,
) -> Progress:
    """POST to a TLS receiver; returns the last progress."""
    progress = Progress()
    problems: list[str | None] = []
    resolver = Resolver(lambda _: ["127.0.0.1"])
    transport = Transport(egress=Egress(), resolver=resolver, ca_file=ca_file)
    async with scripted(script, tls=context) as receiver:
        for _ in range(times):
            progress = Progress()
            target = parse_target(receiver.url(host=host))
            try:
                answer = await transport.post(target, [], body, progress)
            except Unreachable:
                assert transport.statistics().idle == 0
                raise
            assert answer.body == b"success"
            problems.append(answer.problem)
        assert receiver.connections == 1
    await transport.aclose()
    assert problems == [problem] * times
    return progress


async def test_a_certificate_of_an_authority_in_ca_file_is_accepted_and_the_connection_kept(
    authority: trustme.CA, ca_file: Path
) -> None:
    names: list[str | None] = []
    protocols: list[str | None] = []
    context = server_context(authority.issue_cert("app.test"))
    context.sni_callback = lambda _sock, name, _context: names.append(name)

    async def script(peer: Peer) -> None:
        while True:
            await peer.answer()
            assert isinstance(peer.stream, trio.SSLStream)
            protocols.append(peer.stream.selected_alpn_protocol())

    progress = await exchange(context, ca_file, times=3, script=script)
    assert progress.sent
    assert Phase.TLS not in progress.timings_ms  # the last went over the kept one
    assert names == ["app.test"]
    assert set(protocols) == {"http/1.1"}


async def test_an_ip_address_is_verified_as_one(authority: trustme.CA, ca_file: Path) -> None:
    await exchange(server_context(authority.issue_cert("127.0.0.1")), ca_file, host="127.0.0.1")
    with pytest.raises(Unreachable, match="IP address mismatch"):
        await exchange(server_context(authority.issue_cert("app.test")), ca_file, host="127.0.0.1")


async def test_a_big_body_is_sent_whole(authority: trustme.CA, ca_file: Path) -> None:
    body = b"0123456789abcdef" * 300_000
    got: list[bytes] = []

    async def script(peer: Peer) -> None:
        got.append((await peer.read_request()).body)
        await peer.send(SUCCESS)
        await peer.wait_closed()

    await exchange(
        server_context(authority.issue_cert("app.test")), ca_file, body=body, script=script
    )
    assert got == [body]


async def test_an_early_answer_to_a_big_body_counts(authority: trustme.CA, ca_file: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.read_head()
        await peer.send(SUCCESS)
        await trio.sleep_forever()

    context = server_context(authority.issue_cert("app.test"))
    await exchange(context, ca_file, body=b"x" * 20_000_000, script=script)


async def test_a_certificate_for_another_name_is_refused(
    authority: trustme.CA, ca_file: Path
) -> None:
    context = server_context(authority.issue_cert("other.test"))
    with pytest.raises(Unreachable, match=r"TLS with app\.test failed: .*Hostname mismatch"):
        await exchange(context, ca_file)


async def test_an_expired_certificate_is_refused(authority: trustme.CA, ca_file: Path) -> None:
    certificate = authority.issue_cert("app.test", not_before=LONG_AGO, not_after=LONG_AGO)
    with pytest.raises(Unreachable, match="certificate has expired"):
        await exchange(server_context(certificate), ca_file)


async def test_a_certificate_of_an_unknown_authority_is_refused(authority: trustme.CA) -> None:
    context = server_context(authority.issue_cert("app.test"))
    told = r"unable to get local issuer certificate \(\[delivery\] ca_file names further"
    with pytest.raises(Unreachable, match=told):
        await exchange(context, None)


async def test_tls_1_2_is_enough(authority: trustme.CA, ca_file: Path) -> None:
    context = server_context(authority.issue_cert("app.test"))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    await exchange(context, ca_file, times=2)


@pytest.mark.parametrize("group", ["ffdhe2048", "ffdhe8192"])
async def test_no_receiver_can_have_keys_agreed_upon_in_a_finite_field(
    authority: trustme.CA, ca_file: Path, group: str
) -> None:
    context = server_context(authority.issue_cert("app.test"))
    context.set_ecdh_curve(group)
    with pytest.raises(Unreachable, match=r"TLS with app\.test failed"):
        await exchange(context, ca_file)
    for ours in (tls_contexts().usual, tls_contexts().older):
        assert "kx-dhe" not in {cipher["kea"] for cipher in ours.get_ciphers()}


async def answered(context: ssl.SSLContext, ca_file: Path) -> bool:
    """Whether a receiver with this context, which tells why it refuses, is reached."""
    resolver = Resolver(lambda _: ["127.0.0.1"])
    transport = Transport(egress=Egress(), resolver=resolver, ca_file=ca_file)
    with tls_server(context) as port:
        target = parse_target(f"https://app.test:{port}/")
        answer = await transport.post(target, [], b"{}", Progress())
    await transport.aclose()
    return answer.body == b"success"


async def test_a_receiver_that_knows_another_curve_alone_is_reached(
    authority: trustme.CA, ca_file: Path
) -> None:
    context = server_context(authority.issue_cert("app.test"))
    context.set_ecdh_curve("X25519")
    assert await answered(context, ca_file)


async def test_a_certificate_on_another_curve_is_accepted_under_tls_1_2(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "app.test")])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1)
        .not_valid_before(LONG_AGO)
        .not_valid_after(IN_THE_FUTURE)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("app.test")]), critical=False)
        .sign(key, hashes.SHA384())
    )
    pem, key_pem = tmp_path / "cert.pem", tmp_path / "key.pem"
    pem.write_bytes(certificate.public_bytes(Encoding.PEM))
    key_pem.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, key_pem)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    assert await answered(context, pem)


async def test_a_connection_that_is_cut_is_no_end_of_the_answer(
    authority: trustme.CA, ca_file: Path
) -> None:
    async def script(peer: Peer) -> None:
        await peer.answer(b"HTTP/1.1 200 OK\r\n\r\nsuccess")
        await trio.testing.wait_all_tasks_blocked()

    context = server_context(authority.issue_cert("app.test"))
    problem = "the connection was closed after 7 bytes of its body"
    await exchange(context, ca_file, script=script, problem=problem)


NO_TLS = "it does not speak TLS on this port: should the linkUrl begin with http://?"


@pytest.mark.parametrize(
    ("garbage", "told"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", NO_TLS),
        (b"SSH-2.0-OpenSSH_9.2\r\n", NO_TLS),
        (b"\0" * 20, NO_TLS),
        (b"", "the connection was closed"),
    ],
)
async def test_a_receiver_without_tls_is_unreachable(garbage: bytes, told: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.stream.receive_some()
        await peer.send(garbage)

    transport = Transport(egress=Egress())
    async with scripted(script) as receiver:
        target = parse_target(f"https://127.0.0.1:{receiver.port}/")
        progress = Progress()
        with pytest.raises(Unreachable) as caught:
            await transport.post(target, [], b"{}", progress)
        assert str(caught.value) == f"TLS with 127.0.0.1 failed: {told}"
        assert progress.phase is Phase.TLS
        assert not progress.sent


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (10, "alert unexpected_message"),
        (
            40,
            "it has no TLS version or cipher in common with taskd, or demands a client certificate",
        ),
        (42, "it does not accept the client certificate (alert bad_certificate)"),
        (45, "it does not accept the client certificate (alert certificate_expired)"),
        (48, "it does not accept the client certificate (alert unknown_ca)"),
        (49, "it refuses access (alert access_denied)"),
        (70, "it speaks neither TLS 1.2 nor TLS 1.3 (alert protocol_version)"),
        (71, "it wants a stronger cipher than taskd offers (alert insufficient_security)"),
        (80, "it has an error of its own (alert internal_error)"),
        (112, "it has nothing under this name (alert unrecognized_name)"),
        (116, "it demands a client certificate (alert certificate_required)"),
        (120, "it does not speak HTTP/1.1 (alert no_application_protocol)"),
    ],
)
async def test_an_alert_in_the_handshake_is_told_in_words(number: int, told: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.stream.receive_some()
        await peer.send(bytes([21, 3, 3, 0, 2, 2, number]))

    transport = Transport(egress=Egress())
    async with scripted(script) as receiver:
        target = parse_target(f"https://127.0.0.1:{receiver.port}/")
        with pytest.raises(Unreachable) as caught:
            await transport.post(target, [], b"{}", Progress())
    assert str(caught.value).startswith(f"TLS with 127.0.0.1 failed: {told}")


async def refused(context: ssl.SSLContext, ca_file: Path, *, size: int = 2) -> str:
    """What is told of a POST to a receiver with this context."""
    resolver = Resolver(lambda _: ["127.0.0.1"])
    transport = Transport(egress=Egress(), resolver=resolver, ca_file=ca_file)
    with tls_server(context) as port:
        target = parse_target(f"https://app.test:{port}/")
        with pytest.raises(Unreachable) as caught:
            await transport.post(target, [], b"x" * size, Progress())
    return str(caught.value)


@pytest.mark.parametrize("size", [2, 20_000_000])
@pytest.mark.parametrize(
    ("version", "told"),
    [
        (ssl.TLSVersion.TLSv1_3, "ended TLS without an answer: it demands a client certificate"),
        (
            ssl.TLSVersion.TLSv1_2,
            "failed: it has no TLS version or cipher in common with taskd, or ",
        ),
    ],
)
async def test_a_client_certificate_that_is_demanded_is_named(
    authority: trustme.CA, ca_file: Path, version: ssl.TLSVersion, told: str, size: int
) -> None:
    context = server_context(authority.issue_cert("app.test"))
    context.minimum_version = context.maximum_version = version
    context.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(context)
    assert told in await refused(context, ca_file, size=size)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2])
async def test_a_name_that_the_receiver_does_not_have_is_named(
    authority: trustme.CA, ca_file: Path, version: ssl.TLSVersion
) -> None:
    context = server_context(authority.issue_cert("app.test"))
    context.minimum_version = context.maximum_version = version
    context.sni_callback = lambda *_: ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
    told = "TLS with app.test failed: it has nothing under this name (alert unrecognized_name)"
    assert await refused(context, ca_file) == told


async def test_a_receiver_that_speaks_old_tls_only_is_named(
    authority: trustme.CA, ca_file: Path
) -> None:
    context = server_context(authority.issue_cert("app.test"))
    with pytest.warns(DeprecationWarning, match="TLS"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    told = "TLS with app.test failed: it speaks neither TLS 1.2 nor TLS 1.3"
    assert (await refused(context, ca_file)).startswith(told)


async def test_an_alert_in_answer_to_plain_http_is_named() -> None:
    async def script(peer: Peer) -> None:
        await peer.answer(bytes([21, 3, 1, 0, 2, 2, 50]))

    transport = Transport(egress=Egress())
    async with scripted(script) as receiver:
        told = r"^the answer is TLS, not HTTP: should the linkUrl begin with https://\?$"
        with pytest.raises(UnreadableResponse, match=told):
            await transport.post(parse_target(receiver.url()), [], b"{}", Progress())


async def test_a_handshake_that_hangs_ends_with_the_deadline() -> None:
    closed = trio.Event()

    async def script(peer: Peer) -> None:
        while await peer.stream.receive_some():
            pass
        closed.set()

    transport = Transport(egress=Egress())
    async with scripted(script) as receiver:
        target = parse_target(f"https://127.0.0.1:{receiver.port}/")
        progress = Progress()
        with trio.move_on_after(0.05) as scope:
            await transport.post(target, [], b"{}", progress)
        assert scope.cancelled_caught
        assert progress.phase is Phase.TLS
        assert not progress.sent
        await closed.wait()
    assert transport.statistics().active == 0


def test_ca_file_adds_to_the_trust_of_the_system(ca_file: Path) -> None:
    system = tls_contexts().usual.cert_store_stats()["x509_ca"]
    assert tls_contexts(ca_file).usual.cert_store_stats()["x509_ca"] == system + 1


def test_a_ca_file_that_cannot_be_used_is_refused_by_its_key(tmp_path: Path) -> None:
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_text("nonsense")
    with pytest.raises(ConfigError, match=r"\[delivery\] ca_file: .*no PEM certificate"):
        tls_contexts(nonsense)
    with pytest.raises(ConfigError, match=r"\[delivery\] ca_file: .*No such file"):
        tls_contexts(tmp_path / "missing.pem")

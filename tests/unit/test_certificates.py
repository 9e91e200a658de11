"""The daemon's own certificate: what is refused, and in which words."""

from __future__ import annotations

from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from taskd.delivery.transport import tls_contexts
from taskd.errors import ConfigError
from taskd.runtime.certificates import server_context


@pytest.fixture(scope="module")
def issued() -> trustme.LeafCert:
    return trustme.CA().issue_cert("localhost")


@pytest.fixture
def cert(tmp_path: Path, issued: trustme.LeafCert) -> Path:
    path = tmp_path / "cert.pem"
    issued.cert_chain_pems[0].write_to_path(path)
    return path


@pytest.fixture
def key(tmp_path: Path, issued: trustme.LeafCert) -> Path:
    path = tmp_path / "key.pem"
    issued.private_key_pem.write_to_path(path)
    return path


def test_a_certificate_with_its_key_is_taken(cert: Path, key: Path) -> None:
    server_context(cert, key)


def test_files_in_each_others_place_are_told(cert: Path, key: Path) -> None:
    with pytest.raises(ConfigError, match=r"tls_cert: .*key\.pem holds no certificate in PEM"):
        server_context(key, cert)


def test_a_certificate_in_the_keys_place_is_told(cert: Path) -> None:
    with pytest.raises(ConfigError, match=r"tls_key: .*cert\.pem holds no private key in PEM"):
        server_context(cert, cert)


def test_a_file_that_is_gone_is_told(cert: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tls_key: .*gone can't be read: No such file"):
        server_context(cert, tmp_path / "gone")


def test_the_key_of_another_certificate_is_told(cert: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    trustme.CA().issue_cert("localhost").private_key_pem.write_to_path(other)
    with pytest.raises(ConfigError, match=r"other\.pem does not belong to the certificate in"):
        server_context(cert, other)


def test_an_encrypted_key_is_refused_and_nobody_asked(cert: Path, key: Path) -> None:
    private = serialization.load_pem_private_key(key.read_bytes(), None)
    key.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"hunter2"),
        )
    )
    with pytest.raises(ConfigError, match="is encrypted"):
        server_context(cert, key)


def test_what_is_wrong_with_a_client_certificate_is_told_by_its_own_keys(
    cert: Path, key: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.pem"
    trustme.CA().issue_cert("localhost").private_key_pem.write_to_path(other)
    for client, told in (
        ((key, key), r"^\[delivery\] client_cert: .*key\.pem holds no certificate in PEM"),
        ((cert, cert), r"^\[delivery\] client_key: .*cert\.pem holds no private key in PEM"),
        ((cert, other), r"^\[delivery\] client_key: .*other\.pem does not belong to the cert"),
        ((cert, tmp_path / "gone"), r"^\[delivery\] client_key: .*gone can't be read"),
    ):
        with pytest.raises(ConfigError, match=told):
            tls_contexts(None, client)


def test_a_broken_certificate_is_told(cert: Path, key: Path) -> None:
    cert.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    with pytest.raises(ConfigError, match="can't be used"):
        server_context(cert, key)

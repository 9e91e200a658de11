"""The daemon's own certificate: loaded, or told in a sentence why it can't be."""

from __future__ import annotations

import ssl
from pathlib import Path

from taskd.errors import ConfigError

_CERTIFICATE = b"-----BEGIN CERTIFICATE-----"
_PRIVATE_KEY = b"PRIVATE KEY-----"
_ENCRYPTED = b"ENCRYPTED"


def server_context(cert: Path, key: Path) -> ssl.SSLContext:
    """TLS 1.2 or newer with this certificate chain and private key, both PEM.

    Raises:
        ConfigError: one of them can't be used; says which, and why.
    """
    _check(cert, "tls_cert", _CERTIFICATE, "certificate")
    text = _check(key, "tls_key", _PRIVATE_KEY, "private key")
    if _ENCRYPTED in text:
        raise ConfigError(f"[server] tls_key: {key} is encrypted; taskd takes it unencrypted only")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(cert, key)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(
                f"[server] tls_key: {key} does not belong to the certificate in {cert}"
            ) from error
        raise ConfigError(
            f"[server] tls_cert, tls_key: {cert} and {key} can't be used: {error.reason}"
        ) from error
    return context


def _check(path: Path, name: str, needed: bytes, what: str) -> bytes:
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"[server] {name}: {path} can't be read: {error.strerror}") from error
    if needed not in text:
        raise ConfigError(f"[server] {name}: {path} holds no {what} in PEM")
    return text

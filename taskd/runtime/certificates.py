"""TLS: loads certificates and keys, or says in a sentence why they can't be used; and limits
the ways of key exchange.

A key exchange is computed on the event loop. In a finite field of 8192 bits, which either side
may ask for, it takes 150 to 300 ms, and asking costs the other side a few hundred bytes
(CVE-2002-20001). On a curve it takes 1 ms.
"""

from __future__ import annotations

import os
import ssl
from pathlib import Path

from taskd.errors import ConfigError, InvalidInput
from taskd.runtime.text import NotText, refuse_other

_CERTIFICATE = b"-----BEGIN CERTIFICATE-----"
_PRIVATE_KEY = b"PRIVATE KEY-----"
_ENCRYPTED = b"ENCRYPTED"


_CURVE = "prime256v1"
"""The curve that each side of TLS 1.3 has to support (RFC 8446, 9.1), and of TLS 1.2 does."""


class _Unusable(Exception):
    """A file can't be used. The message begins with the names of the settings, as given."""


def server_context(cert: Path, key: Path) -> ssl.SSLContext:
    """Return a context for TLS 1.2 or newer with this certificate chain and private key, both
    in PEM.

    Raises:
        ConfigError: one of them can't be used; says which, and why.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    agree_on_a_curve(context)
    try:
        _load(context, cert, key, ("tls_cert", "tls_key"))
    except _Unusable as unusable:
        raise ConfigError(f"[server] {unusable}") from unusable.__cause__
    return context


def agree_on_a_curve(context: ssl.SSLContext) -> None:
    """Allow P-256 alone for key exchange: Python can name one group, or takes all."""
    context.set_ecdh_curve(_CURVE)
    without_fields(context)


def without_fields(context: ssl.SSLContext) -> None:
    """Allow no key exchange of TLS 1.2 in a finite field."""
    ciphers = context.get_ciphers()
    quick = [one["name"] for one in ciphers if one.get("kea") != "kx-dhe"]
    if len(quick) < len(ciphers):
        context.set_ciphers(":".join(name for name in quick if not name.startswith("TLS_")))


def show_to_servers(context: ssl.SSLContext, cert_file: Path, key_file: Path) -> None:
    """Let a client's context show this certificate to a server that asks for one.

    Raises:
        InvalidInput: one of the files can't be used; says which, and why.
    """
    try:
        _load(context, cert_file, key_file, ("cert_file", "key_file"))
    except _Unusable as unusable:
        raise InvalidInput("url", str(unusable)) from unusable.__cause__


def show_to_receivers(context: ssl.SSLContext, cert: Path, key: Path) -> None:
    """Let the context of callbacks show this certificate to a receiver that asks for one,
    in the handshake or, under TLS 1.3, later.

    Raises:
        ConfigError: one of the files can't be used; says which, and why.
    """
    try:
        _load(context, cert, key, ("client_cert", "client_key"))
    except _Unusable as unusable:
        raise ConfigError(f"[delivery] {unusable}") from unusable.__cause__
    context.post_handshake_auth = True


def _load(context: ssl.SSLContext, cert: Path, key: Path, names: tuple[str, str]) -> None:
    _check(cert, names[0], _CERTIFICATE, "certificate")
    text = _check(key, names[1], _PRIVATE_KEY, "private key")
    if _ENCRYPTED in text:
        raise _Unusable(f"{names[1]}: {key} is encrypted; taskd takes it unencrypted only")
    try:
        context.load_cert_chain(cert, key)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise _Unusable(
                f"{names[1]}: {key} does not belong to the certificate in {cert}"
            ) from error
        raise _Unusable(
            f"{names[0]}, {names[1]}: {cert} and {key} can't be used: {error.reason}"
        ) from error


def _check(path: Path, name: str, needed: bytes, what: str) -> bytes:
    try:
        text = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise _Unusable(f"{name}: {path} can't be read: {reason}") from error
    if needed not in text:
        try:
            refuse_other(text)
        except NotText as error:
            raise _Unusable(f"{name}: {path} {error}") from error
        raise _Unusable(f"{name}: {path} holds no {what} in PEM")
    return text


def why_no_authorities(path: str | os.PathLike[str], error: OSError) -> str:
    """Return why a file's certificates could not be loaded, by the error of the load: a
    sentence about the file."""
    if not isinstance(error, ssl.SSLError):
        return error.strerror or str(error)
    try:
        refuse_other(Path(path).read_bytes())
    except NotText as other:
        return f"it {other}"
    except OSError:
        pass  # the file can't be read any more; the load found no certificate in it
    return "it holds no PEM certificate"

"""TLS to receivers: verified by name, while connected to an approved address."""

from __future__ import annotations

import os
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

import trio

from taskd.delivery.transport.secured import Secured
from taskd.delivery.transport.tls_words import nothing_in_common, tls_reason
from taskd.errors import ConfigError, Unreachable
from taskd.runtime.certificates import (
    agree_on_a_curve,
    show_to_receivers,
    why_no_authorities,
    without_fields,
)


class Unagreed(Unreachable):
    """The receiver accepts none of the versions, ciphers and curves that it was offered."""


@dataclass(frozen=True, slots=True)
class Contexts:
    """The TLS contexts of connections to receivers. With neither can a receiver ask for a
    key exchange that takes long (`taskd.runtime.certificates`)."""

    usual: ssl.SSLContext
    """TLS 1.2 and newer, by one curve."""
    older: ssl.SSLContext
    """TLS 1.2, by any curve: for receivers that know only another curve, if only for their
    certificate."""


def tls_contexts(
    ca_file: str | os.PathLike[str] | None = None, client: tuple[Path, Path] | None = None
) -> Contexts:
    """Contexts that verify certificate and name.

    Args:
        ca_file: PEM certificates of authorities that are trusted beside the
            system's, not in place of them.
        client: files of the certificate chain that receivers may ask for, and of its key.

    Raises:
        ConfigError: one of the files can't be used.
    """
    usual, older = _context(ca_file, client), _context(ca_file, client)
    agree_on_a_curve(usual)
    without_fields(older)
    older.maximum_version = ssl.TLSVersion.TLSv1_2
    return Contexts(usual, older)


def _context(
    ca_file: str | os.PathLike[str] | None, client: tuple[Path, Path] | None
) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    # Without renegotiation, a send never waits for the peer to send first.
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.load_default_certs()
    if ca_file is not None:
        try:
            context.load_verify_locations(cafile=ca_file)
        except OSError as error:
            reason = why_no_authorities(ca_file, error)
            raise ConfigError(f"[delivery] ca_file: can't use {ca_file}: {reason}") from error
    if client is not None:
        show_to_receivers(context, *client)
    return context


async def handshake(
    sock: socket.socket, context: ssl.SSLContext, host: str, *, via: str | None = None
) -> Secured:
    """Make TLS on a connected socket. The result owns the socket; if this fails or is
    cancelled, the socket is closed.

    Args:
        host: the name or IP address that the certificate must be valid for.
        via: the proxy that the way leads through, or None.

    Raises:
        Unagreed: the receiver accepts nothing of what it was offered.
        Unreachable: the certificate is not accepted, or the handshake failed otherwise.
    """
    try:
        secured = Secured(sock, context, host)
        while True:
            try:
                secured.do_handshake()
            except ssl.SSLWantReadError:
                await trio.lowlevel.wait_readable(secured)
            except ssl.SSLWantWriteError:
                await trio.lowlevel.wait_writable(secured)
            else:
                return secured
    except BaseException as error:
        sock.close()
        if isinstance(error, OSError | ValueError):
            way = " through the proxy" if via else ""
            kind = Unagreed if nothing_in_common(error) else Unreachable
            raise kind(f"TLS with {host}{way} failed: {tls_reason(error)}") from error
        raise

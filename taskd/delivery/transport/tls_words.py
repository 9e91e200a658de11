"""What TLS errors mean, in words.

OpenSSL names an alert of the peer's after the protocol version that introduced it
(``TLSV13_ALERT_CERTIFICATE_REQUIRED``). An error that OpenSSL found itself has a name
without a version (``WRONG_VERSION_NUMBER``).
"""

from __future__ import annotations

import re
import ssl

_ALERT = re.compile(r"(?:sslv3|tlsv1|tlsv13) alert (.+)|tlsv1 (.+)")
_TEXT = re.compile(r"\[SSL[^\]]*\] (.+?) \(_ssl")

_NO_CERTIFICATE = "it demands a client certificate"
_REFUSED_CERTIFICATE = "it does not accept the client certificate"
_MEANINGS = {
    "certificate required": _NO_CERTIFICATE,
    "no certificate": _NO_CERTIFICATE,
    "handshake failure": (
        "it has no TLS version or cipher in common with taskd, or demands a client certificate"
    ),
    "insufficient security": "it wants a stronger cipher than taskd offers",
    "protocol version": "it speaks neither TLS 1.2 nor TLS 1.3",
    "unrecognized name": "it has nothing under this name",
    "no application protocol": "it does not speak HTTP/1.1",
    "bad certificate": _REFUSED_CERTIFICATE,
    "unsupported certificate": _REFUSED_CERTIFICATE,
    "certificate revoked": _REFUSED_CERTIFICATE,
    "certificate expired": _REFUSED_CERTIFICATE,
    "certificate unknown": _REFUSED_CERTIFICATE,
    "unknown ca": _REFUSED_CERTIFICATE,
    "access denied": "it refuses access",
    "internal error": "it has an error of its own",
}
"""By the peer's alert."""

_NO_TLS = "it does not speak TLS on this port: should the linkUrl begin with http://?"
_OLD_TLS = "it speaks neither TLS 1.2 nor TLS 1.3"
_WEAK = "its certificate or key is too weak"
_FINDINGS = {
    "wrong version number": _NO_TLS,
    "record layer failure": _NO_TLS,
    "packet length too long": _NO_TLS,
    "unknown protocol": _NO_TLS,
    "unsupported protocol": _OLD_TLS,
    "version too low": _OLD_TLS,
    "dh key too small": _WEAK,
    "ee key too small": _WEAK,
    "ca key too small": _WEAK,
    "ca md too weak": _WEAK,
}
"""By the error that OpenSSL found itself."""

_REFUSED_OFFERS = frozenset({"handshake failure", "insufficient security", "protocol version"})
_WRONG_CURVE = "wrong curve"

_UNKNOWN_AUTHORITY = frozenset({18, 19, 20, 21})
"""X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT to ..._UNABLE_TO_VERIFY_LEAF_SIGNATURE."""


def alert_of(error: BaseException | None) -> str | None:
    """The alert that the peer has ended TLS with, or None."""
    if not isinstance(error, ssl.SSLError) or isinstance(error, ssl.SSLCertVerificationError):
        return None
    match = _ALERT.fullmatch(_words(error))
    return None if match is None else match[1] or match[2]


def nothing_in_common(error: BaseException) -> bool:
    """Whether the peer accepted nothing of the offer, so that it might accept another one."""
    wrong = isinstance(error, ssl.SSLError) and _words(error) == _WRONG_CURVE
    return wrong or alert_of(error) in _REFUSED_OFFERS


def tls_reason(error: Exception) -> str:
    """What a TLS error means, in a few words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        reason = f"its certificate is not accepted: {error.verify_message.rstrip('.')}"
        if error.verify_code in _UNKNOWN_AUTHORITY:
            reason += " ([delivery] ca_file names further authorities)"
        return reason
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError | ConnectionError):
        return "the connection was closed"
    if (alert := alert_of(error)) is not None:
        meaning = _MEANINGS.get(alert)
        named = f"alert {alert.replace(' ', '_')}"
        return named if meaning is None else f"{meaning} ({named})"
    if isinstance(error, ssl.SSLError):
        words = _words(error)
        return _FINDINGS.get(words, words)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error)


def _words(error: ssl.SSLError) -> str:
    if error.reason:
        return error.reason.replace("_", " ").lower()
    match = _TEXT.search(str(error))
    return match[1] if match is not None else error.strerror or str(error)

"""The signing scheme of the wire protocol, and Standard Webhooks signatures.

signature = base64(ascii hex(HMAC-SHA256(secretKey, timestamps + nonce + payload)))
with payload = hex SHA-256 of the body (of the query string, without a body).
"""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
import secrets
import string

_KEYS_KEPT = 1024
_ALPHABET = string.ascii_letters + string.digits


def payload_digest(*data: bytes | bytearray) -> str:
    """Return the SHA-256 of a raw body, whole or in parts, or of a query string, as 64
    lower-case hex digits."""
    digest = hashlib.sha256()
    for part in data:
        digest.update(part)
    return digest.hexdigest()


def sign(secret_key: str, timestamps: str, nonce: str, payload: str) -> str:
    """Return the ``signature`` header for the three signed headers."""
    message = f"{timestamps}{nonce}{payload}".encode()
    return base64.b64encode(_hmac(secret_key, message).hex().encode()).decode()


def verify(secret_key: str, timestamps: str, nonce: str, payload: str, signature: str) -> bool:
    """Compare the signature with the right one in constant time; returns whether they agree."""
    expected = sign(secret_key, timestamps, nonce, payload)
    return hmac.compare_digest(expected.encode(), signature.encode())


def sign_headers(
    app_key: str, secret_key: str, *body: bytes, now_ms: int, nonce: str
) -> dict[str, str]:
    """Return the five headers that authenticate a request with this body (or query string),
    whole or in parts."""
    timestamps = str(now_ms // 1000)
    payload = payload_digest(*body)
    return {
        "app_key": app_key,
        "nonce": nonce,
        "timestamps": timestamps,
        "signature": sign(secret_key, timestamps, nonce, payload),
        "payload": payload,
    }


def sign_webhook(secret_key: str, message_id: str, timestamp: int, *body: bytes) -> str:
    """Return the ``webhook-signature`` header of Standard Webhooks, version 1, for a body,
    whole or in parts.

    The key is the bytes of ``secret_key``; a public verifier library takes it as
    ``whsec_`` + base64(secret_key).
    """
    head = b"%s.%d." % (message_id.encode(), timestamp)
    return "v1," + base64.b64encode(_hmac(secret_key, head, *body)).decode()


def _hmac(secret_key: str, *message: bytes) -> bytes:
    """HMAC-SHA256 (RFC 2104).

    `hmac.digest` would be shorter, but releases the interpreter lock to other threads each
    time, however short the message.
    """
    code = _keyed(secret_key).copy()
    for part in message:
        code.update(part)
    return code.digest()


@functools.lru_cache(_KEYS_KEPT)
def _keyed(secret_key: str) -> hmac.HMAC:
    return hmac.new(secret_key.encode(), digestmod="sha256")


def random_token(length: int) -> str:
    """Return a fresh unguessable string of ASCII letters and digits."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))

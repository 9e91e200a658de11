"""Authenticates taskd to a MySQL server.

trio-mysql 1.0.3 does not await its own coroutines in two of the three ways that
``caching_sha2_password``, the default of MySQL 8, can take. It also sends the password in
clear text to any server that asks for it. So these two methods are done here, and methods
that are not safe or not known are refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from trio_mysql._auth import sha2_rsa_encrypt  # type: ignore[import-untyped] # it has no types

from taskd.errors import StoreRefused

_NONCE_LENGTH = 20
_FAST_DONE, _FULL_NEEDED = 3, 4
_REQUEST_KEY = b"\x02"
_AUTH_MORE_DATA = 1
_OK = 0


def _scrambled(password: bytes, nonce: bytes) -> bytes:
    """Return SHA256(password) XOR SHA256(SHA256(SHA256(password)), nonce), as MySQL describes
    its caching_sha2_password."""
    once = hashlib.sha256(password).digest()
    mask = hashlib.sha256(hashlib.sha256(once).digest() + nonce).digest()
    return bytes(a ^ b for a, b in zip(once, mask, strict=True))


class CachingSha2:
    """``caching_sha2_password``: sends a scramble and, if the server has not cached this user's
    password, the password itself, over TLS or encrypted by the server's RSA key."""

    def __init__(self, wire: Any) -> None:  # noqa: ANN401 - the library's connection
        self._wire = wire

    async def authenticate(self, packet: Any) -> Any:  # noqa: ANN401 - the library's packets
        """Answer the server's switch to this method; returns its last packet."""
        wire = self._wire
        nonce: bytes = packet.read_all()[:_NONCE_LENGTH]
        password: bytes = wire.password
        if not password:
            return await self._exchange(b"")
        answer = await self._exchange(_scrambled(password, nonce))
        data = answer.get_all_data()
        if data[0] == _OK:
            return answer
        if data[:2] == bytes([_AUTH_MORE_DATA, _FAST_DONE]):
            return await wire.read_packet()
        if data[:2] != bytes([_AUTH_MORE_DATA, _FULL_NEEDED]):
            raise StoreRefused("the database asks for a password in a way that is not known")
        if wire.secure:
            return await self._exchange(password + b"\0")
        key = (await self._exchange(_REQUEST_KEY)).get_all_data()[1:]
        return await self._exchange(_encrypted(password, nonce, key))

    async def _exchange(self, data: bytes) -> Any:  # noqa: ANN401 - the library's packet
        await self._wire.write_packet(data)
        return await self._wire.read_packet()


def _encrypted(password: bytes, nonce: bytes, key: bytes) -> bytes:
    try:
        encrypted: bytes = sha2_rsa_encrypt(password, nonce, key)
    except RuntimeError as error:
        raise StoreRefused(
            "the database's user has a caching_sha2_password, which needs TLS (tls=true in the "
            "URL) or the package cryptography"
        ) from error
    return encrypted


class ClearPassword:
    """``mysql_clear_password``: sends the password itself, so over TLS only."""

    def __init__(self, wire: Any) -> None:  # noqa: ANN401 - the library's connection
        self._wire = wire

    async def authenticate(self, _packet: Any) -> Any:  # noqa: ANN401 - the library's packets
        """Answer the server's switch to this method; returns its last packet."""
        if not self._wire.secure:
            raise StoreRefused(
                "the database asks for the password in clear text, which anybody on the way "
                "could read: use TLS (tls=true in the URL), or another kind of user"
            )
        await self._wire.write_packet(self._wire.password + b"\0")
        return await self._wire.read_packet()


class NotKnown:
    """Methods that are not safe, or that the library does not know."""

    def __init__(self, wire: Any) -> None:  # noqa: ANN401 - the library's connection
        self._wire = wire

    async def authenticate(self, _packet: Any) -> Any:  # noqa: ANN401 - the library's packets
        """Refuse the method."""
        raise StoreRefused(
            "the database asks for the password in a way that is not safe or not known here: use "
            "a user with caching_sha2_password or mysql_native_password"
        )


METHODS: dict[str, Callable[[Any], Any]] = {
    "caching_sha2_password": CachingSha2,
    "mysql_clear_password": ClearPassword,
    "mysql_old_password": NotKnown,
    "dialog": NotKnown,
    "client_ed25519": NotKnown,
}
"""By the names that servers use."""

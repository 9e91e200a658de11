"""The job that every Python peer does: sign a callback as taskd does, POST it over a
connection that is kept alive, and take nothing but ``success`` for an answer.

One module for all, so that no peer has a better HTTP client than another: the standard
library's for workers of threads and processes, aiohttp for those of asyncio.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import os
import secrets
import socket
import threading
import time

import aiohttp

PORT = int(os.environ["PEERS_RECEIVER"])
SECRET = os.environ["PEERS_SECRET"].encode()
BROKER = os.environ.get("PEERS_BROKER", "")
RECOVERY_S = int(os.environ.get("PEERS_RECOVERY_S", "0"))
"""After how long a dead worker's tasks should come back, in the runs that kill one;
0 elsewhere, where the peer's own default holds."""

_PATH = "/callback"
_own = threading.local()
_session: aiohttp.ClientSession | None = None


class NotTakenError(Exception):
    """The receiver did not answer ``success``."""


def signed(number: int, content: str) -> tuple[dict[str, str], bytes]:
    """Headers and body of one callback, by docs/reference/api.md."""
    body = b'{"data": %s}' % content.encode()
    timestamps = str(int(time.time()))
    nonce = "cb-" + secrets.token_hex(12)
    payload = hashlib.sha256(body).hexdigest()
    digest = hmac.digest(SECRET, (timestamps + nonce + payload).encode(), "sha256")
    headers = {
        "Content-Type": "application/json",
        "app_key": "peer",
        "nonce": nonce,
        "timestamps": timestamps,
        "payload": payload,
        "signature": base64.b64encode(digest.hex().encode()).decode(),
        "Taskd-Task-No": str(number),
    }
    return headers, body


def deliver(number: int, content: str) -> None:
    """Deliver over this thread's own connection."""
    headers, body = signed(number, content)
    connection = getattr(_own, "connection", None)
    if connection is None:
        connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=10)
        connection.connect()
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _own.connection = connection
    try:
        connection.request("POST", _PATH, body, headers)
        answer = connection.getresponse().read()
    except BaseException:
        # Whatever it was, the connection is in the middle of something.
        _own.connection = None
        connection.close()
        raise
    if answer != b"success":
        raise NotTakenError(answer)


async def deliver_async(number: int, content: str) -> None:
    """Deliver over the process's pool of connections."""
    global _session  # noqa: PLW0603 - one pool for the process, made in its event loop
    if _session is None:
        _session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60),
            timeout=aiohttp.ClientTimeout(total=10),
            auto_decompress=False,
        )
    headers, body = signed(number, content)
    async with _session.post(
        f"http://127.0.0.1:{PORT}{_PATH}", data=body, headers=headers
    ) as response:
        answer = await response.read()
    if answer != b"success":
        raise NotTakenError(answer)

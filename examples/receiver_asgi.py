"""The receiver as an ASGI application, for uvicorn, hypercorn, daphne.

    uvicorn --port 9000 receiver_asgi:app

in this folder, with TASKD_APP_KEY and TASKD_SECRET_KEY in the environment.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from receiver import MAX_BODY, Receiver

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

receiver = Receiver.from_environment()


async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """One request, or the server's start and end."""
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
    elif scope["type"] == "http":
        status, text = await answer(scope, receive)
        kind = (b"content-type", b"text/plain; charset=utf-8")
        await send({"type": "http.response.start", "status": status, "headers": [kind]})
        await send({"type": "http.response.body", "body": text.encode()})


async def answer(scope: dict[str, Any], receive: Receive) -> tuple[int, str]:
    """Status and text."""
    if scope["method"] != "POST":
        return 405, "POST only"
    body = b""
    more = True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > MAX_BODY:
            return 413, "the body is too big"
    headers = [
        (name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]
    ]
    return receiver.answer(headers, body)


async def lifespan(receive: Receive, send: Send) -> None:
    """Say that there is nothing to start or to end."""
    while True:
        event = (await receive())["type"]
        await send({"type": f"{event}.complete"})
        if event == "lifespan.shutdown":
            return

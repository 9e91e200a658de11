"""The receiver as a WSGI application, for gunicorn, waitress, uWSGI, mod_wsgi.

    gunicorn --bind 127.0.0.1:9000 receiver_wsgi:app

in this folder, with TASKD_APP_KEY and TASKD_SECRET_KEY in the environment. By itself (python3
receiver_wsgi.py 9000) it runs on the standard library's server.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING
from wsgiref.simple_server import make_server

from receiver import MAX_BODY, Receiver

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

receiver = Receiver.from_environment()


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """One request."""
    status, text = answer(environ)
    body = text.encode()
    start_response(
        f"{status} {HTTPStatus(status).phrase}",
        [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))],
    )
    return [body]


def answer(environ: WSGIEnvironment) -> tuple[int, str]:
    """Status and text."""
    if environ["REQUEST_METHOD"] != "POST":
        return 405, "POST only"
    length = int(environ.get("CONTENT_LENGTH") or 0)
    if length > MAX_BODY:
        return 413, "the body is too big"
    prefix = "HTTP_"
    headers = [
        (name.removeprefix(prefix), value)
        for name, value in environ.items()
        if name.startswith(prefix)
    ]
    return receiver.answer(headers, environ["wsgi.input"].read(length))


if __name__ == "__main__":
    with make_server("127.0.0.1", int(sys.argv[1]), app) as server:
        server.serve_forever()

"""A daemon where anybody registers, and strangers whose names are never answered. To be
run where `tests.support.silent_names` is.

Prints how long deliveries to other names took, in seconds.
"""

from __future__ import annotations

import json
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path
from urllib.request import Request, urlopen

from taskd.client import Client
from tests.support.daemon import Daemon, wait_until
from tests.support.receiver import Receiver
from tests.support.silent_names import HELD_OF_ONE, serve


def register(daemon: Daemon, link_url: str) -> Client:
    """Make an application as a stranger."""
    body = json.dumps({"appName": "a", "linkUrl": link_url, "retryTotal": 0}).encode()
    headers = {"Content-Type": "application/json"}
    request = Request(f"{daemon.url}/application/create", body, headers)
    with urlopen(request, timeout=20) as answer:
        data = json.load(answer)["data"]
    return Client(daemon.url, data["appKey"], data["secretKey"])


def submit(client: Client) -> None:
    client.create_task(task_no="1", name="t", content="{}", timeout=60_000)


def main(number: int) -> None:
    """Have that many names asked for that are never answered, then deliver to others."""
    asked: set[bytes] = set()
    took_s: dict[str, float] = {}
    sections: dict[str, dict[str, object]] = {
        "auth": {"open_registration": True},
        "delivery": {"allowed_networks": ["127.0.0.0/8"]},
    }
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
        tempfile.TemporaryDirectory() as folder,
        Receiver() as receiver,
    ):
        sock.bind(("127.0.0.1", 53))
        threading.Thread(target=serve, args=(sock, asked), daemon=True).start()
        port = receiver.url.rpartition(":")[2]
        with Daemon(Path(folder), sections=sections) as daemon:
            for one in range(number):
                with register(daemon, f"http://{one}.silent.test:{port}") as client:
                    submit(client)
            wait_until(lambda: len(asked) >= number * HELD_OF_ONE, within_s=60)
            for name in ("first.answers.test", "here.test", "localhost"):
                began = time.monotonic()
                with register(daemon, f"http://{name}:{port}") as client:
                    submit(client)
                delivered = len(took_s) + 1
                receiver.wait_for(lambda ledger: len(ledger) == delivered, within_s=60)  # noqa: B023 - it ends in the loop
                took_s[name] = time.monotonic() - began
            daemon.kill()
    sys.stdout.write(json.dumps(took_s))


if __name__ == "__main__":
    main(int(sys.argv[1]))

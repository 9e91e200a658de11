"""Two hundred and more names under a name server that never answers, and others beside
them. To be run where resolv.conf names 127.0.0.1, and the hosts file has here.test.

Prints how long each of the others took, in seconds.
"""

from __future__ import annotations

import json
import socket
import struct
import sys
import threading
import time
from typing import NoReturn

import trio

from taskd.delivery.resolver import Resolver

HELD_OF_ONE, HELD_OF_FOUR = 0.5, 0.75
"""Parts of 200 names that are looked up at a time, at least, where they are of one domain
and of four."""

_A = 1


def serve(sock: socket.socket, asked: set[bytes]) -> NoReturn:
    """Answer for the names under answers.test, and be silent about all others."""
    while True:
        query, client = sock.recvfrom(512)
        name, at = query[12:], 0
        while name[at]:
            at += name[at] + 1
        question = name[: at + 5]
        asked.add(name[:at])
        if b"\x07answers\x04test" not in question:
            continue
        (kind,) = struct.unpack_from(">H", question, at + 1)
        answer = b"\xc0\x0c" + struct.pack(">HHIH4s", _A, 1, 0, 4, b"\x7f\x00\x00\x01")
        found = kind == _A
        head = query[:2] + struct.pack(">HHHHH", 0x8180, 1, found, 0, 0)
        sock.sendto(head + question + (answer if found else b""), client)


async def main(number: int) -> None:
    """Ask for that many names that are never answered, and then for the others."""
    asked: set[bytes] = set()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 53))
        threading.Thread(target=serve, args=(sock, asked), daemon=True).start()
        resolver = Resolver()
        took_s: dict[str, float] = {}
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for one in range(number):
                    nursery.start_soon(resolver.resolve, f"{one}.silent{one % 4}.test")
                while len(asked) < number * HELD_OF_FOUR:
                    await trio.sleep(0.01)
                for name in ("first.answers.test", "here.test", "localhost"):
                    began = time.monotonic()
                    assert set(await resolver.resolve(name)) <= {"127.0.0.1", "::1"}
                    took_s[name] = time.monotonic() - began
                nursery.cancel_scope.cancel()
        sys.stdout.write(json.dumps(took_s))


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]))

"""Thousands of connections that say half of something, kept up: one that is closed comes
again at once. Run as a process of its own, so that it takes nobody else's time or files."""

from __future__ import annotations

import argparse
import contextlib
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

_ROOT = Path(__file__).parents[2]
_BIND_ADDRESS_NO_PORT = 24
_DRIBBLE_S = 0.5
_LONGEST_S = 60.0
"""An attacker whose test has forgotten it ends by itself."""


class Flood:
    """Many connections to a daemon of this machine, while the block runs.

    Args:
        url: of the daemon.
        says: what each connection sends at first.
        adds: what it sends from time to time.
        connections: how many are to be open.
        addresses: of so many in 127.0.0.0/8 they come.
        deaf: reads no answers.
    """

    def __init__(
        self,
        url: str,
        says: bytes,
        *,
        adds: bytes = b"",
        connections: int = 2000,
        addresses: int = 1,
        deaf: bool = False,
    ) -> None:
        parts = urlsplit(url)
        self._command = [
            *(sys.executable, "-m", "tests.support.flood"),
            *(str(parts.hostname), str(parts.port), says.hex(), adds.hex()),
            *(str(connections), str(addresses), str(int(deaf))),
        ]
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self._process = process = subprocess.Popen(
            self._command, cwd=_ROOT, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        return self

    def __exit__(self, *exc_info: object) -> None:
        process = self._process
        assert process is not None
        assert process.stdout is not None
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        self.made = int(process.stdout.readline() or 0)
        process.wait(10)
        process.stdout.close()

    made: int = 0
    """How many connections were made in all, once it has ended."""


class _Attacker:
    def __init__(self, options: argparse.Namespace) -> None:
        self._target = (options.host, options.port)
        self._says = bytes.fromhex(options.says)
        self._adds = bytes.fromhex(options.adds)
        self._addresses = options.addresses
        self._deaf = bool(options.deaf)
        self._poll = select.epoll()
        self._open: dict[int, tuple[int, socket.socket]] = {}
        self._again: list[int] = list(range(options.connections))
        self._more = options.connections
        self.made = 0

    def run(self) -> None:
        until = time.monotonic() + _LONGEST_S
        dribbled = time.monotonic()
        while time.monotonic() < until:
            again, self._again = self._again, []
            for number in again:
                self._connect(number)
            if self._more and self.made >= self._more:
                self._more = 0
                sys.stdout.write("up\n")
                sys.stdout.flush()
            for fd, events in self._poll.poll(0.05, 256):
                self._answer(fd, events)
            if self._adds and time.monotonic() - dribbled > _DRIBBLE_S:
                dribbled = time.monotonic()
                for _, sock in list(self._open.values()):
                    with contextlib.suppress(OSError):
                        sock.send(self._adds)

    def _connect(self, number: int) -> None:
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
        which = number % self._addresses
        sock.bind((f"127.0.{which // 250}.{which % 250 + 1}", 0))
        with contextlib.suppress(BlockingIOError):
            sock.connect(self._target)
        self.made += 1
        self._open[sock.fileno()] = (number, sock)
        self._poll.register(sock.fileno(), select.EPOLLOUT)

    def _answer(self, fd: int, events: int) -> None:
        number, sock = self._open[fd]
        try:
            if events & (select.EPOLLERR | select.EPOLLHUP):
                raise ConnectionResetError
            if events & select.EPOLLOUT:
                sock.send(self._says)
                self._poll.modify(fd, 0 if self._deaf else select.EPOLLIN)
            elif not sock.recv(65_536):
                raise ConnectionResetError
        except BlockingIOError:
            pass
        except OSError:
            del self._open[fd]
            sock.close()
            self._again.append(number)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("says")
    parser.add_argument("adds")
    parser.add_argument("connections", type=int)
    parser.add_argument("addresses", type=int)
    parser.add_argument("deaf", type=int)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    attacker = _Attacker(parser.parse_args())
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit())
    try:
        attacker.run()
    except SystemExit:
        sys.stdout.write(f"{attacker.made}\n")


if __name__ == "__main__":
    main()

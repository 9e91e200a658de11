"""A private tinyproxy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tools.servers.process import Server, find


class Tinyproxy(Server):
    """Debian's tinyproxy, which makes tunnels to anywhere.

    Args:
        folder: an empty folder of its own.
        settings: more lines for its configuration.
    """

    ready = rb"Accepting connections"

    def __init__(self, folder: Path, *, settings: Sequence[str] = ()) -> None:
        super().__init__(folder)
        lines = [
            *(f"Port {self.port}", f"Listen {self.host}", "Timeout 600", "MaxClients 100"),
            *("LogLevel Info", *settings),
        ]
        self._config_path = folder / "tinyproxy.conf"
        self._config_path.write_text("\n".join(lines) + "\n")

    def command(self) -> list[str]:
        program = find("tinyproxy", install="apt-get install tinyproxy")
        return [program, "-d", "-c", str(self._config_path)]

    def asked_for(self) -> list[str]:
        """What it was asked to connect to, as it logs it."""
        return [
            line.rpartition("CONNECT ")[2].removesuffix(" HTTP/1.1")
            for line in self.log().splitlines()
            if ": CONNECT " in line
        ]

"""Several real daemons on one set of servers."""

from __future__ import annotations

import subprocess
import sys
import weakref
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from taskd.client import Client
from tests.support.daemon import Daemon
from tools.servers.reserved_port import ReservedPort

LEASE_S = 5


class Cluster:
    """Nodes with folders and ports of their own; entered, they run.

    Args:
        folder: where their folders are made.
        urls: those of the servers, by section; ``per_node`` may override them.
        environ: variables of each node's own.
    """

    def __init__(
        self,
        folder: Path,
        urls: Mapping[str, str],
        *,
        nodes: int = 3,
        per_node: Mapping[int, Mapping[str, Mapping[str, object]]] | None = None,
        environ: Mapping[int, Mapping[str, str]] | None = None,
    ) -> None:
        self.nodes: list[Daemon] = []
        # Kept for it while it is down, too.
        self._ports = ExitStack()
        weakref.finalize(self, self._ports.close)
        secret: str | None = None
        for number in range(nodes):
            home = folder / f"node-{number}"
            home.mkdir()
            sections: dict[str, dict[str, object]] = {
                **{name: {"url": url} for name, url in urls.items()},
                "worker": {"lease": LEASE_S},
            }
            for name, values in ((per_node or {}).get(number) or {}).items():
                sections.setdefault(name, {}).update(values)
            if secret is not None:
                sections.setdefault("auth", {})["admin_secret"] = secret
            node = Daemon(
                home,
                sections=sections,
                environ=(environ or {}).get(number),
                port=self._ports.enter_context(ReservedPort()),
            )
            if secret is None:
                secret = node.admin_secret
            node.admin_secret = secret
            self.nodes.append(node)

    def __getitem__(self, number: int) -> Daemon:
        return self.nodes[number]

    @property
    def urls(self) -> list[str]:
        return [node.url for node in self.nodes]

    def migrate(self) -> None:
        migrate(self.nodes[0])

    def clients(self, keys: tuple[str, str], stack: ExitStack) -> list[Client]:
        """A client of each node, as one application."""
        return [stack.enter_context(Client(url, *keys)) for url in self.urls]

    def start(self) -> None:
        for node in self.nodes:
            node.start()

    def __enter__(self) -> Self:
        self.migrate()
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def kill(self) -> None:
        for node in self.nodes:
            node.kill()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.kill()
        self._ports.close()
        if exc is not None:
            for number, node in enumerate(self.nodes):
                tail = "\n".join(node.log().splitlines()[-30:])
                sys.stderr.write(f"--- node {number}\n{tail}\n")


def migrate(node: Daemon) -> None:
    """``taskd migrate`` with a node's config."""
    subprocess.run(
        [*node.command, "migrate", "--config", str(node.config_path)],
        check=True,
        timeout=60,
        capture_output=True,
        cwd=node.folder,
    )


def node_of(detail: Mapping[str, Any]) -> str | None:
    """Which node a detail says the task runs on."""
    node = detail["task"]["node"]
    return None if node is None else str(node)

"""The versions of what was compared."""

from __future__ import annotations

import json
import subprocess

import taskd
from tools.bench.peers import roster
from tools.bench.peers.roster import Peer


def of(peer: Peer) -> dict[str, str]:
    """Name and version of each of the peer's packages, as they are installed."""
    if peer.broker == "taskd":
        # The release says little of a checkout, whose figures are kept for long.
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=roster.ROOT,
            capture_output=True,
            text=True,
            check=False,
        ).stdout.strip()
        return {"taskd": f"{taskd.__version__} {commit}".strip()}
    told: dict[str, str] = {}
    python = [package for package in peer.packages if not package.startswith("npm:")]
    if python:
        code = (
            "import json, sys, importlib.metadata as m;"
            "print(json.dumps({name: m.version(name) for name in sys.argv[1:]}))"
        )
        # The interpreter that submits is the one that has the packages.
        done = subprocess.run(
            [peer.submitter[0], "-c", code, *python], capture_output=True, text=True, check=True
        )
        told |= json.loads(done.stdout)
    for package in peer.packages:
        if package.startswith("npm:"):
            name = package.removeprefix("npm:")
            manifest = roster.NODE_FOLDER / "node_modules" / name / "package.json"
            told[name] = json.loads(manifest.read_text())["version"]
            node = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True)
            told["Node"] = node.stdout.strip().removeprefix("v")
    return told

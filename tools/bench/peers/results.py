"""The raw figures: a JSON file for each peer, durability class and round."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tools.bench.peers import roster

FOLDER = roster.HOME / "results"


class Result:
    """One file: what one round of one peer in one class has brought so far."""

    def __init__(self, key: str, durability: str, number: int, folder: Path = FOLDER) -> None:
        self.path = folder / f"{key}--{durability}--{number}.json"
        self.data: dict[str, Any] = {
            "peer": key,
            "durability": durability,
            "round": number,
            "figures": {},
            "errors": {},
        }
        if self.path.exists():
            self.data = json.loads(self.path.read_text())

    def has(self, measure: str) -> bool:
        """Whether there are figures. What has failed is tried again."""
        return measure in self.data["figures"]

    def put(self, measure: str, figures: dict[str, Any]) -> None:
        """Note figures."""
        self.data["errors"].pop(measure, None)
        self.data["figures"][measure] = figures
        self._write()

    def fail(self, measure: str, error: str) -> None:
        """Note why there are none."""
        self.data["figures"].pop(measure, None)
        self.data["errors"][measure] = error
        self._write()

    def about(self, **facts: object) -> None:
        """Note what it was measured with."""
        self.data.update(facts)

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".new")
        temporary.write_text(json.dumps(self.data, indent=1, ensure_ascii=False) + "\n")
        temporary.replace(self.path)


def load(folder: Path = FOLDER) -> list[dict[str, Any]]:
    """All results that are there, in the roster's order."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*--*--*.json"))]
    order = {peer.key: index for index, peer in enumerate(roster.PEERS)}
    return sorted(
        (result for result in found if result["peer"] in order),
        key=lambda result: (order[result["peer"]], result["durability"], result["round"]),
    )


def values(results: list[dict[str, Any]], path: tuple[str, ...]) -> Iterator[float]:
    """The figure at a path such as ``("throughput", "batch", "submit_per_s")``, of each
    result that has it."""
    for result in results:
        value: Any = result["figures"]
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        if value is not None:
            yield value

"""``make bench-peers``: measures taskd and its peers; ``report`` writes the page.

    python -m tools.bench.peers                          everything that has no figures yet
    python -m tools.bench.peers celery bullmq --runs 3   of these alone
    python -m tools.bench.peers report                   docs/explanation/benchmarks.md anew

The figures go to .bench-peers/results/, a JSON file for each peer, durability class and
round; what is there already is not measured again, unless --fresh says so.
"""

from __future__ import annotations

import argparse
import datetime
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tools.bench import machine, stage
from tools.bench.peers import kills, measure, receiver, report, roster, servers, versions
from tools.bench.peers.results import Result
from tools.bench.peers.roster import Peer
from tools.bench.peers.stage import Stage

_FULL = ("throughput", "latency", "lateness", "kill_worker", "kill_broker")
_KILLS = ("kill_worker", "kill_broker")
_SECONDS = {"throughput": 10, "latency": 6, "lateness": 15, "kill_worker": 6, "kill_broker": 8}
_START_S = 5


def measures_of(peer: Peer, durability: str) -> tuple[str, ...]:
    """What is measured of a peer in a class. Kills only of what promises to outlive
    them; and where the broker is nothing apart, one kill does."""
    if durability == "everysec":
        return ("throughput",)
    left_out: set[str] = set()
    if durability == "memory":
        left_out.update(_KILLS)
    if peer.key == "taskd-1":
        left_out.add("kill_worker")  # the daemon is both
    if peer.broker == "sqlite":
        left_out.add("kill_broker")  # there is none
    return tuple(name for name in _FULL if name not in left_out)


def _wanted(options: argparse.Namespace) -> Iterator[tuple[Peer, str, int, list[str]]]:
    """Peer, class, round and measures that are still to be made: round by round, so
    that what changes on the machine meets all peers alike."""
    for number in range(1, options.runs + 1):
        for peer in roster.PEERS:
            if options.peer and peer.key not in options.peer:
                continue
            for durability in peer.classes:
                if options.classes and durability not in options.classes:
                    continue
                result = Result(peer.key, durability, number)
                missing = [
                    name
                    for name in measures_of(peer, durability)
                    if (not options.measures or name in options.measures)
                    and (options.fresh or not result.has(name))
                ]
                if missing:
                    yield peer, durability, number, missing


def _estimate_s(peer: Peer, names: list[str]) -> float:
    seconds = sum(_SECONDS[name] for name in names) + _START_S * (
        1 + any(n in _KILLS for n in names)
    )
    return seconds + peer.recovers_s * 1.2 * sum(name in _KILLS for name in names)


def _measure(name: str, at: Stage, result: Result) -> dict[str, object]:
    if name == "lateness":
        rate = result.data["figures"].get("throughput", {}).get("single", {}).get("submit_per_s")
        return measure.lateness(at, lead_s=1 + 1.5 * measure.DELAYED / (rate or 400))
    known: dict[str, Callable[[Stage], dict[str, object]]] = {
        "throughput": measure.throughput,
        "latency": measure.latency,
        "kill_worker": kills.worker,
        "kill_broker": kills.broker,
    }
    return known[name](at)


def _run(peer: Peer, durability: str, number: int, names: list[str]) -> None:
    """The measures of one round: undisturbed ones on one stage, kills on another; after
    a failure the next has a stage of its own."""
    result = Result(peer.key, durability, number)
    try:
        told = versions.of(peer)
    except (OSError, subprocess.CalledProcessError) as error:
        _say(f"    not installed, so not measured: {error}")
        return
    result.about(
        at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        machine=machine.describe(),
        versions=told,
    )
    waiting = list(names)
    while waiting:
        killing = waiting[0] in _KILLS
        with stage.folder() as folder:
            # PostgreSQL's user must be able to reach its folder within.
            folder.chmod(0o755)
            name = waiting[0]
            try:
                with Stage(peer, durability, folder, recovering=killing) as at:
                    result.about(broker=at.broker.version)
                    measure.warm_up(at)
                    while waiting and (waiting[0] in _KILLS) == killing:
                        name = waiting[0]
                        began = time.monotonic()
                        result.put(name, _measure(name, at, result))
                        _tell(f"    {name}: {_brief(result.data['figures'][name])}", began)
                        waiting.pop(0)
            except servers.Missing as error:
                _say(f"    not measured: {error}")
                return
            except Exception as error:  # noqa: BLE001 - noted; the others go on
                result.fail(name, f"{type(error).__name__}: {error}")
                _say(f"    {name} failed: {str(error)[-300:]}")
                waiting.pop(0)


def _brief(figures: dict[str, object]) -> str:
    words = []
    for name, value in figures.items():
        if isinstance(value, dict):
            words.append(f"{name} {value['submit_per_s']:.0f}/{value['end_to_end_per_s']:.0f}")
        elif isinstance(value, float):
            words.append(f"{name} {value:.1f}")
        else:
            words.append(f"{name} {value}")
    return ", ".join(words)


def _say(text: str) -> None:
    print(text, flush=True)


def _tell(text: str, began: float) -> None:
    _say(f"{text} ({time.monotonic() - began:.0f} s)")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("peer", nargs="*", help=f"of {', '.join(roster.BY_KEY)}; default: all")
    parser.add_argument("--runs", type=int, default=3, help="rounds (default 3)")
    parser.add_argument("--fresh", action="store_true", help="measure again what has figures")
    parser.add_argument(
        "--class",
        dest="classes",
        action="append",
        choices=[*roster.CLASSES],
        help="of this durability class alone; may be given several times",
    )
    parser.add_argument(
        "--measure",
        dest="measures",
        action="append",
        choices=_FULL,
        help="this measure alone; may be given several times",
    )
    parser.add_argument("--results", type=Path, help="report: another folder of results")
    options = parser.parse_args()
    unknown = set(options.peer) - set(roster.BY_KEY) - {"report"}
    if unknown:
        parser.error(f"no such peer: {', '.join(sorted(unknown))}")
    return options


def main() -> None:
    """Measure what is missing, or write the page."""
    options = _options()
    if options.peer == ["report"]:
        report.write(options.results)
        return
    # A TERM ends the servers, too: the stage they are on is left.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    todo = list(_wanted(options))
    if not todo:
        _say("everything has figures; --fresh measures again")
    receiver.build(roster.HOME / "receiver")
    left = sum(_estimate_s(peer, names) for peer, _, _, names in todo)
    _say(f"{machine.describe()}\n{len(todo)} runs, about {left / 60:.0f} minutes")
    for index, (peer, durability, number, names) in enumerate(todo, 1):
        _say(
            f"[{index}/{len(todo)}] {peer.name}, {durability}, round {number}; "
            f"about {left / 60:.0f} minutes left"
        )
        _run(peer, durability, number, names)
        left -= _estimate_s(peer, names)


if __name__ == "__main__":
    main()

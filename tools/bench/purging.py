"""What creates notice of finished tasks being purged."""

from __future__ import annotations

import time
from dataclasses import dataclass

from tools.bench import filling, load
from tools.bench.figures import Figure, of_runs, percentile, tell
from tools.bench.stage import KEYS, Receiver, Slot, folder, running

_DAY_MS = 86_400_000
_PAST_RETENTION_MS = 31 * _DAY_MS
_PURGED = 500_000
_PER_SECOND = 50
_ASKED_MS = 50
_AT_MOST_S = 300


@dataclass(frozen=True)
class _Run:
    seconds: float
    took_ms: list[float]


def purge(receiver: Receiver, runs: int) -> None:
    """Creates while 500,000 tasks past their retention are purged."""
    during, without = [], []
    with folder() as made:
        template = Slot(made)
        filling.make(
            template,
            receiver.url,
            finished=_PURGED,
            waiting=_PURGED,
            finished_ago_ms=_PAST_RETENTION_MS,
        )
        for _ in range(runs):
            with folder() as target:
                place = Slot(target)
                filling.copy(template, place)
                during.append(_purged(place))
                without.append(_calm(place, seconds=min(20.0, during[-1].seconds)))
    longest = [max(run.took_ms) for run in during]
    # A single longer one counts: the figure of every run has to hold.
    met = max(longest) < _ASKED_MS
    tell(
        [
            Figure(
                "longest create while 500,000 tasks are purged",
                max(longest),
                "ms",
                f"< {_ASKED_MS}",
                met,
                (min(longest), max(longest)),
            ),
            of_runs("  p99", [percentile(run.took_ms, 0.99) for run in during], "ms"),
            of_runs("  p50", [percentile(run.took_ms, 0.5) for run in during], "ms"),
            of_runs("  the purge took", [run.seconds for run in during], "s"),
            of_runs("longest create once all is purged", [max(r.took_ms) for r in without], "ms"),
            of_runs("  p99", [percentile(run.took_ms, 0.99) for run in without], "ms"),
        ]
    )


def _purged(place: Slot) -> _Run:
    """Creates from the start, which begins to purge, until nothing is left."""
    took: list[float] = []
    with running(place) as daemon:
        began = time.monotonic()
        while filling.any_finished(place):
            if time.monotonic() - began > _AT_MOST_S:
                raise TimeoutError(f"the purge takes longer than {_AT_MOST_S} s")
            took += _creates(daemon.url, 2 * _PER_SECOND)
        return _Run(time.monotonic() - began, took)


def _calm(place: Slot, *, seconds: float) -> _Run:
    with running(place) as daemon:
        return _Run(seconds, _creates(daemon.url, int(seconds * _PER_SECOND)))


def _creates(url: str, count: int) -> list[float]:
    later = time.time_ns() // 1_000_000 + _DAY_MS
    requests = [load.create_request(url, KEYS, runtime_ms=later) for _ in range(count)]
    return [one.took_ms for one in load.submit_paced(url, requests, per_second=_PER_SECOND)]

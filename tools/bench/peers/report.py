"""Writes the tables and the plots of docs/explanation/benchmarks.md from the raw results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.bench.peers import results, roster, svg
from tools.bench.peers.figures import (
    COSTS,
    END_TO_END,
    KILLS,
    MODES,
    SUBMIT,
    TIERS,
    TIMES,
    Column,
    Row,
    rows,
    winners,
)

PAGE = roster.ROOT / "docs" / "explanation" / "benchmarks.md"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
_FSYNC = next(iter(TIERS))


def write(folder: Path | None = None, page: Path = PAGE) -> None:
    """Write the page's part between the markers, and the plots beside the page."""
    raw = results.load(folder or results.FOLDER)
    if not raw:
        raise SystemExit("no results yet: make bench-peers makes them")
    page.write_text(filled(page.read_text(), text(raw)))
    for name, chart in plots(raw).items():
        page.with_name(name).write_text(chart)
    print(f"written: {page.name} and {len(plots(raw))} plots, from {len(raw)} results")


def filled(page: str, figures: str) -> str:
    """A page with what stands between its markers replaced."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"the page has no {BEGIN} and {END}")
    return f"{before}{begin}\n\n{figures.strip()}\n\n{end}{after}"


def text(raw: Sequence[dict[str, Any]]) -> str:
    """All tables, with plots between, as Markdown."""
    tiers = rows(raw)
    parts = [
        _measured(raw),
        "### Submitting and delivering",
        "End-to-end tasks a second, from the first submit to the last delivery.",
        _table(tiers, END_TO_END, "end-to-end/s, "),
        f"![End-to-end rates of those that sync before they answer]({_plot('end-to-end')})",
        "Tasks submitted a second, by the submitter's clock.",
        _table(tiers, SUBMIT, "submit/s, "),
        "### Latency and lateness",
        "Milliseconds: create to receiver at 50 a second; a task's due time to its arrival.",
        _table(tiers, TIMES),
        f"![Lateness]({_plot('lateness')})",
        "### What it costs",
        (
            "CPU of worker and broker together, and of the submitter apart; resident memory of "
            "worker and broker after the run. In batches where the peer has them, else with "
            "16 in flight."
        ),
        _table(tiers, COSTS),
        f"![CPU seconds for 1,000 tasks]({_plot('cpu')})",
        "### kill -9",
        (
            "Of some thousands of tasks that were acknowledged: how many had not come back within "
            "the time that the peer is set up to recover in, and how many deliveries were of a "
            "task that had come already."
        ),
        _table(tiers, KILLS),
        "### Who is first",
        *_firsts(tiers),
        "### Versions and set-up",
        _setups(tiers),
        *_notes(raw),
    ]
    return "\n\n".join(part for part in parts if part)


def plots(raw: Sequence[dict[str, Any]]) -> dict[str, str]:
    """The plots by file name."""
    tiers = rows(raw)
    synced, everyone = tiers[_FSYNC], [row for tier in tiers.values() for row in tier]
    return {
        _plot("end-to-end"): svg.bars(
            "End-to-end tasks a second, fsync before submit returns",
            "tasks/s; the line is the range of the runs",
            list(MODES.values()),
            _groups(synced, END_TO_END),
        ),
        _plot("lateness"): svg.bars(
            "Lateness of 1,000 tasks due over 10 s",
            "ms, logarithmic; the line is the range of the runs",
            ["p50", "p99"],
            _groups(everyone, TIMES[2:], classes=True),
            log=True,
        ),
        _plot("cpu"): svg.bars(
            "CPU seconds for 1,000 tasks",
            "s; the line is the range of the runs",
            ["worker and broker", "submitter"],
            _groups(everyone, COSTS[:2], classes=True),
        ),
    }


def _plot(name: str) -> str:
    return f"benchmarks-{name}.svg"


def _groups(
    tier: Sequence[Row], columns: Sequence[Column], *, classes: bool = False
) -> list[svg.Group]:
    groups = []
    for row in tier:
        found = [(index, column.of(row)) for index, column in enumerate(columns)]
        made = [
            svg.Bar(index, figure.median, figure.low, figure.high)
            for index, figure in found
            if figure is not None
        ]
        if made:
            label = f"{row.name} ({row.durability})" if classes else row.name
            groups.append(svg.Group(label, made))
    return groups


def _measured(raw: Sequence[dict[str, Any]]) -> str:
    days = sorted({result["at"][:10] for result in raw})
    machine = max(raw, key=lambda result: str(result["at"]))["machine"]
    runs = max(result["round"] for result in raw)
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    how = f"Medians of {runs} runs, with the range in brackets." if runs > 1 else "One run of each."
    return (
        f"Measured on {when}: {machine}. {how} A dash: the peer has no such thing, it was not "
        "measured in this class, or the notes at the end say why there is no figure."
    )


def _table(tiers: dict[str, list[Row]], columns: Sequence[Column], prefix: str = "") -> str:
    names = [column.name.removeprefix(prefix) for column in columns]
    lines = [f"| durability | peer | {' | '.join(names)} |", "| --- " * (2 + len(columns)) + "|"]
    for tier, its_rows in tiers.items():
        label = tier
        for row in its_rows:
            cells = [column.of(row) for column in columns]
            if all(cell is None for cell in cells):
                continue
            name = f"**{row.name}**" if row.peer.broker == "taskd" else row.name
            told = " | ".join("–" if cell is None else str(cell) for cell in cells)
            lines.append(f"| {label} | {name} | {told} |")
            label = ""
    return "\n".join(lines)


def _firsts(tiers: dict[str, list[Row]]) -> list[str]:
    """Each column's best among those that promise what taskd promises."""
    lines = ["| column | first | taskd's best |", "| --- | --- | --- |"]
    for column, row, figure, ours in winners(tiers[_FSYNC]):
        own = column.of(ours) if ours else None
        if row is ours or own is None or ours is None:
            beside = "it is first" if row is ours else "–"
        else:
            ratio = own.median / figure.median if figure.median else 0
            beside = f"{own}, {ratio:.2f} times that ({ours.name})"
        lines.append(f"| {column.name} | {row.name}: {figure} | {beside} |")
    return [
        (
            "Among those that sync before submit returns; for the columns of time and cost the "
            "least is first."
        ),
        "\n".join(lines),
    ]


def _setups(tiers: dict[str, list[Row]]) -> str:
    lines = ["| peer | versions | set up as | tasks in a throughput run |", "| --- " * 4 + "|"]
    seen: dict[str, Row] = {}
    for row in (row for tier in tiers.values() for row in tier):
        seen.setdefault(row.peer.key, row)
    for key, row in sorted(seen.items(), key=lambda item: list(roster.BY_KEY).index(item[0])):
        latest = row.runs[-1]
        told = [f"{name} {version}" for name, version in latest["versions"].items()]
        told += [latest["broker"]] if latest.get("broker") else []
        peer = roster.BY_KEY[key]
        lines.append(f"| {peer.name} | {', '.join(told)} | {peer.setup} | {peer.tasks:,} at most |")
    return "\n".join(lines)


def _notes(raw: Sequence[dict[str, Any]]) -> list[str]:
    """What failed, and what went wrong in runs that were not disturbed."""
    told: dict[str, None] = {}
    for result in raw:
        name = f"{roster.BY_KEY[result['peer']].name}, {result['durability']}"
        for measure, error in result["errors"].items():
            last = error.strip().splitlines()[-1][:160]
            told[f"- {name}, {measure.replace('_', ' ')}: {_masked(last)}"] = None
        for mode, figures in result["figures"].get("throughput", {}).items():
            if figures["repeated"] or figures["refused"]:
                told[
                    f"- {name}, {MODES[mode]}: undisturbed, {figures['repeated']} came twice and "
                    f"{figures['refused']} were refused by the receiver."
                ] = None
        late = result["figures"].get("lateness", {})
        if late.get("earliest_ms", 0) < -1:
            told[f"- {name}: a task came {-late['earliest_ms']:.0f} ms before its time."] = None
        if late.get("submitted_in_time") is False:
            told[f"- {name}: submitting the delayed tasks was not over when the first was due."] = (
                None
            )
    return ["### Notes", "\n".join(told)] if told else []


def _masked(error: str) -> str:
    """An error's text without the paths of the machine."""
    return error.replace(str(roster.ROOT), "…").replace("|", "/").replace("<", "(")

"""A power cut at any moment undoes nothing that was told, and the next start takes the store as
it finds it. See `tests.support.power_cut` for how the power is cut."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.power_cut.cutting import Cuts, cut
from tests.support.power_cut.life import Life

_SEED = 1


@pytest.fixture(autouse=True)
def compiler() -> None:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler here: apt-get install gcc")


def check(cuts: Cuts, folder: Path) -> None:
    assert not cuts.faults, f"seed {_SEED}, recorded in {folder}:\n" + "\n".join(cuts.faults)


@pytest.mark.parametrize(
    ("workers", "ends", "requests"),
    [(1, ["kill", "stop", "kill", "stop"], 150), (2, ["kill", "stop"], 80)],
)
def test_a_power_cut_undoes_nothing_that_was_told(
    tmp_path: Path, pytestconfig: pytest.Config, workers: int, ends: list[str], requests: int
) -> None:
    count = int(pytestconfig.getoption("--power-cuts"))
    life = Life(tmp_path, seed=_SEED, workers=workers)
    life.run(ends=ends, requests=requests)
    cuts = cut(life, tmp_path / "cuts", count=count, seed=_SEED)
    check(cuts, tmp_path)
    assert cuts.made == count
    # The recording is whole, and there was something in it to be lost.
    files = {path.name: path.read_bytes() for path in life.store.iterdir()}
    assert cuts.last.files == files
    told = cuts.facts.counts
    assert min(told[kind] for kind in ("create", "attempt", "detail")) > requests, told
    assert min(told[kind] for kind in ("cancel", "existing", "batch")) > 10, told
    assert cuts.logs > 2 * len(ends)
    assert cuts.copies > 2 * len(ends)
    assert cuts.purged
    assert not cuts.purged & life.lasting


def test_a_power_cut_at_any_moment_of_a_start_or_an_end_is_survived(tmp_path: Path) -> None:
    life = Life(tmp_path, seed=_SEED)
    life.run(ends=["stop", "stop"], requests=2)
    cuts = cut(life, tmp_path / "cuts", count=None, seed=_SEED)
    check(cuts, tmp_path)
    assert cuts.made > 300


@pytest.mark.parametrize(
    ("unsynced", "told"), [("-wal", "can be used again"), ("", "the start is refused")]
)
def test_a_sync_that_is_left_out_is_found(tmp_path: Path, unsynced: str, told: str) -> None:
    life = Life(tmp_path, seed=_SEED, unsynced=unsynced)
    life.run(ends=["stop"], requests=50)
    cuts = cut(life, tmp_path / "cuts", count=200, seed=_SEED, patience=20)
    assert len(cuts.faults) >= 20
    assert any(told in fault for fault in cuts.faults)

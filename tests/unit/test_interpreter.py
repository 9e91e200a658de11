"""Whether Python was built for speed: what is said, and that nothing is said that is not known."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from taskd.runtime import interpreter

ROOT = Path(__file__).parents[2]
DEBIANS_PYTHON = "/usr/bin/python3"
UNOPTIMISED = "without --enable-optimizations"

PROGRAM = "55d0 r-xp 0000 /opt/python/bin/python3.13\n7f1c r-xp 0000 /lib/libc.so.6\n"
LIBRARY = f"{PROGRAM}7f2d r-xp 0000 /opt/python/lib/libpython3.13.so.1.0\n"
"""What a process has mapped that runs Python from its program, and from the library."""

DEBIAN = "'--enable-shared' '--prefix=/usr' '--with-computed-gotos' 'LDFLAGS=-g -O2'"
"""How Debian's Python says that it was configured."""


def described(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    *,
    options: str | None,
    maps: str | None,
    schemes: tuple[str, ...] = ("posix_prefix",),
) -> None:
    """Have this Python say that it was configured so, and that it has this mapped."""
    monkeypatch.setattr(sysconfig, "get_config_var", {"CONFIG_ARGS": options}.get)
    monkeypatch.setattr(sysconfig, "get_scheme_names", lambda: schemes)
    monkeypatch.delattr(sys, "gettotalrefcount", raising=False)
    if maps is not None:
        (folder / "maps").write_text(maps)
    monkeypatch.setattr(interpreter, "_MAPS", folder / "maps")


@pytest.mark.parametrize(
    ("options", "maps"),
    [
        ("'--prefix=/root/.pyenv/versions/3.13.0' '--enable-shared'", LIBRARY),
        ("'--prefix=/usr/local' 'CFLAGS=-O2 -g'", PROGRAM),
        ("'--prefix=/usr/local' '--enable-optimizations=no'", PROGRAM),
        ("'--prefix=/usr/local' '--with-lto'", PROGRAM),
    ],
)
def test_a_python_that_was_built_without_optimisations_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: str, maps: str
) -> None:
    described(monkeypatch, tmp_path, options=options, maps=maps)
    assert interpreter.slow_build() == UNOPTIMISED


@pytest.mark.parametrize(
    ("options", "maps"),
    [
        ("'--prefix=/install' '--enable-optimizations' '--enable-shared' '--with-lto'", PROGRAM),
        ("'--build=x86_64-linux-gnu' '--enable-optimizations' '--enable-shared'", LIBRARY),
        ("'--prefix=/usr/local' '--enable-optimizations=yes'", PROGRAM),
        ("'--prefix=/usr/local' 'CFLAGS=-O2 -fprofile-use -fprofile-correction'", PROGRAM),
        ("'--prefix=/usr/local' 'CFLAGS=-fprofile-instr-use=code.profdata'", PROGRAM),
    ],
)
def test_an_optimised_python_says_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: str, maps: str
) -> None:
    described(monkeypatch, tmp_path, options=options, maps=maps)
    assert interpreter.slow_build() is None


@pytest.mark.parametrize("options", [None, "", "'--prefix=/opt", "'--enable-shared'"])
@pytest.mark.parametrize("maps", [None, PROGRAM])
def test_nothing_is_said_that_is_not_known(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: str | None, maps: str | None
) -> None:
    described(monkeypatch, tmp_path, options=options, maps=maps)
    assert interpreter.slow_build() is None


@pytest.mark.parametrize("options", ["'--prefix=/opt'", "'--prefix=/opt' '--enable-shared'"])
def test_nothing_is_said_where_no_one_can_tell_what_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: str
) -> None:
    described(monkeypatch, tmp_path, options=options, maps=None)
    assert interpreter.slow_build() is None


def test_a_program_without_the_description_says_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    described(monkeypatch, tmp_path, options=None, maps=LIBRARY)

    def missing(_name: str) -> str:
        raise ModuleNotFoundError("No module named '_sysconfigdata__linux_x86_64-linux-gnu'")

    monkeypatch.setattr(sysconfig, "get_config_var", missing)
    assert interpreter.slow_build() is None


def test_debians_program_is_optimised_and_its_library_is_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    debians = ("deb_system", "posix_prefix")
    described(monkeypatch, tmp_path, options=DEBIAN, maps=PROGRAM, schemes=debians)
    assert interpreter.slow_build() is None
    described(monkeypatch, tmp_path, options=DEBIAN, maps=LIBRARY, schemes=debians)
    assert interpreter.slow_build() == UNOPTIMISED


def test_a_system_whose_ways_are_not_known_is_not_judged(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It may have been made by `make profile-opt`, which the options do not tell."""
    described(monkeypatch, tmp_path, options=DEBIAN, maps=LIBRARY)
    assert interpreter.slow_build() is None


def test_a_debug_build_says_so_however_it_was_configured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    described(monkeypatch, tmp_path, options="'--enable-optimizations'", maps=PROGRAM)
    monkeypatch.setattr(sys, "gettotalrefcount", lambda: 1, raising=False)
    assert interpreter.slow_build() == "for debugging"


def test_this_python_says_what_it_is() -> None:
    options = sysconfig.get_config_var("CONFIG_ARGS")
    if options is None or "--prefix=/usr'" in options or "gettotalrefcount" in vars(sys):
        pytest.skip("its options do not tell how it was built")
    expected = None if "--enable-optimizations" in options else UNOPTIMISED
    assert interpreter.slow_build() == expected


def test_debians_own_python_says_what_it_is() -> None:
    asked = "import sys, sysconfig; print('deb_system' in sysconfig.get_scheme_names(), "
    asked += "sys.version_info >= (3, 11))"
    try:
        found = subprocess.run([DEBIANS_PYTHON, "-c", asked], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        found = None
    if found is None or found.stdout != b"True True\n":
        pytest.skip(f"{DEBIANS_PYTHON} is not Debian's Python 3.11 or newer")
    told = subprocess.run(
        [
            DEBIANS_PYTHON,
            "-c",
            "from taskd.runtime.interpreter import slow_build; print(slow_build())",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout == "None\n"

"""``tools/scripts/dist_venv.sh``: which Python the single executable is built on.

The Pythons are this one under other names, which say that they were configured otherwise.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_SCRIPTS = Path(__file__).parents[2] / "tools" / "scripts"
_THIS = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
_FAST = "'--enable-shared' '--enable-optimizations' '--with-lto'"
_DEBIANS = "'--enable-shared' '--prefix=/usr'"
_STATIC = "'--enable-optimizations' '--with-lto'"

_OTHERWISE = """
import os, sys, sysconfig
told = {"CONFIG_ARGS": os.environ["TOLD"]}
real = sysconfig.get_config_var
sysconfig.get_config_var = lambda name: told.get(name) or real(name)
major, minor, patch = map(int, os.environ["RELEASE"].split("."))
sys.version_info = (major, minor, patch, "final", 0)
sys.base_prefix = os.environ["PREFIX"]
sys._base_executable = os.environ["CALLED"]
"""

_VENV = """#!/bin/sh
echo "$*" >>asked
[ ! -e "$1" ] || exit 0
[ -n "$PYTHON" ] || PYTHON=python3
mkdir -p "$1/bin" && touch "$1/pyvenv.cfg" && ln -s "$(command -v "$PYTHON")" "$1/bin/python"
"""
"""In the place of venv.sh: it installs nothing, and leaves what is there."""


class Checkout:
    """A folder with the scripts, where no other Pythons are at hand than a test makes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        scripts = folder / "tools" / "scripts"
        scripts.mkdir(parents=True)
        for name in ("dist_venv.sh", "pythons.sh"):
            shutil.copy(_SCRIPTS / name, scripts)
        self.program(scripts / "venv.sh", _VENV)
        self.program(folder / "otherwise" / "sitecustomize.py", _OTHERWISE)

    def program(self, path: Path, text: str) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o700)
        return path

    def python(self, name: str, release: str, told: str) -> Path:
        """A Python, which is on PATH if its name has no slash."""
        path = self.folder / "bin" / name
        return self.program(
            path,
            f"#!/bin/sh\nexport RELEASE={release} PREFIX={path}-prefix CALLED={path}\n"
            f'export TOLD="{told}" PYTHONPATH={self.folder}/otherwise\nexec {_THIS} "$@"\n',
        )

    def make(self, **environ: str) -> tuple[Path, str]:
        """What the environment was made with, and what was said."""
        done = subprocess.run(
            ["sh", "tools/scripts/dist_venv.sh", "env", "lock.txt"],
            cwd=self.folder,
            env={
                "PATH": f"{self.folder}/bin:/usr/bin:/bin",
                "PYENV_ROOT": str(self.folder / "pyenv"),
                "HOME": str(self.folder),
                **environ,
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == ""
        assert (self.folder / "asked").read_text().splitlines()[-1] == "env lock.txt"
        return (self.folder / "env" / "bin" / "python").readlink(), done.stderr


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    made = Checkout(tmp_path)
    # Whatever Python the system has, this one comes first.
    made.python("python3", "3.11.2", _DEBIANS)
    for version in ("3.11", "3.12", "3.13"):
        made.python(f"python{version}", f"{version}.1", _DEBIANS)
    return made


def test_the_newest_python_with_an_optimised_library_is_taken(checkout: Checkout) -> None:
    checkout.python("python3.11", "3.11.9", _FAST)
    newer = checkout.python("python3.12", "3.12.4", _FAST)
    assert checkout.make() == (newer, "")


def test_an_older_release_is_taken_if_it_alone_is_optimised(checkout: Checkout) -> None:
    checkout.python("python3.13", "3.13.9", _DEBIANS)
    fast = checkout.python("python3", "3.13.2", _FAST)
    assert checkout.make() == (fast, "")


@pytest.mark.parametrize("told", [_DEBIANS, _STATIC, ""])
def test_where_none_is_optimised_any_will_do_and_this_is_said_in_a_sentence(
    checkout: Checkout, told: str
) -> None:
    any_will_do = checkout.python("python3", "3.11.2", told)
    taken, said = checkout.make()
    assert taken == any_will_do
    (line,) = said.splitlines()
    assert "(3.11.2) is not known to be optimised" in line


def test_a_python_that_is_named_is_taken_as_it_is(checkout: Checkout) -> None:
    checkout.python("python3.13", "3.13.9", _FAST)
    named = checkout.python("mine", "3.12.1", _DEBIANS)
    taken, said = checkout.make(PYTHON=str(named))
    assert taken == named
    assert len(said.splitlines()) == 1
    fast = checkout.python("fast", "3.11.1", _FAST)
    assert checkout.make(PYTHON=str(fast)) == (fast, "")


def test_an_environment_of_another_build_is_made_anew(checkout: Checkout) -> None:
    slow, _ = checkout.make()
    assert slow.name == "python3"
    fast = checkout.python("python3.13", "3.13.9", _FAST)
    assert checkout.make() == (fast, "")
    # And is left alone where nothing has changed.
    kept = checkout.folder / "env" / "kept"
    kept.touch()
    assert checkout.make() == (fast, "")
    assert kept.exists()

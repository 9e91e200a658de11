"""How the Python that runs taskd was built: for speed, or not.

A build without ``--enable-optimizations`` is correct, but slower. What a Python says of itself
(`sysconfig`) does not always hold for what runs:

- Debian and Ubuntu describe the shared library ``libpython``, which they build without the
  optimisations. Their program ``python3`` is another build, with them.
- Other distributions optimise by means that leave no trace there.
- A program that embeds Python may have no description of it.

So nothing is said then. Only who builds a Python by ``make profile-opt``, without the option
of ``configure``, is told what does not hold.
"""

from __future__ import annotations

import shlex
import sys
import sysconfig
from pathlib import Path

SLOW = "this Python was built without its optimisations, so each task takes more CPU"
"""What to say of a build that `slow_build` tells of; always the same."""

_OPTIMISED = ("--enable-optimizations", "--enable-optimizations=yes")
_PROFILES = ("-fprofile-use", "-fprofile-instr-use")
_SHARED = ("--enable-shared", "--enable-shared=yes")
_SYSTEMS_OWN = "--prefix=/usr"
_DEBIANS = "deb_system"
_MAPS = Path("/proc/self/maps")
_LIBRARY = "/libpython"


def slow_build() -> str | None:
    """Return how this Python was built if that makes it slow: a phrase. None if it was built
    for speed, or if that is not known."""
    if hasattr(sys, "gettotalrefcount"):
        return "for debugging"
    options = _options()
    if not options or any(option in _OPTIMISED for option in options):
        return None
    if any(profile in option for option in options for profile in _PROFILES):
        return None
    if any(option in _SHARED for option in options) is not _runs_library():
        return None  # another build than the described one runs
    if _SYSTEMS_OWN in options and _DEBIANS not in sysconfig.get_scheme_names():
        return None
    return "without --enable-optimizations"


def _options() -> list[str]:
    """The options of `configure` that this Python was built with; none if they are not known."""
    try:
        return shlex.split(sysconfig.get_config_var("CONFIG_ARGS") or "")
    except (ImportError, ValueError):
        return []


def _runs_library() -> bool | None:
    """Whether this process runs Python from a shared library; None if that is not known."""
    try:
        return _LIBRARY in _MAPS.read_text(errors="replace")
    except OSError:
        return None

"""Network namespaces of a test's own, where the system lets it make one."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence

import pytest

UNSHARED = ("unshare", "--map-root-user", "--net", "--mount")


def in_namespace(script: str, *arguments: str) -> list[str]:
    """The command that runs a shell's script with these arguments, and a command behind
    them as the rest of ``"$@"``, in a namespace of its own.

    Skips the test where ``ip`` is missing. A system that allows no namespaces (a
    container without CAP_SYS_ADMIN) can't be helped by installing anything, so the test
    is then expected to fail.
    """
    if shutil.which("ip") is None:
        pytest.skip("no ip here: apt-get install iproute2")
    prepared = [*UNSHARED, "sh", "-c", f'set -e\n{script}\nexec "$@"', "sh", *arguments]
    done = _tried([*prepared, "true"])
    if done.returncode:
        pytest.xfail(f"no namespace can be prepared here: {done.stderr.strip()}")
    return prepared


def _tried(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, check=False, capture_output=True, text=True)

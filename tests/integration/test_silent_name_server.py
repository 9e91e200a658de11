"""The system's own lookups, in a namespace where a test's name server is the only one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMES = 200
NAMESPACE = ["unshare", "--map-root-user", "--net", "--mount"]
PREPARE = """
set -e
mount --bind "$1/resolv.conf" /etc/resolv.conf
mount --bind "$1/hosts" /etc/hosts
ip link set lo up
shift
exec "$@"
"""
RESOLVER_WAITS_S = 5.0
"""How long the C library waits for a name server, before it asks again."""


def test_200_names_that_are_never_answered_hold_up_no_other(tmp_path: Path) -> None:
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.1\n")
    (tmp_path / "hosts").write_text("127.0.0.1 localhost here.test\n")
    prepared = [*NAMESPACE, "sh", "-c", PREPARE, "sh", str(tmp_path)]
    if subprocess.run([*prepared, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no namespace can be made here, or /etc/resolv.conf can't be replaced in it")
    done = subprocess.run(
        [*prepared, sys.executable, "-m", "tests.support.silent_names", str(NAMES)],
        check=True,
        capture_output=True,
        cwd=ROOT,
        env={**os.environ, "RES_OPTIONS": ""},
        timeout=60,
    )
    took_s = json.loads(done.stdout)
    assert took_s.keys() == {"first.answers.test", "here.test", "localhost"}
    assert max(took_s.values()) < RESOLVER_WAITS_S

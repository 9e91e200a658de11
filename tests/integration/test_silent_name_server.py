"""The system's own lookups, by a resolver alone and by a daemon where anybody registers, in
a namespace where a test's name server is the only one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.namespaces import in_namespace

ROOT = Path(__file__).parents[2]
NAMES = 200
PREPARE = """
mount --bind "$1/resolv.conf" /etc/resolv.conf
mount --bind "$1/hosts" /etc/hosts
ip link set lo up
shift
"""
RESOLVER_WAITS_S = 5.0
"""How long the C library waits for a name server, before it asks again."""


@pytest.mark.parametrize("module", ["silent_names", "strangers_names"])
def test_200_names_that_are_never_answered_hold_up_no_other(tmp_path: Path, module: str) -> None:
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.1\n")
    (tmp_path / "hosts").write_text("127.0.0.1 localhost here.test\n")
    done = subprocess.run(
        [
            *in_namespace(PREPARE, str(tmp_path)),
            sys.executable,
            "-m",
            f"tests.support.{module}",
            str(NAMES),
        ],
        check=True,
        capture_output=True,
        cwd=ROOT,
        env={**os.environ, "RES_OPTIONS": ""},
        timeout=120,
    )
    took_s = json.loads(done.stdout)
    assert took_s.keys() == {"first.answers.test", "here.test", "localhost"}
    assert max(took_s.values()) < RESOLVER_WAITS_S

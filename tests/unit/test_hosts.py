from __future__ import annotations

import os
from pathlib import Path

from taskd.delivery.hosts import LONGEST_BYTES, LOOK_EVERY_S, HostsFile, names_in

TEXT = b"""127.0.0.1\tlocalhost
# 10.0.0.9 commented
10.0.0.1  App.Test app   # the receiver behind.comment
fe80::1%lo0 six.test
10.0.0.2
\xff\xfe odd\xe9.test"""


def test_every_name_and_alias_of_the_file_is_known_whatever_its_case() -> None:
    names = names_in(TEXT)
    assert {"localhost", "app.test", "app", "six.test"} <= names
    assert not {"commented", "10.0.0.1", "10.0.0.2", "behind.comment"} & names


def test_a_file_that_changes_is_read_again_and_seldom_looked_at(tmp_path: Path) -> None:
    path, now = tmp_path / "hosts", [0.0]
    path.write_bytes(TEXT)
    hosts = HostsFile(path, now=lambda: now[0])
    assert hosts.has("app.test")
    path.write_text("10.0.0.1 other.test\n")
    assert not hosts.has("other.test")
    now[0] += LOOK_EVERY_S
    assert hosts.has("other.test")
    assert not hosts.has("app.test")
    path.unlink()
    now[0] += LOOK_EVERY_S
    assert not hosts.has("other.test")


def test_localhost_is_known_without_a_file(tmp_path: Path) -> None:
    hosts = HostsFile(tmp_path / "none")
    assert hosts.has("localhost")
    assert not hosts.has("a.localhost")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "hosts")
    assert not HostsFile(tmp_path / "hosts").has("app.test")


def test_of_a_huge_file_the_beginning_counts(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_bytes(b"1.1.1.1 first\n" + b"#" * LONGEST_BYTES + b"\n1.1.1.1 last\n")
    hosts = HostsFile(path)
    assert hosts.has("first")
    assert not hosts.has("last")

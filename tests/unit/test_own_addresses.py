from __future__ import annotations

import errno
import logging
import subprocess
import sys
from ipaddress import IPv4Network, ip_address

import pytest

from taskd.delivery.egress import Egress
from taskd.delivery.own_addresses import FRESH_S, Own, OwnAddresses, can_bind, read_own
from taskd.errors import Denied
from tests.support.namespaces import in_namespace

WITH_ADDRESSES = """
ip link set lo up
ip address add 8.8.4.4/32 dev lo
ip address add 9.9.8.0/30 dev lo
ip -6 address add 2606:4700::7/128 dev lo
"""
JUDGE = """
import sys
from taskd.delivery.egress import Egress
from taskd.errors import Denied
for address in sys.argv[1:]:
    try:
        Egress(strict=True).check(address)
    except Denied as error:
        print(error)
    else:
        print("allowed")
"""


def own(*addresses: str, networks: tuple[IPv4Network, ...] = ()) -> Own:
    return Own(frozenset(ip_address(address).packed for address in addresses), networks)


def denied(egress: Egress, address: str) -> str | None:
    try:
        egress.check(address)
    except Denied as error:
        return str(error)
    return None


def test_strict_denies_the_addresses_of_real_interfaces_in_each_of_their_forms() -> None:
    addresses = ["8.8.4.4", "9.9.8.3", "2606:4700::7", "::ffff:8.8.4.4", "64:ff9b::8.8.4.4"]
    others = ["8.8.8.8", "9.9.8.4", "2606:4700::8"]
    done = subprocess.run(
        [*in_namespace(WITH_ADDRESSES), sys.executable, "-c", JUDGE, *addresses, *others],
        check=True,
        capture_output=True,
        text=True,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == len(addresses) + len(others)
    for line in lines[: len(addresses)]:
        assert "one of this machine's own addresses" in line
    assert lines[len(addresses) :] == ["allowed"] * len(others)


def test_the_kernel_tells_this_machines_addresses() -> None:
    here = read_own()
    assert here.has(ip_address("127.0.0.1"))
    assert here.has(ip_address("127.9.9.9"))
    assert not here.has(ip_address("8.8.8.8"))


def test_only_strict_rules_look_at_the_interfaces_and_allowed_networks_win() -> None:
    mine = OwnAddresses(lambda: own("8.8.4.4"))
    remedy = "if it is to be reached, add it to [delivery] allowed_networks"
    text = f"8.8.4.4 is denied: one of this machine's own addresses; {remedy}"
    assert denied(Egress(strict=True, own=mine), "8.8.4.4") == text
    assert denied(Egress(strict=True, own=mine), "8.8.8.8") is None
    assert denied(Egress(own=mine), "8.8.4.4") is None
    assert denied(Egress(strict=True, own=mine, allowed_networks=["8.8.4.4/32"]), "8.8.4.4") is None


def test_addresses_that_come_later_are_noticed_and_reading_is_bounded() -> None:
    now, reads = [0.0], [0]
    there = ["1.1.1.1"]

    def read() -> Own:
        reads[0] += 1
        return own(*there)

    mine = OwnAddresses(read, now=lambda: now[0])
    for _ in range(100):
        assert mine.has(ip_address("1.1.1.1"))
    assert not mine.has(ip_address("8.8.4.4"))
    assert reads == [1]
    there.append("8.8.4.4")
    now[0] += FRESH_S
    assert mine.has(ip_address("8.8.4.4"))
    assert reads == [2]


def test_what_cannot_be_read_leaves_the_last_addresses(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    answers: list[Own | OSError] = [own("8.8.4.4"), OSError(errno.EMFILE, "no file"), own()]

    def read() -> Own:
        answer = answers[0] if len(answers) == 1 else answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    mine = OwnAddresses(read, now=lambda: now[0])
    for expected in (True, True, False):
        assert mine.has(ip_address("8.8.4.4")) is expected
        now[0] += FRESH_S
    assert "the addresses of this machine's interfaces can't be read" in caplog.text


def test_where_the_kernel_never_tells_an_address_is_tried(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse() -> Own:
        raise OSError(errno.EAFNOSUPPORT, "no netlink here")

    mine = OwnAddresses(refuse, now=lambda: 0.0)
    with caplog.at_level(logging.WARNING):
        assert mine.has(ip_address("127.0.0.1"))
        assert not mine.has(ip_address("8.8.8.8"))
    assert caplog.text.count("can't be read") == 1


def test_without_a_file_left_an_address_counts_as_this_machines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def short(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("taskd.delivery.own_addresses.socket.socket", short)
    assert can_bind(ip_address("8.8.8.8"))

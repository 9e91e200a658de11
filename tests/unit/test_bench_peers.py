"""The comparison's own parts, without any peer: the receiver in C, the report."""

from __future__ import annotations

import http.client
import json
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from taskd.domain import signing
from tools.bench.peers import receiver, report, results, roster
from tools.bench.peers.receiver import Receiver

SECRET = "0123456789abcdef0123456789abcdef"
BODY = b'{"data": {"order": 1001}}'


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The receiver, compiled."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler here: apt-get install gcc")
    return receiver.build(tmp_path_factory.mktemp("receiver") / "receiver")


@pytest.fixture
def running(program: Path, tmp_path: Path) -> Iterator[Receiver]:
    started = Receiver(program, SECRET, tmp_path)
    yield started
    started.close()


def headers_for(body: bytes, *, secret_key: str = SECRET, task_no: str = "7") -> dict[str, str]:
    signed = signing.sign_headers(
        "peer",
        secret_key,
        body,
        now_ms=time.time_ns() // 1_000_000,
        nonce=f"cb-{secrets.token_hex(12)}",
    )
    return {**signed, "Taskd-Task-No": task_no}


def post(to: Receiver, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", to.port, timeout=10)
    try:
        connection.request("POST", "/callback", body, headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


@pytest.mark.parametrize("length", [0, 1, 55, 56, 63, 64, 65, 119, 120, 1000, 20_000])
def test_the_receiver_takes_what_taskd_has_signed(running: Receiver, length: int) -> None:
    body = secrets.token_bytes(length)
    assert post(running, body, headers_for(body)) == (200, b"success")
    ((number, at_us),) = running.take()
    assert number == 7
    assert abs(at_us * 1000 - time.time_ns()) < 60e9


@pytest.mark.parametrize("name", ["nonce", "timestamps", "payload", "signature", "Taskd-Task-No"])
def test_the_receiver_refuses_a_callback_without_a_header(running: Receiver, name: str) -> None:
    headers = headers_for(BODY)
    del headers[name]
    assert post(running, BODY, headers) == (401, b"refused")
    assert running.take() == []


def test_the_receiver_refuses_what_another_key_has_signed(running: Receiver) -> None:
    headers = headers_for(BODY, secret_key="f" * 32)
    assert post(running, BODY, headers) == (401, b"refused")
    assert running.count() == receiver.Count(delivered=0, refused=1)


def test_the_receiver_refuses_another_body_than_was_signed(running: Receiver) -> None:
    assert post(running, BODY + b" ", headers_for(BODY)) == (401, b"refused")


def test_the_receiver_refuses_another_nonce_than_was_signed(running: Receiver) -> None:
    headers = {**headers_for(BODY), "nonce": "cb-" + "0" * 24}
    assert post(running, BODY, headers) == (401, b"refused")


def test_the_ledger_begins_anew_once_it_is_taken(running: Receiver) -> None:
    for number in (3, 1, 3):
        post(running, BODY, headers_for(BODY, task_no=str(number)))
    assert [number for number, _ in running.take()] == [3, 1, 3]
    assert running.take() == []


def throughput(rate: float) -> dict[str, float]:
    return {
        "tasks": 5000,
        "submit_per_s": rate * 2,
        "end_to_end_per_s": rate,
        "cpu_s_per_1000": 0.4,
        "submitter_cpu_s_per_1000": 0.1,
        "memory_mb": 50.0,
        "repeated": 0,
        "refused": 0,
    }


def put(folder: Path, key: str, durability: str, number: int, rate: float) -> results.Result:
    result = results.Result(key, durability, number, folder)
    result.about(at=f"2026-01-0{number}T00:00:00+00:00", machine="m", versions={"x": "1"})
    result.put("throughput", {mode: throughput(rate) for mode in ("single", "flight")})
    return result


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    """Three rounds of taskd and two peers; one can't be measured for lateness."""
    for number, rate in enumerate((1000.0, 3000.0, 2000.0), 1):
        put(tmp_path, "taskd-1", "fsync", number, rate)
        put(tmp_path, "bullmq", "always", number, 4000.0)
        celery = put(tmp_path, "celery", "memory", number, 500.0)
        celery.fail("lateness", f"Incomplete: at {roster.ROOT}/x 3 of 1000 tasks came")
    return tmp_path


def test_the_report_tells_medians_ranges_and_who_is_first(sample: Path) -> None:
    text = report.text(results.load(sample))
    assert "Medians of 3 runs" in text
    assert "2026-01-01 to 2026-01-03" in text
    assert "| **taskd** | 2,000 (1,000–3,000) | 2,000 (1,000–3,000) | – |" in text
    # No batch figures at all, so nobody is first there; in the others BullMQ is.
    assert "| end-to-end/s, one at a time | BullMQ: 4,000 | 2,000 (1,000–3,000), 0.50 times" in text
    assert "end-to-end/s, batches of 100 | BullMQ" not in text


def test_the_report_says_what_failed_and_no_path_of_the_machine(sample: Path) -> None:
    text = report.text(results.load(sample))
    assert "- Celery, memory, lateness: Incomplete: at …/x 3 of 1000 tasks came" in text
    assert str(roster.ROOT) not in text


def test_the_report_fills_a_page_between_its_markers(sample: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.write(sample, page)
    once = page.read_text()
    assert once.startswith(f"before\n{report.BEGIN}\n\nMeasured on")
    assert once.endswith(f"{report.END}\nafter\n")
    assert "old" not in once
    report.write(sample, page)
    assert page.read_text() == once
    for name in report.plots(results.load(sample)):
        assert ElementTree.parse(tmp_path / name).getroot().tag.endswith("svg")


def test_a_page_without_markers_is_left_alone(sample: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing\n")
    with pytest.raises(SystemExit, match="has no"):
        report.write(sample, page)
    assert page.read_text() == "nothing\n"


def test_the_page_has_its_markers_and_its_plots() -> None:
    page = report.PAGE.read_text()
    assert report.filled(page, "figures") != page
    for name in report.plots([]):
        assert f"]({name})" in page
        assert report.PAGE.with_name(name).exists()


def test_figures_outlive_a_failure_of_another_measure(tmp_path: Path) -> None:
    put(tmp_path, "rq", "memory", 1, 100.0).fail("latency", "no")
    again = results.Result("rq", "memory", 1, tmp_path)
    assert again.has("throughput")
    assert not again.has("latency")
    again.put("latency", {"p50_ms": 1.0})
    assert json.loads(again.path.read_text())["errors"] == {}

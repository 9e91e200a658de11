from __future__ import annotations

import base64
import datetime
import json

import pytest
import standardwebhooks
from hypothesis import given
from hypothesis import strategies as st

from taskd import signing
from taskd.delivery import callback_headers, judge, parse_retry_after
from taskd.model import App, Lease, LeasedTask, Outcome
from taskd.transport import Response

NOW_MS = 1626418779_123
SECRET = "0123456789abcdef0123456789abcdef"
BODY = b'{"data":{"order":1001}}'


def leased(task_no: str = "order-1001", attempt: int = 1) -> LeasedTask:
    return LeasedTask(
        lease=Lease(task_id=42, token=1, node="n", expires_at=0),
        app=App(
            id=1,
            app_key="abcdefghij012345",
            secret_key=SECRET,
            name="n",
            link_url="http://127.0.0.1/",
            step=5,
            retry_total=3,
            remark="",
            created_at=0,
        ),
        task_no=task_no,
        name="close order",
        content=b'{"order":1001}',
        timeout_ms=1000,
        due_at=0,
        leased_at=0,
        attempt=attempt,
        failures=0,
        sent_before=False,
        step=5,
        retry_total=3,
    )


@pytest.mark.parametrize("status", [200, 201, 202, 299])
@pytest.mark.parametrize("body", [b"success", b" success\r\n", b"\t\nsuccess\x0b\x0c "])
def test_a_2xx_whose_stripped_body_is_success_succeeds(status: int, body: bytes) -> None:
    result = judge(Response(status, body, None), NOW_MS)
    assert result.outcome is Outcome.SUCCEEDED
    assert result.http_status == status
    assert result.error is None


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b""),
        (200, b"Success"),
        (200, b"success!"),
        (200, b'"success"'),
        (200, b"\xef\xbb\xbfsuccess"),
        (200, b"success" * 2),
        (204, b""),
        (301, b"success"),
        (400, b"success"),
        (410, b"success"),
        (500, b"success"),
    ],
)
def test_any_other_answer_is_rejected_with_its_status(status: int, body: bytes) -> None:
    result = judge(Response(status, body, None), NOW_MS)
    assert result.outcome is Outcome.REJECTED
    assert result.http_status == status
    assert result.error is not None
    assert str(status) in result.error


def test_of_an_answer_the_first_4_kib_are_kept_with_undecodable_bytes_replaced() -> None:
    assert judge(Response(200, b"x" * 5000, None), NOW_MS).response == "x" * 4096
    assert judge(Response(200, b"a\xffb", None), NOW_MS).response == "a\ufffdb"
    assert judge(Response(200, "é".encode() * 3000, None), NOW_MS).response == "é" * 2048


def test_the_answer_does_not_show_in_a_repr() -> None:
    assert "hunter2" not in repr(judge(Response(500, b"hunter2", None), NOW_MS))
    assert "hunter2" not in repr(Response(500, b"hunter2", None))


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        (" 120 ", 120),
        ("007", 7),
        ("9" * 400, 1e9),
        ("Fri, 16 Jul 2021 07:00:39 GMT", 59.877),
        ("Friday, 16-Jul-21 07:00:39 GMT", 59.877),
        ("Fri Jul 16 07:00:39 2021", 59.877),
        ("Fri, 16 Jul 2021 06:00:00 GMT", 0),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 0),
        ("", None),
        ("-1", None),
        ("1.5", None),
        ("1e3", None),
        ("٤٢", None),
        ("soon", None),
        ("Fri, 99 Jul 2021 07:00:39 GMT", None),
        ("Fri, 16 Jul 99999 07:00:39 GMT", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str, seconds: float | None) -> None:
    parsed = parse_retry_after(value, NOW_MS)
    assert parsed == (None if seconds is None else pytest.approx(seconds))
    assert judge(Response(503, b"", value), NOW_MS).retry_after_s == parsed


@given(st.text())
def test_any_retry_after_is_none_or_not_negative(value: str) -> None:
    parsed = parse_retry_after(value, NOW_MS)
    assert parsed is None or parsed >= 0


@given(st.integers(0, 3600 * 24))
def test_a_retry_after_date_is_that_far_ahead(ahead: int) -> None:
    moment = datetime.datetime(2021, 7, 16, tzinfo=datetime.UTC) + datetime.timedelta(seconds=ahead)
    value = moment.strftime("%a, %d %b %Y %H:%M:%S GMT")
    now_ms = int(datetime.datetime(2021, 7, 16, tzinfo=datetime.UTC).timestamp() * 1000)
    assert parse_retry_after(value, now_ms) == ahead


def test_the_signing_headers_verify_with_the_apps_own_secret() -> None:
    headers = dict(callback_headers(leased(), BODY, now_ms=NOW_MS))
    assert headers["app_key"] == "abcdefghij012345"
    assert headers["timestamps"] == "1626418779"
    assert headers["payload"] == signing.payload_digest(BODY)
    assert signing.verify(
        SECRET,
        headers["timestamps"],
        headers["nonce"],
        headers["payload"],
        headers["signature"],
    )


def test_each_attempt_has_a_nonce_of_its_own_that_no_client_may_use() -> None:
    nonces = {dict(callback_headers(leased(), BODY, now_ms=0))["nonce"] for _ in range(500)}
    assert len(nonces) == 500
    assert all(nonce.startswith("cb-") and len(nonce) == 16 for nonce in nonces)
    assert all(set(nonce) <= set(signing._ALPHABET + "-_") for nonce in nonces)


def test_the_webhook_headers_are_those_of_the_vector() -> None:
    headers = dict(callback_headers(leased(attempt=3), BODY, now_ms=NOW_MS))
    assert headers["webhook-id"] == "task_42"
    assert headers["webhook-timestamp"] == "1626418779"
    assert headers["webhook-signature"] == "v1,ttbx4RFYXb/ByKT6y4suMnjvlV9fF3vM42fDs7gB808="
    assert headers["Taskd-Task-Id"] == "42"
    assert headers["Taskd-Attempt"] == "3"


def test_the_public_verifier_accepts_the_webhook_headers_and_no_other_body() -> None:
    now_ms = int(datetime.datetime.now(datetime.UTC).timestamp() * 1000)  # noqa: TID251 - the verifier asks the real clock
    headers = dict(callback_headers(leased(), BODY, now_ms=now_ms))
    verifier = standardwebhooks.Webhook("whsec_" + base64.b64encode(SECRET.encode()).decode())
    assert verifier.verify(BODY, headers) == json.loads(BODY)
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        verifier.verify(BODY.replace(b"1001", b"1002"), headers)


@pytest.mark.parametrize(
    ("task_no", "sent"),
    [("order-1001", "order-1001"), ("订单 1/2", "%E8%AE%A2%E5%8D%95%201%2F2"), ("a%b", "a%25b")],
)
def test_the_task_no_is_percent_encoded(task_no: str, sent: str) -> None:
    headers = dict(callback_headers(leased(task_no), BODY, now_ms=NOW_MS))
    assert headers["Taskd-Task-No"] == sent


def test_no_header_is_sent_twice_and_none_holds_the_secret() -> None:
    headers = callback_headers(leased(), BODY, now_ms=NOW_MS)
    names = [name.lower() for name, _ in headers]
    assert len(set(names)) == len(names)
    assert SECRET not in str(headers)

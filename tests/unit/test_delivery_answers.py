from __future__ import annotations

import base64
import dataclasses
import datetime
import json
import sys

import pytest
import standardwebhooks
from hypothesis import given
from hypothesis import strategies as st

from taskd.delivery import verdict
from taskd.delivery.attempt import callback_headers
from taskd.delivery.progress import Response
from taskd.delivery.verdict import judge, parse_retry_after, says_success
from taskd.domain import signing
from taskd.domain.model import App, Lease, LeasedTask, Outcome, SuccessRule

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


WORDS = ["success", '"success"', r'"\u0073uccess"', r'"\u0073\u0075\u0063\u0063\u0065\u0073\u0073"']


@pytest.mark.parametrize("status", [200, 201, 202, 299])
@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize(
    "around",
    [
        "{}",
        " {}\r\n",
        "\t\n{}\x0b\x0c ",
        "\ufeff{}",
        "\xa0{}\xa0",
        "\ufeff\n{} \xa0\ufeff",
        "\u3000{}\u2028",
    ],
)
def test_a_2xx_whose_stripped_body_is_success_succeeds(status: int, word: str, around: str) -> None:
    result = judge(Response(status, around.format(word).encode(), None), NOW_MS)
    assert result.outcome is Outcome.SUCCEEDED
    assert result.http_status == status
    assert result.error is None


WHITE_SPACE = st.text(
    st.sampled_from(["\ufeff", *filter(str.isspace, map(chr, range(sys.maxunicode + 1)))])
)


@given(WHITE_SPACE, st.sampled_from(WORDS), WHITE_SPACE)
def test_white_space_around_the_word_does_not_matter(before: str, word: str, after: str) -> None:
    assert says_success(f"{before}{word}{after}".encode())


def test_white_space_is_what_unicode_has_and_the_byte_order_mark() -> None:
    every = map(chr, range(sys.maxunicode + 1))
    assert sorted(verdict._WHITE_SPACE) == [c for c in every if c.isspace() or c == "\ufeff"]


@pytest.mark.parametrize("body", [b"\xa0success", b"success\xa0\r\n", b'\xa0"success"\x85'])
def test_a_no_break_space_in_latin_1_does_not_matter(body: bytes) -> None:
    assert says_success(body)


NO_SPACE = st.characters(exclude_categories=["Cs"]).filter(
    lambda character: not character.isspace() and character != "\ufeff"
)


@given(NO_SPACE, st.sampled_from(["{0}success", "success{0}", '{0}"success"', '"success{0}"']))
def test_nothing_else_may_stand_beside_the_word(other: str, form: str) -> None:
    assert not says_success(form.format(other).encode())


@given(st.binary(max_size=50))
def test_bytes_that_are_not_the_word_do_not_say_it(body: bytes) -> None:
    assert not says_success(body)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "its body is empty, not 'success'"),
        (b" \xef\xbb\xbf\r\n", "its body is empty, not 'success'"),
        (b"Success", "its body is 'Success', not 'success' (the word counts as it is, in lower"),
        (b"SUCCESS\n", "its body is 'SUCCESS', not 'success' (the word counts as it is"),
        (b"success!", "its body is 'success!', not 'success' (the word counts as it is"),
        (b"'success'", "its body is \"'success'\", not 'success' (the word counts as it is"),
        (b'"Success"', "its body is '\"Success\"', not 'success' (the word counts as it is"),
        (b'" success"', "its body is '\" success\"', not 'success' (an application"),
        (
            b'{"success":true}',
            "its body is '{\"success\":true}', not 'success' (an application made",
        ),
        (b'["success"]', 'success "status" needs no word)'),
        (b"true", "its body is 'true', not 'success'"),
        (b"success" * 2, "its body is 'successsuccess', not"),
        (b"success\0", r"its body is 'success\x00', not"),
        (b"\x1b[31mno\r\nX: y", r"its body is '\x1b[31mno\r\nX: y', not"),
        (b"success\xe2\x80\x8b", r"its body is 'success\u200b', not"),
        ("\ufeffsuccess".encode("utf-16-le"), "it is in UTF-16, and UTF-8 is read"),
        ("\ufeffsuccess".encode("utf-16-be"), "it is in UTF-16, and UTF-8 is read"),
        ("success".encode("utf-16-le"), r"its body is 's\x00u\x00c\x00"),
        (b"success\xff", "its body is 'success\xff', not"),
        (b"<!DOCTYPE html>" + b"x" * 5000, f"its body is '<!DOCTYPE html>{'x' * 17}'…, not"),
        (b'"' + b"\\u0073" * 100, "not 'success'"),
        (b'"success', "its body is '\"success', not 'success' (the word"),
    ],
)
def test_a_2xx_with_any_other_body_is_rejected_and_its_beginning_told(
    body: bytes, told: str
) -> None:
    result = judge(Response(200, body, None), NOW_MS)
    assert (result.outcome, result.http_status) == (Outcome.REJECTED, 200)
    assert result.error is not None
    assert result.error.startswith("the application answered with status 200, but its body is ")
    assert told in result.error
    assert result.error.isprintable()
    assert len(result.error) < 300


@pytest.mark.parametrize("status", [99, 101, 300, 301, 304, 400, 404, 410, 500, 503, 600])
@pytest.mark.parametrize("rule", SuccessRule)
def test_any_other_status_is_rejected_whatever_the_body_says(
    status: int, rule: SuccessRule
) -> None:
    result = judge(Response(status, b"success", None), NOW_MS, rule)
    assert (result.outcome, result.http_status) == (Outcome.REJECTED, status)
    assert result.error is not None
    assert str(status) in result.error


@pytest.mark.parametrize("status", [200, 202, 204, 299])
@pytest.mark.parametrize(
    "response",
    [
        Response(0, b"", None),
        Response(0, b'{"ok":true}', None),
        Response(0, b"\x1f\x8b", None, encoding="gzip"),
        Response(0, b"x" * 4096, None, problem="its body is over the limit of 65536 bytes"),
    ],
)
def test_where_the_status_counts_any_2xx_succeeds(status: int, response: Response) -> None:
    result = judge(dataclasses.replace(response, status=status), NOW_MS, SuccessRule.STATUS)
    assert (result.outcome, result.http_status, result.error) == (Outcome.SUCCEEDED, status, None)


@pytest.mark.parametrize(
    ("location", "told"),
    [
        (None, "status 307; redirects are not followed"),
        (
            "https://app.test/cb/",
            "; redirects are not followed, and this one leads to 'https://app.test/cb/'",
        ),
        ("/é?a=1&next=%2Fcb", "leads to '/é?a=1&next=%2Fcb'"),
        ("\x1b[31m\x00\x85", r"leads to '\x1b[31m\x00\x85'"),
        ("http://h/" + "x" * 5000, "leads to 'http://h/" + "x" * 191 + "'…"),
        ("", "leads to ''"),
    ],
)
def test_a_redirect_tells_where_it_leads(location: str | None, told: str) -> None:
    error = judge(Response(307, b"", None, location), NOW_MS).error
    assert error is not None
    assert error.endswith(told)
    assert error.isprintable()


@pytest.mark.parametrize("status", [200, 201, 401, 500])
def test_where_nothing_is_redirected_no_location_is_told(status: int) -> None:
    error = judge(Response(status, b"", None, "http://h/"), NOW_MS).error
    assert error is not None
    assert "http://h/" not in error


TLS_WANTED = "plain HTTP was sent to a port for TLS: should the linkUrl begin with https://?"


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (
            b"<h1>400 Bad Request</h1><center>The plain HTTP request was sent to HTTPS port",
            TLS_WANTED,
        ),
        (b"Client sent an HTTP request to an HTTPS server.\n", TLS_WANTED),
        (b"Reason: You're speaking plain HTTP to an SSL-enabled server port.<br />", TLS_WANTED),
        (b"Bad Request\nThis combination of host and port requires TLS.\n", TLS_WANTED),
        (
            b"<center>No required SSL certificate was sent</center>",
            "it demands a client certificate",
        ),
        (
            b"<center>The SSL certificate error</center>",
            "it does not accept the client certificate",
        ),
    ],
)
def test_what_servers_say_of_a_wrong_scheme_or_certificate_is_understood(
    body: bytes, told: str
) -> None:
    error = judge(Response(400, body, None), NOW_MS).error
    assert error == f"the application answered with status 400; {told}"
    assert (
        judge(Response(500, body, None), NOW_MS).error == "the application answered with status 500"
    )
    late = judge(Response(400, b"x" * 4096 + body, None), NOW_MS).error
    assert late == "the application answered with status 400"


def test_a_body_that_is_encoded_says_so() -> None:
    result = judge(Response(200, b"\x1f\x8b", None, encoding="gzip"), NOW_MS)
    assert result.error is not None
    assert "its body is encoded as 'gzip', and identity was asked for" in result.error
    long = judge(Response(500, b"", None, encoding="x\x01\xe9" * 500), NOW_MS)
    assert long.error is not None
    assert long.error.isprintable()
    assert len(long.error) < 200


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
    assert headers["app_key"] == headers["app-key"] == "abcdefghij012345"
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

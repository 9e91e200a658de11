"""The example receivers, each against requests that taskd might or must not send."""

from __future__ import annotations

import http.client
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from taskd.domain import signing
from tests.support import examples
from tests.support.examples import LANGUAGES, ExampleReceiver

APP_KEY = "an-app-key-of-16"
SECRET_KEY = "0123456789abcdef0123456789abcdef"
BODY = '{"data":{"order":1001,"名":"帅"}}'.encode()


@pytest.fixture(params=LANGUAGES)
def receiver(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ExampleReceiver]:
    with ExampleReceiver(
        request.param, tmp_path, app_key=APP_KEY, secret_key=SECRET_KEY
    ) as started:
        yield started


def signed(
    *,
    app_key: str = APP_KEY,
    secret_key: str = SECRET_KEY,
    body: bytes = BODY,
    age_s: int = 0,
    attempt: int = 1,
) -> dict[str, str]:
    return examples.signed(app_key, secret_key, body, age_s=age_s, attempt=attempt)


def post(
    receiver: ExampleReceiver, headers: Mapping[str, str], body: bytes = BODY
) -> tuple[int, str]:
    return examples.post(receiver.port, headers, body)


def test_a_callback_is_accepted_and_worked_on(receiver: ExampleReceiver) -> None:
    assert post(receiver, signed()) == (200, "success")
    assert "1001" in receiver.wait_for_line("task 7 attempt 1: ")


@pytest.mark.parametrize(
    "spellings",
    [
        {"app-key": APP_KEY},
        {"app_key": APP_KEY, "app-key": APP_KEY},
        {"app_key": f"{APP_KEY},{APP_KEY}"},  # what some make of both, on the way
        {"app-key": f"{APP_KEY}, {APP_KEY}"},
    ],
    ids=str,
)
def test_either_spelling_of_app_key_and_both_are_accepted(
    receiver: ExampleReceiver, spellings: dict[str, str]
) -> None:
    headers = signed()
    del headers["app_key"]
    assert post(receiver, headers | spellings) == (200, "success")


def test_a_wrong_secret_is_refused(receiver: ExampleReceiver) -> None:
    status, text = post(receiver, signed(secret_key=SECRET_KEY[::-1]))
    assert (status, text) == (401, "unknown app_key or bad signature")


def test_another_app_key_is_refused(receiver: ExampleReceiver) -> None:
    status, text = post(receiver, signed(app_key="another-app-key0"))
    assert (status, text) == (401, "unknown app_key or bad signature")


@pytest.mark.parametrize("age_s", [320, -320])
def test_a_time_outside_the_window_is_refused(receiver: ExampleReceiver, age_s: int) -> None:
    status, text = post(receiver, signed(age_s=age_s))
    assert status == 401
    assert "window" in text


@pytest.mark.parametrize("timestamps", ["", "1626418779.5", "2026-11-24 00:00:00", "١٦٢٦٤١٨٧٧٩"])
def test_a_timestamp_of_another_form_is_refused(receiver: ExampleReceiver, timestamps: str) -> None:
    # As bytes, as they would come; http.client would refuse them as text.
    headers = {**signed(), "timestamps": timestamps.encode().decode("latin-1")}
    assert post(receiver, headers)[0] == 401


def test_a_changed_body_is_refused(receiver: ExampleReceiver) -> None:
    status, text = post(receiver, signed(), BODY.replace(b"1001", b"1002"))
    assert (status, text) == (401, "the body is not the one that was signed")


def test_a_changed_body_with_its_own_digest_is_refused(receiver: ExampleReceiver) -> None:
    body = BODY.replace(b"1001", b"1002")
    headers = {**signed(), "payload": signing.payload_digest(body)}
    assert post(receiver, headers, body) == (401, "unknown app_key or bad signature")


@pytest.mark.parametrize("name", ["app_key", "nonce", "timestamps", "signature", "payload"])
def test_a_missing_header_is_refused(receiver: ExampleReceiver, name: str) -> None:
    headers = signed()
    del headers[name]
    assert post(receiver, headers)[0] == 401


@pytest.mark.parametrize(
    "spellings",
    [
        {"app_key": APP_KEY, "app-key": "another-app-key0"},
        {"app_key": "another-app-key0", "app-key": APP_KEY},
        {"app-key": f"{APP_KEY},another-app-key0"},
        {"app-key": f"another-app-key0, {APP_KEY}"},
        {"app-key": f"{APP_KEY},"},
    ],
    ids=str,
)
def test_two_values_of_app_key_that_differ_are_refused(
    receiver: ExampleReceiver, spellings: dict[str, str]
) -> None:
    headers = signed()
    del headers["app_key"]
    status, text = post(receiver, headers | spellings)
    assert status == 401
    assert text.endswith("comes twice, with different values")


@pytest.mark.parametrize("name", ["nonce", "timestamps", "signature", "payload"])
def test_a_signed_header_with_a_second_value_is_refused(
    receiver: ExampleReceiver, name: str
) -> None:
    headers = signed()
    status, text = post(receiver, {**headers, name: f"{headers[name]}, 1626418779"})
    assert (status, text) == (401, f"{name} comes twice, with different values")


def test_a_replay_is_refused(receiver: ExampleReceiver) -> None:
    headers = signed()
    assert post(receiver, headers) == (200, "success")
    status, text = post(receiver, headers)
    assert status == 401
    assert "replay" in text


def test_a_refused_request_does_not_use_its_nonce_up(receiver: ExampleReceiver) -> None:
    headers = signed()
    assert post(receiver, headers, b"{}")[0] == 401
    assert post(receiver, headers) == (200, "success")


def test_another_attempt_at_a_task_that_is_done_is_not_worked_on(
    receiver: ExampleReceiver,
) -> None:
    assert post(receiver, signed(attempt=1)) == (200, "success")
    assert post(receiver, signed(attempt=2)) == (200, "success")
    receiver.wait_for_line("task 7 attempt 2: a repeat")


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b'{"date":1}', b'{"data":1'])
def test_a_signed_body_that_is_no_callback_is_refused(
    receiver: ExampleReceiver, body: bytes
) -> None:
    assert post(receiver, signed(body=body), body) == (400, "the body is no callback")


@pytest.mark.parametrize("language", ["python", "node"])  # PHP's own server reads it first
def test_a_body_that_is_too_long_is_refused_before_it_is_read(
    language: str, tmp_path: Path
) -> None:
    with ExampleReceiver(language, tmp_path, app_key=APP_KEY, secret_key=SECRET_KEY) as receiver:
        connection = http.client.HTTPConnection("127.0.0.1", receiver.port, timeout=20)
        connection.putrequest("POST", "/")
        for name, value in {**signed(), "Content-Length": "1000000000"}.items():
            connection.putheader(name, value)
        connection.endheaders()
        response = connection.getresponse()
        assert response.status == 413
        assert response.headers["Connection"] == "close"
        connection.close()

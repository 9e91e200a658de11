"""What the demo's receiver makes of signing headers."""

from __future__ import annotations

import pytest

from taskd.cli.demo.receiver import signature_problem
from taskd.domain import signing

KEY, SECRET = "an-app-key-of-16", "0123456789abcdef0123456789abcdef"
BODY = b'{"data":1}'
NOW_MS = 1_626_418_779_000


def problem(*keys: tuple[str, str], secret_key: str = SECRET, body: bytes = BODY) -> str | None:
    headers = signing.sign_headers(KEY, SECRET, BODY, now_ms=NOW_MS, nonce="cb-0123456789abc")
    del headers["app_key"]
    return signature_problem(headers | dict(keys), body, KEY, secret_key, NOW_MS)


@pytest.mark.parametrize(
    "keys",
    [[("app_key", KEY)], [("app-key", KEY)], [("app_key", KEY), ("app-key", KEY)]],
    ids=str,
)
def test_either_spelling_of_app_key_will_do_and_both(keys: list[tuple[str, str]]) -> None:
    assert problem(*keys) is None


@pytest.mark.parametrize(
    "keys",
    [
        [("app_key", "other")],
        [("app-key", "other")],
        [("app_key", KEY), ("app-key", "other")],
        [("app_key", "other"), ("app-key", KEY)],
    ],
    ids=str,
)
def test_another_key_is_refused_wherever_it_is(keys: list[tuple[str, str]]) -> None:
    assert problem(*keys) == "the app_key is another's"


def test_no_key_another_secret_and_another_body_are_refused() -> None:
    assert problem() == "a signing header is missing"
    key = ("app_key", KEY)
    assert problem(key, secret_key=SECRET[::-1]) == "the signature is wrong"
    assert problem(key, body=b"{}") == "the payload is not the body's digest"

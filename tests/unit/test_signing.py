from __future__ import annotations

import base64
import datetime
import hashlib
import hmac

import pytest
import standardwebhooks
from hypothesis import given
from hypothesis import strategies as st

from taskd.domain import signing

SECRET = "0123456789abcdef0123456789abcdef"

VECTORS = [
    (
        (
            b'{"taskNo":"order-1001","content":"{\\"order\\":1001}",'
            b'"name":"close order","timeout":5000}'
        ),
        "1626418779",
        "S5D7zmW5HNnSiqf0",
        "b6b472b02745ebe6dae08e2349aa3e06bb19589b48be6b5bb7d1fa9daf1db3d0",
        "ZGE5ZjM1MGE1NzEzZWQ3YWU0MjA2MjE5YjNhODFhNmZmYTdkYjBmZmNlMmE0MGU3ZTAyNDYwODZiZDlmMmQ5Ng==",
    ),
    (
        b"",
        "1626418779",
        "S5D7zmW5HNnSiqf0",
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "MDUxMTViMDljODIyZjg2NTAzY2RiYmY3OTBlMjMxMTYwN2Q5ZjU4YjAxMjdmNjE2YzVhMjliNGZiZGFlOWMxNA==",
    ),
    (
        b"coroutine_id=42",
        "2021-07-16 06:59:39",
        "nm33An1FX22SAjZK",
        "8f63a7027b98d7afac15c84b0f22d237485fce75cac1d5f3309d348485e493e6",
        "NGJkMTAzMTlkYjMzMWJhOGVmOWZjNGFkNzFhOTRkYmFmMzk2ZjhjZWU5YmU5OGY2MDk2YTZjNTIyZTI5MmQ2Yw==",
    ),
    (
        '{"appName":"帅的应用","linkUrl":"http://127.0.0.1:9000/cb"}'.encode(),
        "1626418779",
        "abcdefgh01234567",
        "1fe05b34ca180f1ffb8ee62e83ad49589025e14104eca5756c4115fcf9c9e86c",
        "MDA1ZTg1ZDRkZDdkNTQxZWM4NGRhN2FmOGNlZGNiOThlN2RjN2EyOGJkMWI4MWU5OGNlMTc5ZDEyODU4ZjNkOA==",
    ),
]
WEBHOOK_BODY = b'{"data":{"order":1001}}'
WEBHOOK_SIGNATURE = "v1,ttbx4RFYXb/ByKT6y4suMnjvlV9fF3vM42fDs7gB808="


@pytest.mark.parametrize(("data", "timestamps", "nonce", "payload", "signature"), VECTORS)
def test_the_vectors_of_the_protocol_hold(
    data: bytes, timestamps: str, nonce: str, payload: str, signature: str
) -> None:
    assert signing.payload_digest(data) == payload
    assert signing.sign(SECRET, timestamps, nonce, payload) == signature
    assert signing.verify(SECRET, timestamps, nonce, payload, signature)


def test_a_request_is_signed_with_five_headers() -> None:
    data, timestamps, nonce, payload, signature = VECTORS[0]
    headers = signing.sign_headers("key", SECRET, data, now_ms=1626418779_999, nonce=nonce)
    assert headers == {
        "app_key": "key",
        "nonce": nonce,
        "timestamps": timestamps,
        "signature": signature,
        "payload": payload,
    }


@given(st.text(), st.text(), st.text(), st.text())
def test_a_signature_is_base64_of_hex_of_the_hmac(
    secret: str, timestamps: str, nonce: str, payload: str
) -> None:
    message = (timestamps + nonce + payload).encode()
    expected = hmac.new(secret.encode(), message, hashlib.sha256).hexdigest()
    signature = signing.sign(secret, timestamps, nonce, payload)
    assert base64.b64decode(signature) == expected.encode()
    assert signing.verify(secret, timestamps, nonce, payload, signature)


@pytest.mark.parametrize("length", [0, 1, 63, 64, 65, 200])
def test_a_key_of_any_length_signs_as_the_standard_library_does(length: int) -> None:
    key = "k" * length
    expected = hmac.digest(key.encode(), b"tnp", "sha256").hex().encode()
    assert signing.sign(key, "t", "n", "p") == base64.b64encode(expected).decode()


@given(st.text())
def test_no_other_signature_verifies(text: str) -> None:
    _, timestamps, nonce, payload, signature = VECTORS[0]
    assert signing.verify(SECRET, timestamps, nonce, payload, text) is (text == signature)


@pytest.mark.parametrize("changed", range(4))
def test_a_change_of_any_signed_part_is_noticed(changed: int) -> None:
    _, timestamps, nonce, payload, signature = VECTORS[0]
    parts = [SECRET, timestamps, nonce, payload]
    parts[changed] = parts[changed][:-1] + ("x" if parts[changed][-1] != "x" else "y")
    assert signing.sign(*parts) != signature
    secret, timestamps, nonce, payload = parts
    assert not signing.verify(secret, timestamps, nonce, payload, signature)


def test_the_webhook_vector_holds() -> None:
    assert signing.sign_webhook(SECRET, "task_42", 1626418779, WEBHOOK_BODY) == WEBHOOK_SIGNATURE


@given(st.binary(min_size=1).filter(lambda key: key.isascii()), st.integers(1, 2**40), st.text())
def test_the_public_package_signs_a_webhook_alike(key: bytes, task_id: int, text: str) -> None:
    body = text.encode("utf-8", "replace")
    theirs = standardwebhooks.Webhook(key)
    signature = signing.sign_webhook(key.decode(), f"task_{task_id}", 1626418779, body)
    moment = datetime.datetime.fromtimestamp(1626418779, datetime.UTC)
    assert theirs.sign(msg_id=f"task_{task_id}", timestamp=moment, data=body.decode()) == signature


def test_a_random_token_has_its_length_and_alphabet_and_does_not_repeat() -> None:
    tokens = {signing.random_token(16) for _ in range(500)}
    assert len(tokens) == 500
    assert all(len(token) == 16 and token.isascii() and token.isalnum() for token in tokens)

"""Turns values into columns of the stores that speak SQL, and back."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from taskd.domain.model import (
    SHORT_CONTENT,
    App,
    Attempt,
    NonceUse,
    Outcome,
    StoredTask,
    SuccessRule,
    TaskState,
)

STATE_CODES = {
    TaskState.SCHEDULED: 0,
    TaskState.RUNNING: 1,
    TaskState.RETRYING: 2,
    TaskState.SUCCEEDED: 3,
    TaskState.FAILED: 4,
    TaskState.CANCELLED: 5,
}
STATES = {code: state for state, code in STATE_CODES.items()}

INLINE_CONTENT = SHORT_CONTENT
"""Bytes up to which content stands in its task's row."""

AttemptRow = tuple[int, int, int, int, str, int | None, str | None, str | None]
"""task_id, attempt, started_at, ended_at, outcome, http_status, response, error."""


def attempt_row(task_id: int, attempt: Attempt) -> AttemptRow:
    """Return the row of an attempt."""
    return (
        task_id,
        attempt.attempt,
        attempt.started_at,
        attempt.ended_at,
        attempt.outcome.value,
        attempt.http_status,
        attempt.response,
        attempt.error,
    )


def stored_columns(task: StoredTask) -> tuple[int | None, ...]:
    """Return token, attempt, failures, abandoned, sent, timeout_ms, step, retry_total, runtime
    and created_at of a task that is put into a store."""
    return (
        task.token,
        task.attempt,
        task.failures,
        task.abandoned,
        int(task.sent),
        task.timeout_ms,
        task.step,
        task.retry_total,
        task.runtime,
        task.created_at,
    )


def read_attempt(row: Sequence[Any]) -> Attempt:
    """Return an attempt from its row's columns after the task's id."""
    number, started_at, ended_at, outcome, http_status, response, error = row
    return Attempt(
        attempt=number,
        started_at=started_at,
        ended_at=ended_at,
        outcome=Outcome(outcome),
        http_status=http_status,
        response=response,
        error=error,
    )


def read_app(row: Sequence[Any]) -> App:
    """Return an app from its row."""
    (
        app_id, app_key, secret_key, name, link_url, step, retry_total, remark, created_at,
        success,
    ) = row  # fmt: skip
    return App(
        id=app_id,
        app_key=as_text(app_key),
        secret_key=secret_key,
        name=name,
        link_url=link_url,
        step=step,
        retry_total=retry_total,
        remark=remark,
        created_at=created_at,
        success=SuccessRule(success),
    )


def as_text(value: str | bytes) -> str:
    """Return a text as it was written; a database may answer its bytes."""
    return value if isinstance(value, str) else value.decode()


def as_bytes(value: str | bytes) -> bytes:
    """Return bytes as they were written; a database may answer a text."""
    return value.encode() if isinstance(value, str) else value


def nonce_digest(nonce: NonceUse) -> bytes:
    """Return 16 bytes that stand for an app's key and a nonce of any length. 128 bits do not
    collide by chance."""
    key = nonce.app_key.encode()
    text = len(key).to_bytes(4, "big") + key + nonce.nonce.encode()
    return hashlib.blake2b(text, digest_size=16).digest()

"""One attempt: the callback, signed and sent, and what its answer means.

Nothing here decides whether there will be another attempt; see `retry`.
"""

from __future__ import annotations

import dataclasses
import datetime
import email.utils
import re
import secrets
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import quote

import trio

from taskd import __version__
from taskd.clock import Clock
from taskd.errors import Denied, InvalidInput, Unreachable, UnreadableResponse
from taskd.model import LeasedTask, Outcome, Phase
from taskd.progress import Progress, Response
from taskd.signing import sign_headers, sign_webhook
from taskd.transport import Transport, parse_target

HeaderStyle = Literal["underscore", "hyphen"]

_KEPT_BYTES = 4096
_SUCCESS = b"success"
_OK, _REDIRECTS, _ERRORS = 200, 300, 400
_SHOWN_ENCODING = 40
_SECONDS = re.compile("[0-9]{1,9}")
_TOO_MANY_SECONDS = re.compile("[0-9]+")

_DOING = {
    None: "before it began",
    Phase.RESOLVING: "while resolving the name",
    Phase.CONNECTING: "while connecting",
    Phase.TLS: "during the TLS handshake",
    Phase.SENDING: "while sending the request",
    Phase.AWAITING_RESPONSE: "while awaiting the response",
    Phase.READING: "while reading the response",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptResult:
    """How an attempt ended by itself."""

    outcome: Outcome
    """Any but ``cancelled`` and ``abandoned``."""
    http_status: int | None = None
    """None without an answer whose head was read."""
    response: str | None = field(default=None, repr=False)
    """The first 4 KiB of the answer's body, undecodable bytes replaced."""
    error: str | None = None
    """One sentence on why it failed; None if it succeeded."""
    retry_after_s: float | None = None
    """The answer's Retry-After, from the end of the attempt."""


class Delivery:
    """Makes attempts.

    Args:
        transport: sends them.
        clock: the wall clock, for timestamps and Retry-After dates.
        header_style: ``hyphen`` sends ``app-key`` in place of ``app_key``, for
            receivers whose proxy drops names with underscores.
    """

    def __init__(
        self, transport: Transport, clock: Clock, *, header_style: HeaderStyle = "underscore"
    ) -> None:
        self._transport = transport
        self._clock = clock
        self._key_header = "app-key" if header_style == "hyphen" else "app_key"

    async def attempt(self, task: LeasedTask, progress: Progress) -> AttemptResult:
        """Make one attempt, within the task's ``timeout_ms`` from resolving the
        name to the last byte read. A cancellation from outside passes through."""
        try:
            target = parse_target(task.app.link_url)
            with trio.move_on_after(task.timeout_ms / 1000):
                body = (b'{"data":', task.content, b"}")  # a long content is not copied
                headers = callback_headers(
                    task, *body, now_ms=self._clock.now_ms(), key_header=self._key_header
                )
                response = await self._transport.post(target, headers, body, progress)
                result = judge(response, self._clock.now_ms())
                progress.finish()
                return result
            result = self._timed_out(task, target.origin, progress)
        except Denied as error:
            result = AttemptResult(outcome=Outcome.DENIED, error=str(error))
        except (Unreachable, UnreadableResponse, InvalidInput) as error:
            result = AttemptResult(outcome=Outcome.UNREACHABLE, error=str(error))
        progress.finish()
        return result

    def _timed_out(self, task: LeasedTask, origin: str, progress: Progress) -> AttemptResult:
        """What has become of an attempt whose time is over. An answer that had begun
        counts as far as it came: a status other than 2xx has said all that matters."""
        where = f", {progress.address}" if progress.address else ""
        limit = f"its {task.timeout_ms} ms"
        error = (
            f"attempt {task.attempt} ran out of {limit} {_DOING[progress.phase]} ({origin}{where})"
        )
        answer = progress.answer
        if answer is None:
            return AttemptResult(outcome=Outcome.TIMED_OUT, error=error)
        late = f"its body did not end before the attempt ran out of {limit}"
        result = judge(
            dataclasses.replace(answer, problem=answer.problem or late), self._clock.now_ms()
        )
        if answer.problem is not None or not _OK <= answer.status < _REDIRECTS:
            return result
        error += f" with status {answer.status}"
        return dataclasses.replace(result, outcome=Outcome.TIMED_OUT, error=error)


def callback_headers(
    task: LeasedTask, *body: bytes, now_ms: int, key_header: str = "app_key"
) -> list[tuple[str, str]]:
    """The headers of a callback, but Host and Content-Length; the body in parts."""
    # As long as the 16 characters that clients of old use, and never one of theirs.
    nonce = "cb-" + secrets.token_urlsafe(10)[:13]
    secret_key = task.app.secret_key
    signed = sign_headers(task.app.app_key, secret_key, *body, now_ms=now_ms, nonce=nonce)
    task_id = task.lease.task_id
    webhook_id = f"task_{task_id}"
    return [
        *_CONSTANT_HEADERS,
        (key_header, signed["app_key"]),
        ("nonce", nonce),
        ("timestamps", signed["timestamps"]),
        ("signature", signed["signature"]),
        ("payload", signed["payload"]),
        ("Taskd-Task-Id", str(task_id)),
        ("Taskd-Task-No", quote(task.task_no, safe="")),
        ("Taskd-Attempt", str(task.attempt)),
        ("webhook-id", webhook_id),
        ("webhook-timestamp", signed["timestamps"]),
        ("webhook-signature", sign_webhook(secret_key, webhook_id, now_ms // 1000, *body)),
    ]


_CONSTANT_HEADERS = (
    ("User-Agent", f"taskd/{__version__}"),
    ("Accept", "*/*"),
    ("Accept-Encoding", "identity"),
    ("Content-Type", "application/json"),
)


def judge(response: Response, now_ms: int) -> AttemptResult:
    """What an answer means: success is a 2xx whose body, stripped of white space,
    is ``success``, whatever encoding it claims."""
    status = response.status
    error: str | None = None
    if not _OK <= status < _REDIRECTS:
        error = f"the application answered with status {status}"
        if _REDIRECTS <= status < _ERRORS:
            error += "; redirects are not followed"
        if (problem := _problem(response)) is not None:
            error += f"; {problem}"
    elif response.problem is not None or response.body.strip() != _SUCCESS:
        problem = _problem(response) or "its body is not 'success'"
        error = f"the application answered with status {status}, but {problem}"
    return AttemptResult(
        outcome=Outcome.SUCCEEDED if error is None else Outcome.REJECTED,
        http_status=status,
        response=kept_text(response),
        error=error,
        retry_after_s=(
            None
            if response.retry_after is None
            else parse_retry_after(response.retry_after, now_ms)
        ),
    )


def kept_text(response: Response) -> str:
    """What is kept of an answer's body: its first 4 KiB, undecodable bytes replaced."""
    return response.body[:_KEPT_BYTES].decode("utf-8", "replace")


def _problem(response: Response) -> str | None:
    """What keeps an answer's body from being read as it is."""
    if response.problem is not None or response.encoding is None:
        return response.problem
    encoding = response.encoding[:_SHOWN_ENCODING]
    return f"its body is encoded as {encoding!r}, though only identity was asked for"


def parse_retry_after(value: str, now_ms: int) -> float | None:
    """Seconds from now that a Retry-After header asks for: a number of seconds, or
    a date in one of the three forms of HTTP. None if it is neither; a date that
    has passed is 0."""
    value = value.strip()
    if _SECONDS.fullmatch(value):
        return float(value)
    if _TOO_MANY_SECONDS.fullmatch(value):
        return 1e9
    try:
        moment = email.utils.parsedate_to_datetime(value)
        if moment.tzinfo is None:  # the oldest form has no zone, and means UTC
            moment = moment.replace(tzinfo=datetime.UTC)
        return max(0.0, moment.timestamp() - now_ms / 1000)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None

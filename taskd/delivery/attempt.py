"""One attempt: the callback, signed and sent, and its answer judged by `verdict`."""

from __future__ import annotations

import dataclasses
import secrets
from typing import Literal
from urllib.parse import quote

import trio

from taskd import __version__
from taskd.clock import Clock
from taskd.delivery.discretion import Discretion
from taskd.delivery.progress import Progress
from taskd.delivery.transport import Target, Transport, parse_target
from taskd.delivery.verdict import AttemptResult, judge, may_succeed
from taskd.domain.model import LeasedTask, Outcome, Phase, SuccessRule
from taskd.domain.signing import sign_headers, sign_webhook
from taskd.errors import Denied, InvalidInput, Unreachable, UnreadableResponse

__all__ = ["AttemptResult", "Delivery", "HeaderStyle", "callback_headers"]

HeaderStyle = Literal["both", "underscore", "hyphen"]

_KEY_HEADERS: dict[HeaderStyle, tuple[str, ...]] = {
    "both": ("app_key", "app-key"),
    "underscore": ("app_key",),
    "hyphen": ("app-key",),
}

_DOING = {
    None: "before it began",
    Phase.RESOLVING: "while resolving the name",
    Phase.CONNECTING: "while connecting",
    Phase.TLS: "during the TLS handshake",
    Phase.SENDING: "while sending the request",
    Phase.AWAITING_RESPONSE: "while awaiting the response",
    Phase.READING: "while reading the response",
}


class Delivery:
    """Makes attempts.

    Args:
        transport: sends them.
        clock: the wall clock, for timestamps and Retry-After dates.
        header_style: how the header ``app_key`` is spelt. Many servers and proxies drop
            names with an underscore, so ``both`` sends ``app_key`` and ``app-key``.
        discretion: limits what applications are told, where they may be strangers'; None:
            they are told everything.
    """

    def __init__(
        self,
        transport: Transport,
        clock: Clock,
        *,
        header_style: HeaderStyle = "both",
        discretion: Discretion | None = None,
    ) -> None:
        self._discretion = discretion
        self._transport = transport
        self._clock = clock
        self._key_headers = _KEY_HEADERS[header_style]

    async def attempt(self, task: LeasedTask, progress: Progress) -> AttemptResult:
        """Make one attempt. The only deadline is the caller's, who cancels it when the
        task's ``timeout_ms`` are over, and then asks `timed_out`.

        Raises:
            SystemShort: nothing was sent, and it does not count as an attempt.
        """
        try:
            target = parse_target(task.app.link_url)
        except InvalidInput as error:
            return AttemptResult(outcome=Outcome.UNREACHABLE, error=str(error))
        try:
            result = await self._attempt(task, target, progress)
        except Denied as error:
            result = AttemptResult(outcome=Outcome.DENIED, error=str(error))
        except (Unreachable, UnreadableResponse, InvalidInput) as error:
            result = AttemptResult(outcome=Outcome.UNREACHABLE, error=str(error))
        return self._ended(result, target, progress)

    def timed_out(self, task: LeasedTask, progress: Progress) -> AttemptResult:
        """Return the result of an attempt that was cancelled since its time was over. If the
        head of an answer had come, the answer is judged as far as it came: where its status
        decides, the rest says nothing more."""
        target = parse_target(task.app.link_url)
        return self._ended(self._cut_off(task, target.origin, progress), target, progress)

    def _ended(self, result: AttemptResult, target: Target, progress: Progress) -> AttemptResult:
        progress.finish()
        if self._discretion is not None:
            return self._discretion.told(result, target.origin, progress)
        return result

    async def _attempt(self, task: LeasedTask, target: Target, progress: Progress) -> AttemptResult:
        success = task.app.success
        began_at = trio.current_time()
        body = (b'{"data":', task.content, b"}")  # a long content is not copied
        headers = callback_headers(
            task, *body, now_ms=self._clock.now_ms(), key_headers=self._key_headers
        )
        try:
            response = await self._transport.post(
                target, headers, body, progress, body_counts=success is SuccessRule.BODY
            )
        except (Denied, Unreachable):
            if self._discretion is not None:
                await self._discretion.even_out(progress, began_at)
            raise
        return judge(response, self._clock.now_ms(), success)

    def _cut_off(self, task: LeasedTask, origin: str, progress: Progress) -> AttemptResult:
        where = f", {progress.address}" if progress.address else ""
        limit = f"its {task.timeout_ms} ms"
        doing = _DOING[progress.phase]
        outcome = Outcome.TIMED_OUT
        if progress.via is not None:
            if progress.phase is Phase.CONNECTING:  # the proxy did not answer, then
                doing += f" through {progress.via}"
                outcome = Outcome.UNREACHABLE
            else:
                where += " through the proxy"
        error = f"attempt {task.attempt} ran out of {limit} {doing} ({origin}{where})"
        answer = progress.answer
        if answer is None:
            return AttemptResult(outcome=outcome, error=error, unanswered=True)
        late = f"its body did not end before the attempt ran out of {limit}"
        success = task.app.success
        cut = dataclasses.replace(answer, problem=answer.problem or late)
        result = judge(cut, self._clock.now_ms(), success)
        body_counted = success is SuccessRule.BODY and answer.problem is None
        if not body_counted or not may_succeed(answer.status):
            return result
        error += f" with status {answer.status}"
        return dataclasses.replace(result, outcome=Outcome.TIMED_OUT, error=error)


def callback_headers(
    task: LeasedTask,
    *body: bytes,
    now_ms: int,
    key_headers: tuple[str, ...] = _KEY_HEADERS["both"],
) -> list[tuple[str, str]]:
    """The headers of a callback, except Host and Content-Length; ``body`` in parts."""
    # As long as the 16 characters of old clients' nonces. No client's nonce may begin with
    # cb-.
    nonce = "cb-" + secrets.token_urlsafe(10)[:13]
    secret_key = task.app.secret_key
    signed = sign_headers(task.app.app_key, secret_key, *body, now_ms=now_ms, nonce=nonce)
    task_id = task.lease.task_id
    webhook_id = f"task_{task_id}"
    return [
        *_CONSTANT_HEADERS,
        *((name, signed["app_key"]) for name in key_headers),
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

"""What an application's answer means. Pure functions, no clock.

Whether there will be another attempt is not decided here; see `retry`.
"""

from __future__ import annotations

import datetime
import email.utils
import json
import re
from dataclasses import field

from taskd.delivery.progress import Response
from taskd.domain.model import Outcome, SuccessRule
from taskd.domain.record import record

_KEPT_BYTES = 4096
_SUCCESS = "success"
_SUCCESS_BYTES = _SUCCESS.encode()
_LONGEST_JSON = len(_SUCCESS) * len(r"\u0073") + 2
"""Characters of the longest JSON string that is this word: each letter is escaped."""

_OK, _REDIRECTS, _ERRORS = 200, 300, 400
_SHOWN = 32
_SHOWN_LOCATION = 200
_BAD_REQUEST = 400
_REFUSALS = (
    (
        re.compile(
            rb"(?i)HTTP request (?:was sent )?to (?:an? )?HTTPS"
            rb"|plain HTTP to an SSL-enabled|combination of host and port requires TLS"
        ),
        "plain HTTP was sent to a port for TLS: should the linkUrl begin with https://?",
    ),
    (re.compile(rb"(?i)No required SSL certificate"), "it demands a client certificate"),
    (re.compile(rb"(?i)The SSL certificate error"), "it does not accept the client certificate"),
)
"""What servers answer with status 400 (nginx, Apache, Go, Tomcat), and what it means."""

_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_WHITE_SPACE = (
    "\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006"
    "\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000\ufeff"
)
"""What surrounds the word without changing it: Unicode's white space, the no-break space
among it, and the byte order mark."""

_SECONDS = re.compile("[0-9]{1,9}")
_TOO_MANY_SECONDS = re.compile("[0-9]+")
_LONGEST_DATE = 64


@record(kw_only=True)
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
    detail: str | None = None
    """What the log says in place of ``error``, where the application is told less."""
    unanswered: bool = False
    """Whether its time was over before anything came, from the receiver or the proxy."""
    retry_after_s: float | None = None
    """Seconds from the end of the attempt that the answer's Retry-After asks for."""


def judge(
    response: Response, now_ms: int, success: SuccessRule = SuccessRule.BODY
) -> AttemptResult:
    """What an answer means to an application of this rule."""
    problem = _why_no_success(response, success)
    return AttemptResult(
        outcome=Outcome.SUCCEEDED if problem is None else Outcome.REJECTED,
        http_status=response.status,
        response=kept_text(response),
        error=(
            None
            if problem is None
            else f"the application answered with status {response.status}{problem}"
        ),
        retry_after_s=(
            None
            if response.retry_after is None
            else parse_retry_after(response.retry_after, now_ms)
        ),
    )


def may_succeed(status: int) -> bool:
    """Whether an answer of this status can be a success."""
    return _OK <= status < _REDIRECTS


def says_success(body: bytes) -> bool:
    """Whether a body is the word ``success``, plain or as a JSON string, white space around
    it ignored. It is read as UTF-8, or as Latin-1 if it is not UTF-8."""
    if body == _SUCCESS_BYTES or body.strip() == _SUCCESS_BYTES:
        return True
    text = _text(body).strip(_WHITE_SPACE)
    if text == _SUCCESS:
        return True
    if not text.startswith('"') or len(text) > _LONGEST_JSON:
        return False
    try:
        return bool(json.loads(text) == _SUCCESS)
    except ValueError:
        return False


def kept_text(response: Response) -> str:
    """What is kept of an answer's body: its first 4 KiB, undecodable bytes replaced."""
    return response.body[:_KEPT_BYTES].decode("utf-8", "replace")


def parse_retry_after(value: str, now_ms: int) -> float | None:
    """Seconds from now that a Retry-After header asks for: a number of seconds, or
    a date in one of the three forms of HTTP. None if it is neither; a date that
    has passed is 0."""
    value = value.strip()
    if _SECONDS.fullmatch(value):
        return float(value)
    if _TOO_MANY_SECONDS.fullmatch(value):
        return 1e9
    if len(value) > _LONGEST_DATE:
        return None
    try:
        moment = email.utils.parsedate_to_datetime(value)
        if moment.tzinfo is None:  # the oldest form has no zone, and means UTC
            moment = moment.replace(tzinfo=datetime.UTC)
        return max(0.0, moment.timestamp() - now_ms / 1000)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _why_no_success(response: Response, success: SuccessRule) -> str | None:
    """Why an answer is no success, as the end of a sentence that begins with its status;
    None of a success."""
    if not may_succeed(response.status):
        parts = (_redirect(response), _known_refusal(response), _unreadable(response))
        return "".join(f"; {part}" for part in parts if part is not None)
    if success is SuccessRule.STATUS:
        return None
    if response.problem is None and says_success(response.body):
        return None
    return f", but {_unreadable(response) or _unlike_success(response.body)}"


def _redirect(response: Response) -> str | None:
    if not _REDIRECTS <= response.status < _ERRORS:
        return None
    if response.location is None:
        return "redirects are not followed"
    location = _quoted(response.location, _SHOWN_LOCATION)
    return f"redirects are not followed, and this one leads to {location}"


def _known_refusal(response: Response) -> str | None:
    """What a 400 means, if it is worded in one of the ways known of servers."""
    if response.status != _BAD_REQUEST:
        return None
    for pattern, meaning in _REFUSALS:
        if pattern.search(response.body, 0, _KEPT_BYTES):
            return meaning
    return None


def _unreadable(response: Response) -> str | None:
    """What keeps an answer's body from being read as it is."""
    if response.problem is not None or response.encoding is None:
        return response.problem
    return f"its body is encoded as {_quoted(response.encoding)}, and identity was asked for"


def _unlike_success(body: bytes) -> str:
    text = _text(body).strip(_WHITE_SPACE)
    if not text:
        return "its body is empty, not 'success'"
    hint = 'an application made with success "status" needs no word'
    if body.startswith(_UTF_16):
        hint = "it is in UTF-16, and UTF-8 is read"
    elif text.strip("\"'.!").lower() == _SUCCESS:
        hint = "the word counts as it is, in lower case and alone"
    return f"its body is {_quoted(text)}, not 'success' ({hint})"


def _text(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError:
        return body.decode("latin-1")


def _quoted(text: str, most: int = _SHOWN) -> str:
    """The beginning of a text from outside, control characters visible."""
    return repr(text[:most]) + ("…" if len(text) > most else "")

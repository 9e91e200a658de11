"""A synchronous client of taskd's API, on the standard library alone.

    >>> with Client("http://127.0.0.1:9502", app_key, secret_key) as client:
    ...     task = client.create_task(
    ...         task_no="order-1001", name="close order", content='{"order":1001}', timeout_ms=5000
    ...     )
    ...     client.detail(coroutine_id=task["coroutine_id"])

Methods return the answer's ``data``. They raise `RequestRefused` if the daemon answers with
another code than 0, `DaemonUnreachable` if there is no connection or no readable answer, and
`InvalidInput` for values that can't be sent.

A client's ``timeout_s`` and a task's ``timeout_ms`` were both called ``timeout`` at first;
that name still works.
"""

from __future__ import annotations

import email.utils
import http.client
import json
import math
import re
import select
import ssl
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, overload

from taskd.clock import Clock, SystemClock
from taskd.domain.record import record
from taskd.domain.signing import random_token, sign_headers
from taskd.errors import DaemonUnreachable, InvalidInput, RequestRefused, TaskNoTaken
from taskd.runtime.json_depth import load_json

MAX_ANSWER = 16 * 1024 * 1024
"""Longest answer that is read, in bytes."""

T = TypeVar("T")

_DEFAULT_PORTS = {"http": 80, "https": 443}
_KEY = re.compile(r"[\x21-\x7e]{1,128}")
_EXISTING = re.compile(r"([1-9][0-9]{0,15}) ([a-z_]{1,32})")
_TAKEN = 1  # the envelope's code of a create whose taskNo is taken
_NONCE_LENGTH = 24
_TIMEOUT_S = 30.0
_LONGEST_DATE = 64


@record
class _Answer:
    """The answer to a request."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes


@dataclass(frozen=True, slots=True)
class _Base:
    """The parts of a daemon's URL."""

    scheme: str
    host: str
    port: int
    path: str


def normalise_url(url: str) -> str:
    """Return the normal spelling of a daemon's URL: lower case, no default port, no slash at
    its end.

    Raises:
        InvalidInput: it is no ``http://HOST[:PORT][/PATH]`` or its https twin.
    """
    base = _parse(url)
    host = f"[{base.host}]" if ":" in base.host else base.host
    port = "" if base.port == _DEFAULT_PORTS[base.scheme] else f":{base.port}"
    return f"{base.scheme}://{host}{port}{base.path}"


def _parse(url: str) -> _Base:
    wanted = "must be http://HOST[:PORT] or https://HOST[:PORT]"
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise InvalidInput("url", f"{wanted}: {error}") from error
    if "@" in url or parts.query or parts.fragment:
        # Checked first, and not shown: there may be a password before the @.
        raise InvalidInput("url", f"{wanted}, without a user, a query or a fragment")
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname or not url.isascii():
        raise InvalidInput("url", f"{wanted}, got {url!r}")
    if re.search(r"[\x00-\x20\x7f]", url):
        raise InvalidInput("url", f"{wanted}, without white space")
    try:
        parts.hostname.encode("idna")  # the resolver does so too, and fails with no OSError
    except UnicodeError as error:
        raise InvalidInput("url", f"{wanted}, got a host that no name can be") from error
    port = _DEFAULT_PORTS[parts.scheme] if port is None else port
    return _Base(parts.scheme, parts.hostname, port, parts.path.rstrip("/"))


class Client:
    """Calls one daemon's API, as one application or as the administrator.

    It keeps one connection open, and several threads must not use it at a time. It follows no
    redirect, uses no proxy, and never sends a request twice.
    """

    def __init__(
        self,
        url: str,
        app_key: str | None = None,
        secret_key: str | None = None,
        *,
        timeout_s: float | None = None,
        clock: Clock | None = None,
        timeout: float | None = None,
    ) -> None:
        """Prepare a client; nothing is sent yet.

        Args:
            url: where the daemon listens, e.g. ``http://127.0.0.1:9502``.
            app_key: the application's, or the administrator's; None sends
                unsigned, which only an open registration accepts.
            secret_key: the key that signs.
            timeout_s: seconds that connecting, and each wait for bytes, may take; 30 by
                default.
            clock: gives the timestamps; the machine's by default.
            timeout: the former name of ``timeout_s``.

        Raises:
            InvalidInput: the URL or the key can't be sent.
            TypeError: ``timeout_s`` is given by both of its names.
        """
        self.url = normalise_url(url)
        if app_key is not None and not _KEY.fullmatch(app_key):
            raise InvalidInput("app_key", "must be printable ASCII without white space")
        if (app_key is None) != (secret_key is None):
            raise InvalidInput("secret_key", "must be given together with app_key")
        if secret_key is not None and not _is_text(secret_key):
            # From an environment that is not UTF-8. The error is not chained, as its cause
            # would hold the secret.
            raise InvalidInput("secret_key", "must be UTF-8 text")
        self.app_key = app_key
        self._secret_key = secret_key
        self._base = _parse(url)
        given_s = _named(timeout_s=timeout_s, timeout=timeout)
        self._timeout_s = _TIMEOUT_S if given_s is None else given_s
        self._clock = clock or SystemClock()
        self._connection: http.client.HTTPConnection | None = None

    def __repr__(self) -> str:
        return f"Client({self.url!r}, app_key={self.app_key!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. A later call opens a new one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def copy(self) -> Client:
        """Return another client of the same daemon and keys, for use by another thread."""
        return Client(
            self.url, self.app_key, self._secret_key, timeout_s=self._timeout_s, clock=self._clock
        )

    def create_app(
        self,
        *,
        name: str,
        link_url: str,
        step: int | None = None,
        retry_total: int | None = None,
        remark: str | None = None,
        success: Literal["body", "status"] | None = None,
    ) -> dict[str, Any]:
        """Create an application, as the administrator.

        Args:
            name: of the application.
            link_url: the URL that its tasks are delivered to.
            step: seconds by which the wait before each retry grows.
            retry_total: retries after the first attempt.
            remark: a note.
            success: the answers that count as a success: ``body`` (the default) a 2xx whose
                body is ``success``, ``status`` any 2xx.

        The application signs with the answer's ``appKey`` and ``secretKey``; the secret is
        told only this once.
        """
        return self._post(
            "/application/create",
            appName=name,
            linkUrl=link_url,
            step=step,
            retryTotal=retry_total,
            remark=remark,
            success=success,
        )

    @overload
    def create_task(
        self,
        *,
        task_no: str,
        name: str,
        content: object,
        timeout_ms: int,
        runtime: str | float | None = None,
        delay: str | float | None = None,
        step: int | None = None,
        retry_total: int | None = None,
    ) -> dict[str, Any]: ...

    @overload
    def create_task(
        self,
        *,
        task_no: str,
        name: str,
        content: object,
        timeout: int,
        runtime: str | float | None = None,
        delay: str | float | None = None,
        step: int | None = None,
        retry_total: int | None = None,
    ) -> dict[str, Any]: ...

    def create_task(
        self,
        *,
        task_no: str,
        name: str,
        content: object,
        timeout_ms: int | None = None,
        runtime: str | float | None = None,
        delay: str | float | None = None,
        step: int | None = None,
        retry_total: int | None = None,
        timeout: int | None = None,
    ) -> dict[str, Any]:
        """Submit a task; on return it is durable.

        Args:
            task_no: the application's own name for the task, unique.
            name: says what the task is.
            content: JSON text as a string, delivered byte for byte, or any JSON
                value but None.
            timeout_ms: limit of one attempt, in milliseconds.
            runtime: when the task is due: ``YYYY-MM-DD HH:MM:SS[.mmm]`` in the daemon's
                timezone, ISO 8601 with an offset, or Unix seconds.
            delay: instead of ``runtime``, how long after its arrival the task is due:
                seconds, or a text such as ``"90s"``, ``"30m"``, ``"2h"``, ``"3d"``. With
                neither, it is due at once.
            step: seconds by which the wait before each retry grows.
            retry_total: retries after the first attempt.
            timeout: the former name of ``timeout_ms``.

        Returns:
            ``taskId`` and ``coroutine_id``, the same number, and ``dueAt``, when the task is
            due.

        Raises:
            TaskNoTaken: the application has a task of this taskNo already, which the error's
                ``task_id`` and ``state`` tell.
            TypeError: ``timeout_ms`` is not given, or by both of its names.
        """
        limit_ms = _named(timeout_ms=timeout_ms, timeout=timeout)
        if limit_ms is None:
            raise TypeError("create_task() needs timeout_ms")
        body = _encoded_fields(
            taskNo=task_no,
            name=name,
            content=content,
            timeout=limit_ms,
            runtime=_in_milliseconds(runtime),
            delay=_in_milliseconds(delay),
            step=step,
            retryTotal=retry_total,
        )
        answer = self._ask("/task/create", body)
        try:
            return self._data(answer)
        except RequestRefused as error:
            if error.code == _TAKEN:
                raise _taken(error, answer.headers.get("Taskd-Existing")) from error
            raise

    def create_tasks(
        self, tasks: Sequence[Mapping[str, object] | bytes], *, atomic: bool = False
    ) -> list[dict[str, Any]]:
        """Submit up to 1,000 tasks at once; on return they are durable.

        Args:
            tasks: as ``/task/create`` takes them: ``taskNo``, ``name``, ``content``,
                ``timeout``, and, if wanted, ``runtime`` or ``delay``, ``step``,
                ``retryTotal``. Bytes are the JSON text of such an object, sent as they are.
            atomic: keep all of them or none.

        Returns:
            For each, in order, ``taskId``, ``coroutine_id`` and ``dueAt``; for a refused one
            ``code`` and ``msg``. Code 1: its taskNo is taken, and ``existing`` has the
            ``taskId`` and ``state`` of the task that has it. A batch that is sent again learns
            from this which tasks had arrived. Code 422: bad fields.

        Raises:
            RequestRefused: also for ``atomic``, with code 409, if a task was refused; its
                ``data`` has the ``index`` of that task, and the result it would have had.
        """
        texts = [task if isinstance(task, bytes) else _encoded(task) for task in tasks]
        end = b'],"atomic":true}' if atomic else b"]}"
        data = self._data(self._ask("/task/batch", b'{"tasks":[' + b",".join(texts) + end))
        results = data.get("results")
        if (
            not isinstance(results, list)
            or len(results) != len(tasks)
            or not all(isinstance(result, dict) for result in results)
        ):
            raise DaemonUnreachable(f"{self.url} answered with a malformed envelope")
        return results

    def cancel(
        self,
        coroutine_id: int | None = None,
        *,
        task_id: int | None = None,
        task_no: str | None = None,
    ) -> dict[str, Any]:
        """Cancel a task for good, named in one of three ways; on return its coroutine has
        unwound.

        Returns:
            ``coroutine_id``, ``state`` and ``delivery``, which says what the application can
            have seen of the task.
        """
        return self._post("/task/cancel", coroutine_id=coroutine_id, taskId=task_id, taskNo=task_no)

    def detail(
        self,
        coroutine_id: int | None = None,
        *,
        task_id: int | None = None,
        task_no: str | None = None,
    ) -> dict[str, Any]:
        """Look at a task, named in one of three ways, and into its coroutine while it runs.

        For a task that this application does not have, the answer has ``state: None`` and no
        ``task``.
        """
        return self._post("/task/detail", coroutine_id=coroutine_id, taskId=task_id, taskNo=task_no)

    def healthy(self) -> bool:
        """Whether the daemon's process lives and answers."""
        return self._exchange("GET", "/healthz", b"", {}).status == http.HTTPStatus.OK

    def ready(self) -> bool:
        """Whether the daemon takes and delivers tasks now."""
        return self._exchange("GET", "/readyz", b"", {}).status == http.HTTPStatus.OK

    def _post(self, path: str, **fields: object) -> dict[str, Any]:
        return self._data(self._ask(path, _encoded_fields(**fields)))

    def _ask(self, path: str, body: bytes) -> _Answer:
        headers = {"Content-Type": "application/json", **self._signature(body)}
        return self._exchange("POST", path, body, headers)

    def _signature(self, body: bytes) -> dict[str, str]:
        if self.app_key is None or self._secret_key is None:
            return {}
        headers = sign_headers(
            self.app_key,
            self._secret_key,
            body,
            now_ms=self._clock.now_ms(),
            nonce=random_token(_NONCE_LENGTH),
        )
        # Some proxies drop names with an underscore.
        headers["app-key"] = headers.pop("app_key")
        return headers

    def _exchange(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> _Answer:
        """Send one request and return its answer."""
        connection = self._connected()
        try:
            connection.request(method, self._base.path + path, body or None, headers)
            response = connection.getresponse()
            answer = response.read(MAX_ANSWER + 1)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise DaemonUnreachable(f"no answer from {self.url}: {_reason(error)}") from error
        except BaseException:
            self.close()  # half an exchange: the connection can't be used again
            raise
        if response.will_close or len(answer) > MAX_ANSWER:
            self.close()
        if len(answer) > MAX_ANSWER:
            raise DaemonUnreachable(f"{self.url} answered with more than {MAX_ANSWER} bytes")
        return _Answer(response.status, response.headers, answer)

    def _connected(self) -> http.client.HTTPConnection:
        if self._connection is not None and _stale(self._connection):
            self.close()
        if self._connection is not None:
            return self._connection
        base = self._base
        connection: http.client.HTTPConnection
        try:
            if base.scheme == "https":
                connection = http.client.HTTPSConnection(
                    base.host, base.port, timeout=self._timeout_s, context=_tls()
                )
            else:
                connection = http.client.HTTPConnection(
                    base.host, base.port, timeout=self._timeout_s
                )
            connection.connect()
        except OSError as error:
            raise DaemonUnreachable(
                f"no daemon can be reached at {self.url}: {_reason(error)}"
            ) from error
        self._connection = connection
        return connection

    def _data(self, answer: _Answer) -> dict[str, Any]:
        try:
            envelope = load_json(answer.body)
            code, msg, data = envelope["code"], envelope["msg"], envelope["data"]
        except (ValueError, KeyError, TypeError) as error:
            raise DaemonUnreachable(
                f"{self.url} answered with HTTP {answer.status} and no taskd answer: is this "
                "its URL?"
            ) from error
        if type(code) is not int or not isinstance(msg, str):
            raise DaemonUnreachable(f"{self.url} answered with a malformed envelope")
        if code != 0:
            msg = self._skew(code, answer.headers.get("Date"), msg) or msg
            raise RequestRefused(code, msg, data)
        if not isinstance(data, dict):
            raise DaemonUnreachable(f"{self.url} answered with a malformed envelope")
        return data

    def _skew(self, code: int, date: str | None, msg: str) -> str | None:
        """Return a sentence on how much the two clocks differ, for a refused timestamp only."""
        told = msg.startswith("timestamps:")
        if code != http.HTTPStatus.UNAUTHORIZED or not told or date is None:
            return None
        if len(date) > _LONGEST_DATE:
            return None
        try:
            theirs = email.utils.parsedate_to_datetime(date).timestamp()
        except (ValueError, OverflowError):
            return None
        seconds = round(self._clock.now_ms() / 1000 - theirs)
        if seconds == 0:
            return None
        side = "ahead of" if seconds > 0 else "behind"
        return (
            f"this machine's clock is {_duration(abs(seconds))} {side} the daemon's, too far "
            "for a signature to be accepted: set the wrong one right"
        )


def _taken(error: RequestRefused, existing: str | None) -> TaskNoTaken:
    """Return the error for a taken taskNo, with the task that the answer's header names."""
    match = _EXISTING.fullmatch(existing or "")
    task_id, state = (None, None) if match is None else (int(match[1]), match[2])
    return TaskNoTaken(error.code, error.msg, error.data, task_id=task_id, state=state)


def _named(**given: T | None) -> T | None:
    """Return the value that was given by its present or its former name."""
    present, former = given
    if given[present] is not None and given[former] is not None:
        raise TypeError(f"{present} must not be given together with {former}, its former name")
    return given[former] if given[present] is None else given[present]


def _in_milliseconds(seconds: str | float | None) -> str | float | None:
    """Return seconds with no more decimals than the daemon takes: `time.time` and sums of
    fractions give more. Rounded up, so that no task comes too early."""
    if not isinstance(seconds, float) or not math.isfinite(seconds):
        return seconds
    return math.ceil(round(seconds * 1000, 3)) / 1000


def _encoded_fields(**fields: object) -> bytes:
    return _encoded({name: value for name, value in fields.items() if value is not None})


def _encoded(value: Mapping[str, object]) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError as error:
        # Python reads argument bytes outside the locale's encoding as such text.
        field = next((k for k, v in value.items() if isinstance(v, str) and not _is_text(v)), "")
        raise InvalidInput(field, "must be text that UTF-8 can carry") from error
    except (TypeError, ValueError) as error:
        raise InvalidInput("", f"the request can't be written as JSON: {error}") from error


def _stale(connection: http.client.HTTPConnection) -> bool:
    """Whether a kept connection has been closed, or is otherwise no longer idle.

    An idle connection has nothing to read, so a readable one has ended. This way no request
    is sent on a connection that the daemon has already closed.
    """
    if connection.sock is None:
        return True
    poll = select.poll()
    poll.register(connection.sock, select.POLLIN)
    return bool(poll.poll(0))


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _tls() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "it took too long"
    if isinstance(error, ssl.SSLError) and error.reason == "WRONG_VERSION_NUMBER":
        return "it does not speak TLS; is its URL http:// ?"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _duration(seconds: int) -> str:
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "min"), (rest, "s")]
    return " ".join(f"{count} {unit}" for count, unit in parts if count)

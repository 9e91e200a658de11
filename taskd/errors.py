"""Every error that crosses a module's border.

A library's error is turned into one of these at the adapter's edge, always
with ``raise … from``. A message is one sentence for a person.
"""

from __future__ import annotations

from taskd.domain.model import ExistingTask


class TaskdError(Exception):
    """Root of all errors that taskd raises on purpose."""


class ConfigError(TaskdError):
    """The configuration cannot be used. Raised before anything is started; the
    message names the key."""


class StoreError(TaskdError):
    """Root of what a Store refuses or fails to do."""


class StoreUnavailable(StoreError):
    """The Store cannot write or read now: disk full, I/O error, locked for too
    long, closed. Nothing of the call was kept. Trying again later is safe."""


class StoreRefused(StoreError):
    """The Store cannot be opened at all: it is held by another daemon, made by
    a newer version, or not a taskd database. Trying again changes nothing."""


class DuplicateTaskNo(StoreError):
    """The app has a task of this taskNo already. Nothing was changed.

    Attributes:
        existing: that task.
    """

    def __init__(self, existing: ExistingTask) -> None:
        super().__init__(f"task {existing.id} of the app has this taskNo already")
        self.existing = existing


class BatchRefused(StoreError):
    """Tasks that are to be added as a whole hold a taskNo that the app has already, or
    that an earlier one of them has. None was added.

    Attributes:
        position: of the first such task, counted from 0.
        existing: the app's task of this taskNo; None where an earlier one of the batch
            has it, which was not added either.
    """

    def __init__(self, position: int, existing: ExistingTask | None) -> None:
        super().__init__(f"the taskNo of task {position} of the batch is taken")
        self.position = position
        self.existing = existing


class NonceUsed(StoreError):
    """The nonce was used before by this key. Nothing was changed."""


class LeaseLost(StoreError):
    """The lease's token is not the task's any more: it expired and was reaped or
    taken by another. Nothing was changed. Not raised for a lease that has
    expired but was not taken."""


class TransferClash(StoreError):
    """What is to be imported clashes with what is there: another row has its id,
    its key or its taskNo. Nothing of the call was changed."""


class BusUnavailable(TaskdError):
    """The Bus can't be asked now, so whether a nonce was used before can't be
    known. Nothing was changed, as far as is known."""


class QueueUnavailable(TaskdError):
    """One of the Queue's brokers can't be used, or its connection ended. Wake-ups
    may be lost or doubled by it, which costs time only."""


class SignedBeforeEpoch(TaskdError):
    """The request was signed before the Bus began to keep nonces, so whether its
    nonce was used before can't be known. One signed now will be taken."""


class InvalidInput(TaskdError):
    """A value from outside breaks its rule. Raised by parsers before anything is
    changed.

    Attributes:
        field: the name of the offending field, as the caller wrote it, or ""
            where it is the message as a whole.
        problem: what is wrong with it, without the name.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}" if field else problem)
        self.field = field
        self.problem = problem


class DeliveryError(TaskdError):
    """Root of what keeps an attempt from having a readable answer."""


class Denied(DeliveryError):
    """Egress forbids the address, or one of the addresses of the name. Nothing
    was sent."""


class Unreachable(DeliveryError):
    """The name did not resolve, the connection or its TLS could not be made, or
    it broke before an answer's head was there. Bytes may have been sent; the progress
    record tells."""


class SystemShort(DeliveryError):
    """This machine, or this process, has no file, port, thread or memory to make a
    connection with. Nothing was sent, and it says nothing about the application."""


class UnreadableResponse(DeliveryError):
    """What came is no answer: it has no status, or a head without an end. Not raised
    for one whose body can't be read, which is a `Response` with a problem."""


class ClientError(TaskdError):
    """Root of what the API client raises."""


class DaemonUnreachable(ClientError):
    """No connection to the daemon, or no readable answer from it. The request
    may or may not have been carried out."""


class RequestRefused(ClientError):
    """The daemon answered with a code other than 0.

    Attributes:
        code: the envelope's code.
        data: the envelope's data.
    """

    def __init__(self, code: int, msg: str, data: object) -> None:
        super().__init__(msg)
        self.code = code
        self.msg = msg
        self.data = data


class TaskNoTaken(RequestRefused):
    """The application has a task of this taskNo already. Nothing was changed.

    Attributes:
        task_id: of the task that is there; None from a daemon that does not tell.
        state: that task's state; None likewise.
    """

    def __init__(
        self, code: int, msg: str, data: object, *, task_id: int | None, state: str | None
    ) -> None:
        super().__init__(code, msg, data)
        self.task_id = task_id
        self.state = state


def sole_cause(error: Exception) -> Exception:
    """The error itself, or the only one in it: Trio wraps what ends a nursery."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error

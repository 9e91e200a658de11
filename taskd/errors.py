"""Every error that crosses a module's border.

An adapter turns a library's error into one of these, always with ``raise … from``. A message
is one sentence for a person.
"""

from __future__ import annotations

from taskd.domain.model import ExistingTask


class TaskdError(Exception):
    """Root of all errors that taskd raises on purpose."""


class ConfigError(TaskdError):
    """The configuration cannot be used. Raised before anything is started; the
    message names the key."""


class StoreError(TaskdError):
    """Root of a Store's errors: it refuses a call, or fails to do it."""


class StoreUnavailable(StoreError):
    """The Store cannot write or read now: disk full, I/O error, locked for too long, closed.
    No change of the call was kept, unless the message says that nobody knows. Trying again
    later is safe."""


class StoreRefused(StoreError):
    """The Store cannot be opened at all: another daemon has locked it, a newer version made
    it, or it is no taskd database. Trying again does not help."""


class DuplicateTaskNo(StoreError):
    """The app has a task of this taskNo already. Nothing was changed.

    Attributes:
        existing: that task.
    """

    def __init__(self, existing: ExistingTask) -> None:
        super().__init__(f"task {existing.id} of the app has this taskNo already")
        self.existing = existing


class BatchRefused(StoreError):
    """A task of an atomic batch has a taskNo that the app has already, or that an earlier task
    of the batch has. No task was added.

    Attributes:
        position: of the first such task, counted from 0.
        existing: the app's task of this taskNo; None if an earlier task of the batch has it,
            which was not added either.
    """

    def __init__(self, position: int, existing: ExistingTask | None) -> None:
        super().__init__(f"the taskNo of task {position} of the batch is taken")
        self.position = position
        self.existing = existing


class NonceUsed(StoreError):
    """The nonce was used before by this key. Nothing was changed."""


class LeaseLost(StoreError):
    """The task has another token than the lease: the lease expired and was reaped, or another
    node has leased the task. Nothing was changed. Not raised for a lease that has expired
    only."""


class TransferClash(StoreError):
    """An imported entry clashes with the Store: another row has its id, its key or its taskNo.
    The call changed nothing."""


class BusUnavailable(TaskdError):
    """The Bus can't be asked now, so whether a nonce was used before can't be known. As far
    as is known, nothing was changed."""


class QueueUnavailable(TaskdError):
    """One of the Queue's brokers can't be used, or its connection ended. Wake-ups may be lost
    or doubled, which costs time only."""


class SignedBeforeEpoch(TaskdError):
    """The request was signed before the Bus began to keep nonces, so whether its nonce was
    used before can't be known. A request that is signed now will be accepted."""


class InvalidInput(TaskdError):
    """A value from outside breaks its rule. Raised by parsers before anything is
    changed.

    Attributes:
        field: the name of the offending field, as the caller wrote it, or "" for the
            message as a whole.
        problem: what is wrong with it, without the name.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}" if field else problem)
        self.field = field
        self.problem = problem


class DeliveryError(TaskdError):
    """Root of the errors of an attempt without a readable answer."""


class Denied(DeliveryError):
    """Egress rules forbid the address, or one of the name's addresses. Nothing was sent."""


class Unreachable(DeliveryError):
    """The name did not resolve, the connection or its TLS could not be made, or it broke
    before the answer's head was complete. The progress record says whether bytes were sent."""


class SystemShort(DeliveryError):
    """This machine, or this process, has no file, port, thread or memory for a connection.
    Nothing was sent, and the application is not to blame."""


class UnreadableResponse(DeliveryError):
    """The bytes that came are no answer: they have no status, or a head without an end. An
    answer whose body can't be read does not raise it: that is a `Response` with a problem."""


class ClientError(TaskdError):
    """Root of the API client's errors."""


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
        task_id: the existing task's id; None from a daemon that does not tell it.
        state: the existing task's state; None likewise.
    """

    def __init__(
        self, code: int, msg: str, data: object, *, task_id: int | None, state: str | None
    ) -> None:
        super().__init__(code, msg, data)
        self.task_id = task_id
        self.state = state


def sole_cause(error: Exception) -> Exception:
    """Return the error itself, or the only one in it: Trio wraps errors that end a nursery."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error

"""What the daemon does on signals, from the program's first moment on.

==================  ============================================================
SIGTERM, SIGINT     stop: drain, exit code 0; a second one ends at once, exit code 1
SIGHUP              read the configuration again
SIGUSR1             log the state
SIGUSR2, SIGQUIT    nothing, but a line in the log
SIGCHLD             reap orphans that ended and that no other process waits for
`IGNORED`           nothing, though by default they end a process or stop it
==================  ============================================================

A daemon handles them a third of a second after its start at the earliest, since its imports
take so long. `guard` decides what they do until then. This matters most to the first process
of a container: the kernel does not deliver signals to it that it has no handler for.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable, Sequence
from types import FrameType

STOP = (signal.SIGTERM, signal.SIGINT)
RELOAD = signal.SIGHUP
STATUS = signal.SIGUSR1
ORDERS = (*STOP, RELOAD, STATUS, signal.SIGUSR2, signal.SIGQUIT)
"""Signals that an operator may send."""

HEARD = (*ORDERS, signal.SIGCHLD)
IGNORED = (
    *(signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF, signal.SIGIO, signal.SIGPWR),
    signal.SIGSTKFLT,
    # To read from, or log to, a terminal that another process uses is no reason to stop.
    *(signal.SIGTTIN, signal.SIGTTOU),
    *range(signal.SIGRTMIN, signal.SIGRTMAX + 1),
)

_INIT = 1
_KILLED_BY = 128


def serves(arguments: Sequence[str]) -> bool:
    """Whether a command line, without the program's name, is that of ``taskd serve``."""
    return next((one for one in arguments if not one.startswith("-")), None) == "serve"


def guard(*, serves: bool) -> None:
    """Decide what signals do until the program handles them. To be called first of all.

    Args:
        serves: a daemon will handle them. Until then a stop ends the process, as nothing
            has begun, and any other order waits.
    """
    if serves:
        for number in STOP:
            signal.signal(number, _end)
        signal.pthread_sigmask(signal.SIG_BLOCK, set(ORDERS) - set(STOP))
        ignore(IGNORED)
        # A container's runtime may start its first process with these blocked.
        let_through(STOP)
        return
    if os.getpid() == _INIT:
        # For any other process the kernel's default does the same.
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, _end_by)
    let_through(ORDERS)


def attend(numbers: Iterable[int]) -> None:
    """Have signals do nothing but wake their receiver. They are blocked until `let_through`
    is called, once there is one: a signal that came before would be lost."""
    numbers = tuple(numbers)
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    for number in numbers:
        # Not SIG_IGN, which would discard a signal that has been sent already.
        signal.signal(number, _pass)


def let_through(numbers: Iterable[int]) -> None:
    """Deliver signals from here on, waiting ones included."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)


def start_deaf(thread: threading.Thread) -> None:
    """Start a thread that gets no signal. The kernel gives a signal to any thread that does
    not block it, so a thread without `attend` would take it before its receiver is there."""
    # A thread begins with the mask of the thread that starts it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        thread.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore(numbers: Iterable[int]) -> None:
    """Have signals do nothing at all."""
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)


def forget_orphans() -> int:
    """Reap children that have ended; returns how many. For a process that starts none: its
    children are orphans, which it was given when their parents ended."""
    found = 0
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if not pid:
            return found
        found += 1


class Terminal:
    """The terminal that a program was started from, if any.

    SIGHUP comes from an operator, or from the kernel when the terminal is closed. As a closed
    terminal can't stop the program any more, SIGHUP then does, unless ``nohup`` was used.
    """

    def __init__(self) -> None:
        self._watched = _has_terminal() and signal.getsignal(RELOAD) is not signal.SIG_IGN

    def closed(self) -> bool:
        """Whether it was closed."""
        return self._watched and not _has_terminal()


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC | os.O_NONBLOCK))
    except OSError:
        return False
    return True


def _end(_number: int, _frame: FrameType | None) -> None:
    os._exit(0)


def _end_by(number: int, _frame: FrameType | None) -> None:
    os._exit(_KILLED_BY + number)


def _pass(_number: int, _frame: FrameType | None) -> None:
    return

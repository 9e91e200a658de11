"""What signals mean to the daemon, from the program's first moment on.

==================  ============================================================
SIGTERM, SIGINT     stop: drain, exit code 0; a second one ends at once, exit code 1
SIGHUP              read the configuration again
SIGUSR1             log how things stand
SIGUSR2, SIGQUIT    nothing, but a line in the log
SIGCHLD             forget processes that ended and were nobody else's
`IGNORED`           nothing, though by default they end a process or stop it
==================  ============================================================

A daemon hears them a third of a second after its start at the earliest, which is what
its imports take. `guard` says what they do until then. It matters most to the first
process of a container: what it has no handler for, the kernel does not deliver.
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
"""What an operator may send."""

HEARD = (*ORDERS, signal.SIGCHLD)
IGNORED = (
    *(signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF, signal.SIGIO, signal.SIGPWR),
    signal.SIGSTKFLT,
    # Reading from a terminal or logging to one that is another's is no reason to stop.
    *(signal.SIGTTIN, signal.SIGTTOU),
    *range(signal.SIGRTMIN, signal.SIGRTMAX + 1),
)

_INIT = 1
_KILLED_BY = 128


def serves(arguments: Sequence[str]) -> bool:
    """Whether a command line, without the program's name, is that of ``taskd serve``."""
    return next((one for one in arguments if not one.startswith("-")), None) == "serve"


def guard(*, serves: bool) -> None:
    """Say what signals do until somebody hears them: to be called first of all.

    Args:
        serves: a daemon will hear them. Until then a stop ends the process, as nothing
            has begun, and any other order waits.
    """
    if serves:
        for number in STOP:
            signal.signal(number, _end)
        signal.pthread_sigmask(signal.SIG_BLOCK, set(ORDERS) - set(STOP))
        ignore(IGNORED)
        # Whoever starts the first process of a container may block them until here.
        let_through(STOP)
        return
    if os.getpid() == _INIT:
        # To any other process the kernel does it.
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, _end_by)
    let_through(ORDERS)


def attend(numbers: Iterable[int]) -> None:
    """Have signals wake whoever hears them, and do nothing by themselves. They wait until
    `let_through` says that somebody does: one that came before would be lost."""
    numbers = tuple(numbers)
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    for number in numbers:
        # Not SIG_IGN, which would discard one that has been sent already.
        signal.signal(number, _pass)


def let_through(numbers: Iterable[int]) -> None:
    """Deliver signals from here on, those that wait among them."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)


def start_deaf(thread: threading.Thread) -> None:
    """Start a thread that hears no signal. The kernel hands one to any thread that does
    not block it: to one that `attend` was not called in, while nobody hears it yet."""
    # A thread begins with the mask of the one that starts it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        thread.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore(numbers: Iterable[int]) -> None:
    """Let signals do nothing at all."""
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)


def forget_orphans() -> int:
    """Forget children that have ended: of a process that starts none they are others',
    which it was given with their parent's end; returns how many."""
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
    """The terminal that a program was started from, if it was.

    SIGHUP comes from an operator, or from the kernel as the terminal is closed. Then
    nobody is there any more to stop the program, unless ``nohup`` has asked to leave it
    be.
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

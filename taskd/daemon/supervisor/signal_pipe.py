"""A pipe of signals, which a selector can watch."""

from __future__ import annotations

import selectors
import signal
import socket

from taskd.runtime import signals

SIGNALS = signals.HEARD
"""Signals that the supervisor handles; a worker handles them by itself."""


class SignalPipe:
    """Receives the numbers of `SIGNALS`, once it is open."""

    def __init__(self) -> None:
        self._out, self._in = socket.socketpair()
        self._out.settimeout(0)
        self._in.settimeout(0)

    def open(self, selector: selectors.BaseSelector) -> None:
        """Handle the signals, and have their arrival watched."""
        signals.ignore(signals.IGNORED)
        # Python writes the number to the other end.
        signals.attend(SIGNALS)
        signal.set_wakeup_fd(self._in.fileno(), warn_on_full_buffer=False)
        selector.register(self._out, selectors.EVENT_READ, self)
        signals.let_through(SIGNALS)

    def take(self) -> list[signal.Signals]:
        """Return the signals that came."""
        return [signal.Signals(number) for number in self._out.recv(1024)]

    def close(self) -> None:
        """Close both ends, once nothing writes to them any more."""
        self._out.close()
        self._in.close()


def forget_signals() -> None:
    """Have signals do what they do by default."""
    signal.set_wakeup_fd(-1)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def ignore_signals() -> None:
    """Let no signal after the drain change the exit code."""
    signal.set_wakeup_fd(-1)
    signals.ignore(signals.ORDERS)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)

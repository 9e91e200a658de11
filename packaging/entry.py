"""Where the single executable starts.

PyInstaller's bootloader unpacks the executable into a temporary folder and runs
this in a child process; until the child ends, the bootloader waits, and passes
on the signals that it gets.
"""

import ctypes
import os
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1


def follow_the_bootloader() -> None:
    """Be one process to whoever started the executable.

    ``kill -9`` can't be passed on, so the kernel is asked to end this process
    with its parent: a supervisor that kills what it started must not leave a
    daemon behind that holds the store.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if "serve" in sys.argv[1:] and os.getpgrp() != os.getpid():
        # A Ctrl-C reaches the whole foreground group and would be passed on by
        # the bootloader besides: two signals, and the second means "at once".
        os.setsid()


follow_the_bootloader()
# The time zones are one file instead of 600: see taskd.spec.
sys.path.append(str(Path(__file__).with_name("tzdata.zip")))

from taskd.cli import main  # noqa: E402 (the bootloader may be killed at any moment)

main()

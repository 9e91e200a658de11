"""The start of the ``taskd`` command, and of ``python -m taskd``."""

import io
import os
import sys

from taskd.runtime import signals


def main() -> None:
    """Run the ``taskd`` command and exit."""
    serves = signals.serves(sys.argv[1:])
    signals.guard(serves=serves)
    # The imports from here on take a while, in which a signal may come.
    _open_closed_streams()
    _bear_any_encoding()
    if serves and os.environ.get("TASKD_LOG_FORMAT") == "json":
        _import_in_json()
    from taskd.cli import cli  # noqa: PLC0415 - see above

    cli(prog_name="taskd")


def _open_closed_streams() -> None:
    """Open closed standard streams, as some service managers leave them: the next file or
    socket would otherwise take their place, and get the program's output."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # It gets the lowest free number, which is the closed stream's own.
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115, PTH123 - open to the end; pathlib takes 20 ms


def _bear_any_encoding() -> None:
    """Have standard streams escape characters that their encoding can't carry."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _import_in_json() -> None:
    """Import the command's parts, and log a warning or a failure as JSON."""
    import logging  # noqa: PLC0415 - see `main`

    from taskd.runtime.logs import (  # noqa: PLC0415 - see `main`
        DirectHandler,
        log_event,
        logging_by,
    )

    with logging_by(DirectHandler(sys.stderr), style="json"):
        try:
            import taskd.cli  # noqa: F401, PLC0415 - see `main`
        except Exception as error:  # noqa: BLE001 - whatever it is, it is logged
            log_event(
                logging.getLogger("taskd.cli"), logging.CRITICAL, "taskd is not whole", error=error
            )
            sys.exit(1)


if __name__ == "__main__":
    main()

"""Where the ``taskd`` command starts, ``python -m taskd`` too."""

import sys

from taskd import signals


def main() -> None:
    """Run the ``taskd`` command and exit."""
    signals.guard(serves=signals.serves(sys.argv[1:]))
    # What this imports takes a while, in which a signal may come.
    from taskd import cli  # noqa: PLC0415 - see above

    cli.main()


if __name__ == "__main__":
    main()

"""Writes lines to standard error: each whole, or not at all."""

from __future__ import annotations

import io
import os
import select
from select import PIPE_BUF
from typing import TextIO

_GLANCE_MS = 500


class Output:
    """A stream that takes lines.

    If it has a descriptor, lines are written to that: Python's stream would keep bytes that it
    could not write, and write them in the middle of another line, or fail with them at the very
    end of the program.

    Args:
        stream: usually standard error.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._rest = b""
        """The bytes left of a line of which only a part was taken."""
        try:
            self._fd: int | None = stream.fileno()
        except (OSError, ValueError, AttributeError, io.UnsupportedOperation):
            self._fd = None
        self.encoding = getattr(stream, "encoding", None) or "utf-8"

    @property
    def unicode(self) -> bool:
        """Whether its encoding is UTF-8."""
        return self.encoding.lower().replace("_", "-") in {"utf-8", "utf8"}

    def takes_more(self) -> bool:
        """Whether it would take a line now, of `PIPE_BUF` bytes at most."""
        if self._fd is None:
            return True
        look = select.poll()
        look.register(self._fd, select.POLLOUT)
        return any(event & select.POLLOUT for _, event in look.poll(0))

    def write(self, lines: list[str]) -> int:
        """Write lines, however long the stream takes. Returns how many it has taken: all,
        unless it failed. The rest of a line that was taken in part goes before the next."""
        data = [self._encoded(line) for line in lines]
        if self._fd is None:
            return self._write_text(lines)
        if self._rest:
            self._rest = self._rest[self._put(self._fd, self._rest) :]
            if self._rest:
                return 0
        taken = 0
        for portion in _portions(data):
            whole = b"".join(portion)
            written = self._put(self._fd, whole)
            if written == len(whole):
                taken += len(portion)
                continue
            for line in portion:
                if not written:
                    break
                taken += 1
                if written < len(line):
                    self._rest = line[written:]
                written = max(written - len(line), 0)
            break
        return taken

    def _encoded(self, line: str) -> bytes:
        return line.encode(self.encoding, "backslashreplace") + b"\n"

    def _write_text(self, lines: list[str]) -> int:
        try:
            self._stream.write("".join(f"{line}\n" for line in lines))
            self._stream.flush()
        except (OSError, ValueError):
            return 0
        return len(lines)

    def _put(self, fd: int, data: bytes) -> int:
        """Write bytes; returns how many were taken: all, unless the write failed."""
        done = 0
        try:
            while done < len(data):
                try:
                    done += os.write(fd, data[done:])
                except BlockingIOError:  # another process that has it made it non-blocking
                    look = select.poll()
                    look.register(fd, select.POLLOUT)
                    look.poll(_GLANCE_MS)
        except OSError:
            pass  # full or closed: the caller counts the lines, and logs their number later
        return done


def _portions(lines: list[bytes]) -> list[list[bytes]]:
    """Return the lines in portions that a pipe takes as a whole, so that lines of several
    processes on one pipe do not mix."""
    portions: list[list[bytes]] = []
    size = PIPE_BUF
    for line in lines:
        if size + len(line) > PIPE_BUF:
            portions.append([])
            size = 0
        portions[-1].append(line)
        size += len(line)
    return portions

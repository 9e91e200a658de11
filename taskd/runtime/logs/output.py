"""Standard error as lines go to it: whole, or not at all."""

from __future__ import annotations

import io
import os
import select
from select import PIPE_BUF
from typing import TextIO

_GLANCE_MS = 500


class Output:
    """A stream that takes lines.

    Where it has a descriptor, that is written to: what a stream of Python's could not
    write it keeps, and would write in the middle of something else, or fail with at the
    very end of the program.

    Args:
        stream: usually standard error.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._rest = b""
        """Of a line of which only a part was taken."""
        try:
            self._fd: int | None = stream.fileno()
        except (OSError, ValueError, AttributeError, io.UnsupportedOperation):
            self._fd = None
        self.encoding = getattr(stream, "encoding", None) or "utf-8"

    @property
    def unicode(self) -> bool:
        """Whether it speaks UTF-8."""
        return self.encoding.lower().replace("_", "-") in {"utf-8", "utf8"}

    def takes_more(self) -> bool:
        """Whether it would take a line now, of `PIPE_BUF` bytes at most."""
        if self._fd is None:
            return True
        look = select.poll()
        look.register(self._fd, select.POLLOUT)
        return any(event & select.POLLOUT for _, event in look.poll(0))

    def write(self, lines: list[str]) -> int:
        """Write lines, however long the stream takes; returns how many it has taken, all
        unless it failed. Of one that it took a part of, the rest comes with the next."""
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
        """Write bytes; returns how many were taken, all unless it failed."""
        done = 0
        try:
            while done < len(data):
                try:
                    done += os.write(fd, data[done:])
                except BlockingIOError:  # whoever shares it has made it so
                    look = select.poll()
                    look.register(fd, select.POLLOUT)
                    look.poll(_GLANCE_MS)
        except OSError:
            pass  # full, or gone: the caller counts, and tells once it is well again
        return done


def _portions(lines: list[bytes]) -> list[list[bytes]]:
    """Lines in portions that a pipe takes as a whole, so that those of processes that
    write to the same one do not end up within each other."""
    portions: list[list[bytes]] = []
    size = PIPE_BUF
    for line in lines:
        if size + len(line) > PIPE_BUF:
            portions.append([])
            size = 0
        portions[-1].append(line)
        size += len(line)
    return portions

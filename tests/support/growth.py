"""Finds what costs more than its length, by doubling the length."""

from __future__ import annotations

import ctypes
import gc
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

Read = Callable[[bytes], object]
Make = Callable[[int], bytes]

_SMALLEST = 512
_TELLING_S = 0.004
"""What takes less is harmless, and may be the clock's or a cache's."""

_STEEP = 2.6
"""By how much time has to grow, three times in a row, where the length doubles. A straight
line grows by 2, a square by 4; caches and memory make a line jump once or twice, not more
often."""

_EVEN = 2.5
"""By how much the largest of these growths may differ from the least. A power's are alike; the
jump of a line is among others that are none."""

_ROUNDS = 6

_LEAP = 16
_SLACK = 1.5
"""How far from a straight line time may be after a leap before every doubling is looked
at."""


class Measured:
    """How long a reader takes for inputs of one shape.

    Args:
        read: what it refuses, by whatever exception but one of the interpreter's own
            limits, it has read as well.
        make: an input of about so many bytes.
    """

    def __init__(self, read: Read, make: Make) -> None:
        self._read = read
        self._make = make
        self._best_s: dict[int, float] = {}

    def again(self, size: int) -> float:
        """The shortest time so far, this one included, in seconds of CPU."""
        data = self._make(size)
        began = time.thread_time()
        try:
            self._read(data)
        except RecursionError as error:
            raise AssertionError(f"the interpreter's limit judges {data[:40]!r}…") from error
        except Exception:  # noqa: BLE001 - refused, which is as good
            pass
        took = time.thread_time() - began
        self._best_s[size] = best = min(took, self._best_s.get(size, took))
        return best

    def steep(self, sizes: Sequence[int]) -> bool:
        """Whether time has grown too much from each size to the next."""
        times = [self._best_s[size] for size in sizes]
        growths = [after / max(before, 1e-9) for before, after in itertools.pairwise(times)]
        return min(growths) > _STEEP and max(growths) < _EVEN * min(growths)


_TRIM_THRESHOLD = -1
_MMAP_THRESHOLD = -3
_KEPT_BYTES = 1 << 29


@contextmanager
def no_memory_work() -> Iterator[None]:
    """Keeps the memory's work from being measured: that of the garbage collector, which
    depends on all that there is, and that of the system where glibc gives large blocks back
    and takes new ones, which comes with a certain length."""
    for parameter in (_MMAP_THRESHOLD, _TRIM_THRESHOLD):  # of malloc.h
        if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
            mallopt(parameter, _KEPT_BYTES)
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def check_growth(read: Read, make: Make, largest: int) -> None:
    """Make sure that a reader's time grows as a straight line does, up to the largest
    input. What would take hours is found with short ones."""
    measured = Measured(read, make)
    small = largest // _LEAP
    _check_doublings(measured, list(_doublings(small)), largest)
    before = measured.again(small)
    if measured.again(largest) > max(_TELLING_S, _SLACK * _LEAP * before):
        _check_doublings(measured, [size for size in _doublings(largest) if size >= small], largest)


def _check_doublings(measured: Measured, sizes: list[int], largest: int) -> None:
    for at, size in enumerate(sizes):
        if measured.again(size) < _TELLING_S or at < 2:
            continue
        last = sizes[at - 2 : at + 1]
        if not measured.steep(last):
            continue
        # What is longer than the largest may be read in another way.
        last = [*last, 2 * size] if 2 * size <= largest else [last[0] // 2, *last]
        for _ in range(_ROUNDS):
            for each in last:
                measured.again(each)
            if not measured.steep(last):
                break
        else:
            told = ", ".join(f"{each} B {measured.again(each) * 1000:.2f} ms" for each in last)
            raise AssertionError(f"it costs more than its length: {told}")


def _doublings(largest: int) -> Iterator[int]:
    """Sizes that double, up to the largest."""
    times = max(0, (largest // _SMALLEST).bit_length() - 1)
    return (largest >> halvings for halvings in range(times, -1, -1))


def repeated(before: bytes, unit: bytes, after: bytes) -> Make:
    """Inputs that repeat something."""

    def make(size: int) -> bytes:
        return before + unit * (size // len(unit)) + after

    return make


def numbered(before: bytes, unit: str, after: bytes) -> Make:
    """Inputs that repeat something with a number in it, ``#``, that is another each
    time."""

    def make(size: int) -> bytes:
        parts: list[bytes] = []
        left = size
        for number in itertools.count():
            if left <= 0:
                return before + b"".join(parts) + after
            parts.append(unit.replace("#", str(number)).encode())
            left -= len(parts[-1])
        raise AssertionError

    return make


def in_pieces(data: bytes, size: int = 1) -> Iterator[bytes]:
    """The data as segments of a stream bring it."""
    return (data[at : at + size] for at in range(0, len(data), size))

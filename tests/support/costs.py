"""What is known of a parser of bytes from outside, to hold it to a straight line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.support.growth import Make, Read, check_growth, in_pieces, no_memory_work, repeated

KIB = 1024
MIB = 1024 * KIB

OF_JSON = (
    *(b'"', b"\\", b'\\"', b"[", b"]", b"[],", b'{"a":', b",", b":", b"-", b" ", b"\n", b"0", b"1"),
    *(b"1.5,", b"1e9,", b"1,", b"a", b"\xff", "名".encode(), b"\\u0000", b"\\ud800", b"\\u0061"),
)
OF_ALL = (
    *OF_JSON,
    *(b"'", b";", b"=", b"&", b"a=1&", b"%", b"%41", b"+", b".", b"a.", b"/", b"@", b"#", b"?"),
    *(b"\t", b"\r\n", b"\0", b"a ", b"a: a\r\n", b"1\r\na\r\n", b"$1\r\na\r\n", b"*1\r\n"),
)
"""What is repeated, wherever a reader's shapes let it stand."""

OF_STREAMS = (
    *(b"a", b" ", b"\t", b":", b",", b";", b"0", b"\n", b"\r\n", b"a ", b"a: a\r\n", b"\xff"),
    *(b"1\r\na\r\n", b"$1\r\na\r\n", b"*1\r\n", b"+a\r\n", b"[", b'"'),
)
"""The same, for what is read byte by byte."""

Around = tuple[bytes, bytes]
BARE: tuple[Around, ...] = ((b"", b""),)


@dataclass(frozen=True)
class Reader:
    """A parser of what comes from outside."""

    read: Read
    largest: int
    around: tuple[Around, ...] = BARE
    """What comes before and after what is repeated."""
    more: tuple[Make, ...] = ()
    """Shapes of its own."""
    units: tuple[bytes, ...] = OF_ALL
    """What is repeated."""

    def shapes(self) -> Iterator[Make]:
        for before, after in self.around:
            for unit in self.units:
                yield repeated(before, unit, after)
        yield from self.more


def text(read: Callable[[str], object]) -> Read:
    """A reader of what was decoded elsewhere."""
    return lambda data: read(data.decode("latin-1"))


IN_BODY = (
    *((b'{"a":', b"}"), (b'{"a":"', b'"}'), (b'{"a":"', b""), (b'{"a":[', b"1]}")),
    *((b'{"a":' + b"[" * 65 + b'"', b""), (b'{"a":"\\u0000","b":[', b"1]}")),
)
"""What stands around it in a JSON text."""


class Segments:
    """A stream of short segments, to whoever reads from it."""

    def __init__(self, data: bytes, size: int) -> None:
        self._pieces = in_pieces(data, size)

    async def receive(self) -> bytes:
        return next(self._pieces, b"")

    async def receive_some(self, _most: int) -> bytes:
        return next(self._pieces, b"")

    def recv(self, _most: int) -> bytes:
        return next(self._pieces, b"")


def check_costs(reader: Reader) -> None:
    """Make sure that no shape of input costs a reader more than its length."""
    with no_memory_work():
        for make in reader.shapes():
            check_growth(reader.read, make, reader.largest)

"""Puts the launcher and what it unpacks into one file: see launcher.c.

Called as ``bundle.py LAUNCHER FOLDER EXECUTABLE``.
"""

import hashlib
import stat
import struct
import sys
import zlib
from pathlib import Path

MAGIC = b"taskd-bundle-1\n\0"
DIGEST = 32
_ENTRY = struct.Struct("<QIIIIII")
_TRAILER = struct.Struct(f"<16sQQQII{DIGEST}s")


def entries(folder: Path) -> list[tuple[str, int, bytes]]:
    """Name, mode and bytes of all that is in a folder, a folder before what is in it."""
    found = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found.append((name, stat.S_IFLNK | 0o777, str(path.readlink()).encode()))
        elif path.is_dir():
            found.append((name, stat.S_IFDIR | 0o700, b""))
        else:
            mode = 0o700 if path.stat().st_mode & stat.S_IXUSR else 0o600
            found.append((name, stat.S_IFREG | mode, path.read_bytes()))
    return found


def bundle(launcher: bytes, folder: Path) -> bytes:
    """The one file."""
    out, index, names = bytearray(launcher), bytearray(), bytearray()
    digest = hashlib.sha256()
    for name, mode, data in entries(folder):
        deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
        packed = deflate.compress(data) + deflate.flush()
        index += _ENTRY.pack(
            len(out), len(packed), len(data), zlib.crc32(data), mode, len(names), 0
        )
        digest.update(_ENTRY.pack(0, 0, len(data), 0, mode, len(name), 0) + name.encode() + data)
        names += name.encode() + b"\0"
        out += packed
    at = len(out)
    out += index + names
    trailer = _TRAILER.pack(
        MAGIC,
        at,
        at + len(index),
        len(out),
        len(index) // _ENTRY.size,
        zlib.crc32(index + names),
        digest.hexdigest()[:DIGEST].encode(),
    )
    return bytes(out + trailer)


def main() -> None:
    """Write the executable, in one step: a build that was interrupted leaves none."""
    launcher, folder, executable = (Path(argument) for argument in sys.argv[1:])
    fresh = executable.with_name(f"{executable.name}.new")
    fresh.write_bytes(bundle(launcher.read_bytes(), folder))
    fresh.chmod(0o755)
    fresh.replace(executable)


if __name__ == "__main__":
    main()

"""The URL of the store: a SQLite file, or a cluster's database.

A SQLite URL is ``sqlite:///`` and a path: relative to the config file's folder, or
absolute with a fourth slash. People forget that slash, or write a path as a shell, a
browser or Windows takes it. A URL that can be read in two ways is refused, and the
message names both: otherwise a second database could be made at an unexpected place.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from taskd.config.kinds import AdapterUrl, shown, without_password

_PREFIX = "sqlite:///"
_OTHER_FORM = re.compile(r"sqlite3?(?:\+[a-z0-9]+)?:(/*)(.*)", re.IGNORECASE)
"""URLs as other programs take them: with another number of slashes, or another scheme."""
_ABSOLUTE = frozenset({1, 4})
"""The numbers of slashes with which such a URL's path is absolute."""

_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f?#]")
_ESCAPE = re.compile(r"%[0-9A-Fa-f]{2}")
_WINDOWS = re.compile(r"/*[A-Za-z]:[/\\]|.*\\")
_UNEXPANDED = re.compile(r"/*(?:~|\$)")


@dataclass(frozen=True, slots=True)
class StoreUrl(AdapterUrl):
    """The kind of ``[store] url``."""

    def parse(self, value: object, folder: Path) -> str:
        """See `Kind.parse`. The path of a SQLite file becomes absolute."""
        if isinstance(value, str) and value.startswith(_PREFIX):
            return f"{_PREFIX}{self._file(value, folder)}"
        if isinstance(value, str) and (path := _path_in(value)):
            raise self._refusal(value, f"write {_both(path)}")
        return AdapterUrl.parse(self, value, folder)

    def _file(self, url: str, folder: Path) -> Path:
        path = url.removeprefix(_PREFIX)
        name = path.rpartition("/")[2]
        if _FORBIDDEN.search(path) or name in {"", ".", ".."} or path.startswith(":memory:"):
            raise self._refusal(url, "it has to name a file, and nothing behind it")
        if path != path.strip():
            raise self._refusal(url, "there is white space at an end of it")
        if _WINDOWS.match(path):
            raise self._refusal(url, "a path of Windows names no file here")
        if _UNEXPANDED.match(path):
            raise self._refusal(
                url, f'nothing expands "{path.lstrip("/")[0]}" here, so write the path in full'
            )
        if _ESCAPE.search(path):
            raise self._refusal(url, f"percent signs are not decoded: write {_both(unquote(path))}")
        if path.startswith("/"):
            return Path("/" + path.lstrip("/"))
        file = folder / path
        if _may_be_meant_absolute(path, folder):
            raise self._refusal(
                url,
                f'write "{_PREFIX}/{path}" for /{path}, or "{_PREFIX}./{path}" for {file}',
            )
        return file

    def _refusal(self, url: str, why: str) -> ValueError:
        return ValueError(f"must be {self.meaning}, got {shown(without_password(url))}: {why}")


def _path_in(text: str) -> str | None:
    """The path in a URL of another form; None if it does not look like a path."""
    if other := _OTHER_FORM.fullmatch(text):
        slashes, path = other.groups()
        path = "/" + path if len(slashes) in _ABSOLUTE else path
    else:
        path = text
    looks_well = re.fullmatch(r"[^:@?#\x00-\x1f]*[^:@?#\x00-\x1f/]", path)
    return path if looks_well else None


def _may_be_meant_absolute(path: str, folder: Path) -> bool:
    """Whether a slash was probably forgotten: the relative path's folder does not exist,
    but the path's first folder exists in /."""
    first = path.partition("/")[0]
    file = folder / path
    return (
        first not in {".", "..", path}
        and file != Path("/", path)
        and not _exists(file.parent)
        and _exists(Path("/", first))
    )


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False  # a folder that this user may not look into is hardly meant


def _both(path: str) -> str:
    if path.startswith("/"):
        return f'"{_PREFIX}{path}"'
    return (
        f'"{_PREFIX}{path}" for a path in the config file\'s folder, '
        f'or "{_PREFIX}/{path}" for an absolute one'
    )

"""The kinds of values that settings have: how each is read and checked.

A kind turns a TOML value, or the text of an environment variable, into the
value that the program uses. For a bad value it raises `ValueError`, with a message that
follows the setting's name: ``must be …, got …``.
"""

from __future__ import annotations

import ipaddress
import json
import math
import re
import zoneinfo
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from taskd.runtime.proxy_url import parse_proxy

_SHOWN = 60


class Kind(Protocol):
    """How the values of one setting are read."""

    @property
    def meaning(self) -> str:
        """What a value must be, as error messages and the reference page say it."""
        ...

    def from_text(self, text: str) -> object:
        """The text of an environment variable as a TOML value."""
        ...

    def parse(self, value: object, folder: Path) -> object:
        """The setting's value; paths are taken relative to ``folder``.

        Raises:
            ValueError: the value is refused; the message lacks the setting's name.
        """
        ...


def shown(value: object) -> str:
    """A value as an error message shows it: short, on one line."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


@dataclass(frozen=True, slots=True)
class Integer:
    """An integer in a range, both ends included; never a boolean."""

    low: int
    high: int
    unit: str = ""

    @property
    def meaning(self) -> str:
        """See `Kind.meaning`."""
        return f"an integer{self.unit and f' number of {self.unit}'} from {self.low} to {self.high}"

    def from_text(self, text: str) -> object:
        """Plain ASCII digits become an integer, other text stays text."""
        return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else text

    def parse(self, value: object, folder: Path) -> int:  # noqa: ARG002 - no path
        """See `Kind.parse`."""
        if type(value) is not int or not self.low <= value <= self.high:
            raise ValueError(f"must be {self.meaning}, got {shown(value)}")
        return value


@dataclass(frozen=True, slots=True)
class Number:
    """A finite number in a range, both ends included."""

    low: int
    high: int
    unit: str

    @property
    def meaning(self) -> str:
        """See `Kind.meaning`."""
        return f"a number of {self.unit} from {self.low} to {self.high}"

    def from_text(self, text: str) -> object:
        """Plain decimal notation becomes a number, other text stays text."""
        return float(text) if re.fullmatch(r"-?[0-9]{1,9}(\.[0-9]{1,6})?", text) else text

    def parse(self, value: object, folder: Path) -> float:  # noqa: ARG002 - no path
        """See `Kind.parse`."""
        if type(value) not in {int, float}:
            raise ValueError(f"must be {self.meaning}, got {shown(value)}")
        number = float(value)  # type: ignore[arg-type]  # the line above made sure
        if not math.isfinite(number) or not self.low <= number <= self.high:
            raise ValueError(f"must be {self.meaning}, got {shown(value)}")
        return number


@dataclass(frozen=True, slots=True)
class Boolean:
    """``true`` or ``false``."""

    meaning: str = "true or false"

    def from_text(self, text: str) -> object:
        """``true`` and ``false`` in any case, and ``1`` and ``0``."""
        return {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)

    def parse(self, value: object, folder: Path) -> bool:  # noqa: ARG002 - no path
        """See `Kind.parse`."""
        if not isinstance(value, bool):
            # No `bool(value)`: the TOML string "false" would be true.
            raise ValueError(f"must be {self.meaning}, got {shown(value)}")  # noqa: TRY004
        return value


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a few words."""

    words: tuple[str, ...]

    @property
    def meaning(self) -> str:
        """See `Kind.meaning`."""
        return " or ".join(f'"{word}"' for word in self.words)

    def from_text(self, text: str) -> object:
        """The text itself."""
        return text

    def parse(self, value: object, folder: Path) -> str:  # noqa: ARG002 - no path
        """See `Kind.parse`."""
        if not isinstance(value, str) or value not in self.words:
            raise ValueError(f"must be {self.meaning}, got {shown(value)}")
        return value


@dataclass(frozen=True, slots=True)
class Text:
    """A string that matches a pattern."""

    meaning: str
    pattern: str

    def from_text(self, text: str) -> object:
        """The text itself."""
        return text

    def parse(self, value: object, folder: Path) -> str:  # noqa: ARG002 - no path
        """See `Kind.parse`."""
        if not isinstance(value, str) or not re.fullmatch(self.pattern, value):
            raise ValueError(f"must be {self.meaning}, got {shown(value)}")
        return value


@dataclass(frozen=True, slots=True)
class Secret:
    """A secret string; no message ever repeats it."""

    shortest: int

    @property
    def meaning(self) -> str:
        """See `Kind.meaning`."""
        return f"a string of at least {self.shortest} characters, on one line"

    def from_text(self, text: str) -> object:
        """The text itself."""
        return text

    def parse(self, value: object, folder: Path) -> str:  # noqa: ARG002 - no path
        """See `Kind.parse`."""
        if not isinstance(value, str):
            # One error type for every refusal, so that callers have one to catch.
            raise ValueError(f"must be {self.meaning}, got no string")  # noqa: TRY004
        if len(value) < self.shortest:
            raise ValueError(f"must be {self.meaning}, has {len(value)}")
        if not value.isprintable():
            raise ValueError(f"must be {self.meaning}, got one with control characters")
        return value


@dataclass(frozen=True, slots=True)
class FilePath:
    """A path, relative to the config file's folder; an empty text means none."""

    meaning: str = "a path, relative to the config file's folder"

    def from_text(self, text: str) -> object:
        """The text itself."""
        return text

    def parse(self, value: object, folder: Path) -> Path | None:
        """See `Kind.parse`."""
        if not isinstance(value, str) or "\0" in value:
            raise ValueError(f"must be {self.meaning}, got {shown(value)}")
        return folder / value if value else None


@dataclass(frozen=True, slots=True)
class Timezone:
    """The name of a zone that this machine knows."""

    meaning: str = 'the name of a timezone, such as "UTC" or "Asia/Shanghai"'

    def from_text(self, text: str) -> object:
        """The text itself."""
        return text

    def parse(self, value: object, folder: Path) -> str:  # noqa: ARG002 - no path
        """See `Kind.parse`."""
        if isinstance(value, str):
            try:
                return zoneinfo.ZoneInfo(value).key
            except (KeyError, ValueError, OSError):
                pass  # an unknown zone, a path, a folder of zones: refused below
        raise ValueError(f"must be {self.meaning}, got {shown(value)}")


@dataclass(frozen=True, slots=True)
class Networks:
    """A list of networks in CIDR notation, in normal form."""

    meaning: str = 'a list of networks such as ["10.0.0.0/8", "fd00::/8"]'

    def from_text(self, text: str) -> object:
        """Networks separated by commas; an empty text is an empty list."""
        return [part.strip() for part in text.split(",")] if text.strip() else []

    def parse(self, value: object, folder: Path) -> tuple[str, ...]:  # noqa: ARG002 - no path
        """See `Kind.parse`."""
        if not isinstance(value, list):
            # One error type for every refusal, so that callers have one to catch.
            raise ValueError(f"must be {self.meaning}, got {shown(value)}")  # noqa: TRY004
        networks = []
        for item in value:
            if not isinstance(item, str):
                raise ValueError(f"must be {self.meaning}, got {shown(value)}")  # noqa: TRY004
            try:
                networks.append(str(ipaddress.ip_network(item)))
            except ValueError as error:
                raise ValueError(f"must be {self.meaning}: {error}") from error
        return tuple(networks)


@dataclass(frozen=True, slots=True)
class AdapterUrl:
    """A URL that chooses one of a port's adapters. An adapter for clusters reads all but
    the scheme itself."""

    meaning: str
    pattern: str
    """The pattern of URLs that choose the adapter for a daemon that is alone."""
    cluster: str
    """The scheme of URLs that choose the adapter for clusters."""

    def from_text(self, text: str) -> object:
        """The text itself."""
        return text

    def parse(self, value: object, folder: Path) -> str:  # noqa: ARG002 - no path
        """See `Kind.parse`. A URL may hold a password, which no message repeats."""
        if isinstance(value, str) and re.fullmatch(rf"{self.cluster}://[!-~]+", value):
            return value
        if not isinstance(value, str) or not re.fullmatch(self.pattern, value):
            told = without_password(value) if isinstance(value, str) else value
            raise ValueError(f"must be {self.meaning}, got {shown(told)}")
        return value


@dataclass(frozen=True, slots=True)
class ProxyUrl:
    """The URL of an HTTP proxy; an empty text means none."""

    meaning: str = '"http://HOST:PORT", or with "USER:PASSWORD@" before the host'

    def from_text(self, text: str) -> object:
        """The text itself."""
        return text

    def parse(self, value: object, folder: Path) -> str | None:  # noqa: ARG002 - no path
        """See `Kind.parse`. No message repeats a password."""
        if value == "":
            return None
        if isinstance(value, str):
            try:
                parse_proxy(value)
            except ValueError:
                raise ValueError(
                    f"must be {self.meaning}, got {shown(without_password(value))}"
                ) from None
            return value
        raise ValueError(f"must be {self.meaning}, got {shown(value)}")


def without_password(url: str) -> str:
    """A URL that may be shown: without the text before an @, and without the query, where
    an adapter may take a secret."""
    if url.startswith("sqlite:///"):
        return url
    # Even if a slash is missing: in any misspelling, the password stands before the @.
    return re.sub(r"^([^:@]*:(?://)?)?.*@", r"\1…@", url).partition("?")[0]

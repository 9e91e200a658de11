"""Merges a configuration that is read again into the running one; `Node.reconfigure` applies it.

New values of keys that are `Setting.live` count at once; those of other keys wait for a
restart. The result is the running configuration with the live keys of the one read.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import MappingProxyType

from taskd.config.render import toml_value
from taskd.config.sections import SECTIONS, Config, Setting, settings_of

_TLS = frozenset({"tls_cert", "tls_key"})


@dataclasses.dataclass(frozen=True, slots=True)
class Renewal:
    """The result of reading a configuration again."""

    config: Config
    """The configuration from now on."""
    changed: tuple[str, ...]
    """The keys whose values count now: ``log.level = "debug"``."""
    waiting: tuple[str, ...]
    """The keys whose new values need a restart: ``server.port``."""


def renewed(running: Config, read: Config) -> Renewal:
    """The running configuration with the live keys of the one read, and what changed."""
    sections: dict[str, object] = {}
    changed: list[str] = []
    waiting: list[str] = []
    for section in SECTIONS:
        old, new = getattr(running, section), getattr(read, section)
        taken: dict[str, object] = {}
        for key, setting in settings_of(section).items():
            value = getattr(new, key)
            if value == getattr(old, key):
                continue
            if not setting.live or _turns_tls(key, old=getattr(old, key), new=value):
                waiting.append(f"{section}.{key}")
                continue
            taken[key] = value
            changed.append(f"{section}.{key} = {_shown(setting, value)}")
        sections[section] = dataclasses.replace(old, **taken)
    config = dataclasses.replace(running, **sections, warnings=read.warnings, sources=read.sources)  # type: ignore[arg-type]  # sections by name
    return Renewal(config, tuple(changed), tuple(waiting))


def _turns_tls(key: str, *, old: object, new: object) -> bool:
    """Whether a new value turns TLS on or off: that waits for a restart, as it changes the
    daemon's URL."""
    return key in _TLS and (old is None) is not (new is None)


def _shown(setting: Setting, value: object) -> str:
    value = setting.shown(value)
    return toml_value("" if value is None else value)


def to_bytes(config: Config) -> bytes:
    """A configuration as bytes, for another process; secrets included."""
    values = {
        section: {
            key: str(value) if isinstance(value, Path) else value
            for key in settings_of(section)
            if (value := getattr(getattr(config, section), key)) is not None
        }
        for section in SECTIONS
    }
    return json.dumps(values).encode()


def from_bytes(data: bytes, running: Config) -> Config:
    """The configuration of bytes that `to_bytes` made.

    Args:
        data: the bytes.
        running: this process's configuration; its path and warnings stay.

    Raises:
        ValueError: a value in the bytes is refused.
    """
    sections: dict[str, object] = {}
    for section, values in json.loads(data).items():
        known = settings_of(section)
        sections[section] = SECTIONS[section](
            **{key: known[key].kind.parse(value, Path("/")) for key, value in values.items()}
        )
    return dataclasses.replace(running, **sections, sources=MappingProxyType({}))  # type: ignore[arg-type]  # sections by name

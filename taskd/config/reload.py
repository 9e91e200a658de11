"""A configuration that is read again while the daemon runs: what of it counts at once.

Keys that are `Setting.live` do; a new value of any other waits for a restart. So what
counts is the running configuration with the live keys of the one that was read.
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
    """What reading a configuration again has brought."""

    config: Config
    """What counts from now on."""
    changed: tuple[str, ...]
    """The keys whose values count now: ``log.level = "debug"``."""
    waiting: tuple[str, ...]
    """The keys whose new values need a restart: ``server.port``."""


def renewed(running: Config, read: Config) -> Renewal:
    """What of a configuration that was read counts, and what of it is new."""
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
    """Whether a key turns TLS on or off: the daemon's URL would be another."""
    return key in _TLS and (old is None) is not (new is None)


def _shown(setting: Setting, value: object) -> str:
    value = setting.shown(value)
    return toml_value("" if value is None else value)


def to_bytes(config: Config) -> bytes:
    """A configuration as one process hands it to another, secrets included."""
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
    """What `to_bytes` has made, in a process that has run with ``running``.

    Raises:
        ValueError: it is not.
    """
    sections: dict[str, object] = {}
    for section, values in json.loads(data).items():
        known = settings_of(section)
        sections[section] = SECTIONS[section](
            **{key: known[key].kind.parse(value, Path("/")) for key, value in values.items()}
        )
    return dataclasses.replace(running, **sections, sources=MappingProxyType({}))  # type: ignore[arg-type]  # sections by name

"""The user's file of application keys, so that ``task submit`` needs no flags.

The file has mode 0600 and is replaced as a whole, under a lock: neither a crash nor a
second ``app create`` at the same moment loses a key.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from taskd.config import load_toml, toml_string
from taskd.errors import ConfigError
from taskd.runtime.text import NotText, text_of

_HEADER = (
    "# Keys of the applications made with `taskd app create`, the newest last.\n"
    "# Whoever reads this file can submit and cancel their tasks.\n"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredApp:
    """An application's keys, and the daemon that knows them."""

    url: str
    name: str
    app_key: str
    secret_key: str = field(repr=False)


_KEYS = tuple(StoredApp.__dataclass_fields__)


def credentials_path(environ: Mapping[str, str]) -> Path:
    """``$TASKD_CREDENTIALS``, or ``taskd/credentials.toml`` in the user's config folder."""
    if named := environ.get("TASKD_CREDENTIALS"):
        return Path(named)
    base = environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "taskd" / "credentials.toml"


def read_apps(path: Path) -> list[StoredApp]:
    """The stored applications, the newest last; none if there is no file.

    Raises:
        ConfigError: the file can't be read or is not what `add_app` writes.
    """
    try:
        document = load_toml(text_of(path.read_bytes()))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except NotText as error:
        raise ConfigError(f"{path}: not a credentials file: it {error}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: not a credentials file: it is not valid TOML") from error
    entries = document.get("app", [])
    if not isinstance(entries, list):
        raise ConfigError(f"{path}: not a credentials file: app must be a list")
    return [_app_of(entry, path) for entry in entries]


def _app_of(entry: object, path: Path) -> StoredApp:
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in _KEYS):
        raise ConfigError(f"{path}: not a credentials file: an app needs {', '.join(_KEYS)}")
    return StoredApp(**{key: entry[key] for key in _KEYS})


def add_app(path: Path, app: StoredApp) -> None:
    """Add an application to the file, creating it and its folder if needed.

    Raises:
        ConfigError: the file is there and not one of these; it is left as it is.
        OSError: the file can't be written; it is left as it is.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(path):
        apps = [*read_apps(path), app]
        text = _HEADER + "".join(_entry(each) for each in apps)
        # mkstemp creates the file with mode 0600, before there is a byte in it.
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".credentials-")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink()
            raise


def _entry(app: StoredApp) -> str:
    lines = [f"{key} = {toml_string(getattr(app, key))}" for key in _KEYS]
    return "\n[[app]]\n" + "\n".join(lines) + "\n"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = path.with_name(f"{path.name}.lock")
    handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)

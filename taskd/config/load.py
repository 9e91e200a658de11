"""Reads a TOML file and the environment into a checked `Config`.

Precedence, highest first: command-line overrides, ``TASKD_SECTION_KEY``
variables, the file, the defaults.
"""

from __future__ import annotations

import dataclasses
import difflib
import ipaddress
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from taskd.config.sections import SECTIONS, Config, settings_of
from taskd.config.service_links import is_service_link
from taskd.config.toml import load_toml
from taskd.errors import ConfigError
from taskd.runtime.text import NotText, text_of

SYSTEM_PATH = Path("/etc/taskd/taskd.toml")
LOCAL_NAME = "taskd.toml"

RESERVED = frozenset(
    {
        "TASKD_CONFIG",
        "TASKD_URL",
        "TASKD_ADMIN_KEY",
        "TASKD_ADMIN_SECRET",
        "TASKD_APP_KEY",
        "TASKD_SECRET_KEY",
        "TASKD_CREDENTIALS",
        "TASKD_CACHE",
    }
)
"""Variables of the command line and of the single executable; they override no key."""

_PREFIX = "TASKD_"
_LONGEST_SECRET_FILE = 4096
_NEAR_VARIABLE = 0.9
"""How alike an unknown variable has to be to a known one to count as a misspelling of it.
High, since all begin alike."""


class _Given(NamedTuple):
    """A value as it was written, and where it was found."""

    value: object
    source: str


_Values = dict[tuple[str, str], _Given]


def find_config(path: Path | None, environ: Mapping[str, str]) -> Path | None:
    """The path of the config file to read, or None if there is none.

    Searched in this order: ``path``, ``$TASKD_CONFIG``, ``./taskd.toml``,
    ``/etc/taskd/taskd.toml``. The first two are returned without a look at the disk, the
    others only if the file exists.
    """
    if path is not None:
        return path
    if named := environ.get("TASKD_CONFIG"):
        return Path(named)
    for candidate in (Path(LOCAL_NAME), SYSTEM_PATH):
        try:
            candidate.stat()
        except OSError:
            continue  # not there, or in a folder that is closed to this user
        return candidate
    return None


def load_config(
    path: Path | None,
    environ: Mapping[str, str],
    *,
    overrides: Mapping[str, str] | None = None,
    again: bool = False,
) -> Config:
    """Read and check the configuration.

    Args:
        path: the file to read; None searches, see `find_config`.
        environ: the environment's variables.
        overrides: command-line values by option name, e.g. ``{"--port": "0"}``;
            the options are those of ``[server]``.
        again: the configuration was read before. Files that are pipes are refused then:
            their text can be read only once.

    Raises:
        ConfigError: one sentence that names the key and where its value came from.
    """
    found = find_config(path, environ)
    found = found and found.absolute()
    given = {} if found is None else _from_file(found, again=again)
    _replace(given, _from_environ(environ))
    _replace(given, _from_options(overrides or {}))
    folder = Path.cwd() if found is None else found.parent
    _refuse_both_secrets(given)
    sections = {name: _section(name, given, folder) for name in SECTIONS}
    config = Config(
        **sections,
        path=found,
        sources=MappingProxyType({f"{s}.{k}": g.source for (s, k), g in given.items()}),
    )
    config = _settle(config, again=again)
    warnings = (*_warnings(config), *_unclaimed(environ))
    return dataclasses.replace(config, warnings=warnings)


def _from_file(path: Path, *, again: bool) -> _Values:
    if again:
        _refuse_pipe("--config", path)
    try:
        text = text_of(path.read_bytes())
        document = load_toml(text.replace("\r\n", "\n").replace("\r", "\n"))
    except OSError as error:
        raise ConfigError(f"{path}: the config file cannot be read: {error.strerror}") from error
    except NotText as error:
        raise ConfigError(f"{path}: the config file {error}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    values: _Values = {}
    for section, table in document.items():
        if section not in SECTIONS and not isinstance(table, dict):
            raise ConfigError(f"{section}: must stand in a section{_home_of(section)} ({path})")
        if section not in SECTIONS:
            raise ConfigError(f"[{section}]: no such section{_section_instead(section)} ({path})")
        if not isinstance(table, dict):
            raise ConfigError(f"[{section}]: must be a table of settings ({path})")
        known = settings_of(section)
        for key, value in table.items():
            if key not in known:
                raise ConfigError(
                    f"[{section}] {key}: no such key{_key_instead(key, known)} ({path})"
                )
            values[section, key] = _Given(value, str(path))
    return values


def _from_environ(environ: Mapping[str, str]) -> _Values:
    values: _Values = {}
    for name, text in environ.items():
        if not name.startswith(_PREFIX) or name in RESERVED:
            continue
        section, _, key = name.removeprefix(_PREFIX).lower().partition("_")
        if section not in SECTIONS or not key or name != name.upper():
            continue  # another program's variable: ours name a section
        if is_service_link(name, text):
            continue
        known = settings_of(section)
        if key not in known:
            raise ConfigError(f"[{section}] {key}: no such key{_key_instead(key, known)} ({name})")
        values[section, key] = _Given(known[key].kind.from_text(text), name)
    return values


def _from_options(overrides: Mapping[str, str]) -> _Values:
    known = settings_of("server")
    return {
        ("server", option.removeprefix("--")): _Given(
            known[option.removeprefix("--")].kind.from_text(text), option
        )
        for option, text in overrides.items()
    }


_SECRETS = (("auth", "admin_secret"), ("auth", "admin_secret_file"))


def _replace(given: _Values, stronger: _Values) -> None:
    """Replace values by those of a source with higher precedence. The two ways to give
    the secret count as one key: a variable for either replaces both of the file."""
    if any(key in stronger for key in _SECRETS):
        for key in _SECRETS:
            given.pop(key, None)
    given.update(stronger)


def _refuse_both_secrets(given: _Values) -> None:
    if all(key in given for key in _SECRETS):
        raise ConfigError(
            "[auth] admin_secret: give either admin_secret or admin_secret_file, not both "
            f"({given[_SECRETS[0]].source})"
        )


def _section(name: str, given: _Values, folder: Path) -> Any:  # noqa: ANN401 - one of nine classes
    values: dict[str, object] = {}
    for key, setting in settings_of(name).items():
        if (name, key) not in given:
            continue
        value, source = given[name, key]
        try:
            values[key] = setting.kind.parse(value, folder)
        except ValueError as error:
            raise ConfigError(f"[{name}] {key}: {error} ({source})") from error
    section = SECTIONS[name](**values)
    if name == "store" and not section.on_server:  # the default path is relative too
        section = dataclasses.replace(section, url=f"sqlite:///{folder / section.path}")
    return section


def _settle(config: Config, *, again: bool) -> Config:
    """Refuse values that can't be combined, and fill in those that follow from others."""
    server, worker = config.server, config.worker
    _refuse_half_a_cluster(config)
    _refuse_half_a_pair("server", "tls_cert", "tls_key", config)
    _refuse_half_a_pair("delivery", "client_cert", "client_key", config)
    if worker.max_per_origin > worker.max_running:
        if "worker.max_per_origin" in config.sources:
            source = config.sources["worker.max_per_origin"]
            raise ConfigError(
                "[worker] max_per_origin: must not be more than max_running "
                f"({worker.max_running}), got {worker.max_per_origin} ({source})"
            )
        worker = dataclasses.replace(worker, max_per_origin=worker.max_running)
    for key, path in (
        ("[server] tls_cert", server.tls_cert),
        ("[server] tls_key", server.tls_key),
        ("[delivery] ca_file", config.delivery.ca_file),
        ("[delivery] client_cert", config.delivery.client_cert),
        ("[delivery] client_key", config.delivery.client_key),
    ):
        if path is not None:
            if again:
                _refuse_pipe(key, path)
            _check_readable(key, path)
    auth = config.auth
    if auth.admin_secret_file is not None:
        if again:
            _refuse_pipe("[auth] admin_secret_file", auth.admin_secret_file)
        secret = _read_secret(auth.admin_secret_file)
        auth = dataclasses.replace(auth, admin_secret=secret)
    return dataclasses.replace(config, worker=worker, auth=auth)


def refuse_unshared_bounds(config: Config) -> None:
    """Refuse bounds that are too low to be shared out among the worker processes. Only
    `taskd serve` and `taskd check-config` need this check.

    Raises:
        ConfigError: a bound is less than the number of workers.
    """
    workers = config.server.worker_count
    for key in ("max_running", "max_per_origin"):
        bound = getattr(config.worker, key)
        if bound < workers:
            source = config.sources.get(f"worker.{key}", "the default")
            raise ConfigError(
                f"[worker] {key}: must be at least [server] workers ({workers}), which share it, "
                f"got {bound} ({source})"
            )


def _refuse_half_a_cluster(config: Config) -> None:
    remote = [
        f"[{name}] url"
        for name, url in (("queue", config.queue.url), ("bus", config.bus.url))
        if url != "local:"
    ]
    if remote and not config.store.on_server:
        raise ConfigError(
            f"{remote[0]}: needs a mysql:// store; a SQLite file belongs to one daemon alone"
        )
    if config.store.on_server and config.bus.url == "local:":
        raise ConfigError(
            "[bus] url: must be a redis:// URL where [store] url is mysql://, so that the nodes "
            "reach each other"
        )


def _refuse_half_a_pair(section: str, cert: str, key: str, config: Config) -> None:
    """Refuse a certificate without its key, and the other way round."""
    given = getattr(config, section)
    if (getattr(given, cert) is None) != (getattr(given, key) is None):
        there, missing = (key, cert) if getattr(given, key) else (cert, key)
        raise ConfigError(f"[{section}] {missing}: is needed with {there}, and is not given")


def _refuse_pipe(key: str, path: Path) -> None:
    """Refuse a pipe: its text was read before, and reading again would wait for ever."""
    try:
        is_pipe = stat.S_ISFIFO(path.stat().st_mode)
    except OSError:
        return  # the attempt to read it reports the error
    if is_pipe:
        raise ConfigError(f"{key}: {path} is a pipe, which can be read once only")


def _check_readable(key: str, path: Path) -> None:
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise ConfigError(f"{key}: {path} cannot be read: {error.strerror}") from error


def _read_secret(path: Path) -> str:
    key = "[auth] admin_secret_file"
    try:
        with path.open("rb") as file:
            raw = file.read(_LONGEST_SECRET_FILE + 1)
        if len(raw) > _LONGEST_SECRET_FILE:  # the first part alone would be a wrong secret
            raise ConfigError(f"{key}: {path} is longer than {_LONGEST_SECRET_FILE} bytes")
        text = text_of(raw).rstrip("\r\n")
        return str(settings_of("auth")["admin_secret"].kind.parse(text, path.parent))
    except OSError as error:
        raise ConfigError(f"{key}: {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{key}: {path} {error}") from error


def _warnings(config: Config) -> Iterable[str]:
    held_by = config.auth.admin_secret_file
    if config.path is not None and config.sources.get("auth.admin_secret") == str(config.path):
        held_by = config.path
    if held_by is not None and _others_may_read(held_by):
        yield f"{held_by} holds the administrator's secret and others may read it: chmod 600 it"
    if config.auth.payload == "opaque":
        yield (
            '[auth] payload: "opaque" leaves request bodies unauthenticated; use it only '
            "until your clients send the digest"
        )
    if config.server.tls_cert is None and not _loopback(config.server.host):
        yield (
            f"[server] host: {config.server.host} is not loopback and there is no TLS, though "
            "requests do not sign their path: put a TLS proxy in front, or set tls_cert and tls_key"
        )


def _others_may_read(path: Path) -> bool:
    try:
        return bool(path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH))
    except OSError:
        return False  # the file is gone since it was read


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _home_of(key: str) -> str:
    homes = [f"[{section}] {key}" for section in SECTIONS if key in settings_of(section)]
    return f"; did you mean {' or '.join(homes)}?" if homes else ""


def _unclaimed(environ: Mapping[str, str]) -> Iterable[str]:
    """Warn of variables that look as if they set a key, and set none."""
    ours = [name for name in sorted(environ) if name.startswith(_PREFIX) and name == name.upper()]
    links = [name for name in ours if is_service_link(name, environ[name])]
    if links:
        yield (
            f"{', '.join(links)}: links to services, not keys, so they count for nothing; a pod "
            "with enableServiceLinks: false has none"
        )
    for name in ours:
        if name in RESERVED or name in links:
            continue
        section, _, key = name.removeprefix(_PREFIX).partition("_")
        if not (key and section.lower() in SECTIONS) and (meant := _variable_instead(name)):
            yield f"{name}: names no key, so it counts for nothing; did you mean {meant}?"


def _variable_instead(name: str) -> str:
    """The known variable that may be meant by one that names no section, or "": one whose
    key has this name, one that differs in underscores only, or a similar one."""
    keys = {
        f"{_PREFIX}{section}_{key}".upper(): key.upper()
        for section in SECTIONS
        for key in settings_of(section)
    }
    word = name.removeprefix(_PREFIX)
    # TASKD_ and TASKD_SERVER may be another program's variables.
    if not word or word.lower() in SECTIONS:
        return ""
    known = [*keys, *sorted(RESERVED)]
    at_home = [variable for variable, key in keys.items() if key == word]
    joined = [variable for variable in known if _joined(variable) == _joined(name)]
    near = difflib.get_close_matches(name, known, n=1, cutoff=_NEAR_VARIABLE)
    return (at_home or joined or near or [""])[0]


def _joined(name: str) -> str:
    return name.replace("_", "")


def _key_instead(key: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown key: which key may be meant."""
    return _nearest(key, known) or _home_of(key) or f"; there are {', '.join(known)}"


def _section_instead(section: str) -> str:
    return _nearest(section, SECTIONS) or f"; there are {', '.join(SECTIONS)}"


def _nearest(name: str, known: Iterable[str], cutoff: float = 0.7) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"; did you mean {near[0]}?" if near else ""

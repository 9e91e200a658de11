# ruff: noqa: RUF009 - `_key` calls `dataclasses.field`, once per field
"""The configuration as frozen values: one class per section, one field per key.

Each field carries its meaning and its kind. The loader and ``taskd.toml.example`` use
them; a test holds the reference page against them.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from taskd.config.kinds import (
    AdapterUrl,
    Boolean,
    Choice,
    FilePath,
    Integer,
    Kind,
    Networks,
    Number,
    ProxyUrl,
    Secret,
    Text,
    Timezone,
    without_password,
)
from taskd.config.store_url import StoreUrl

HEADER_TOKEN = r"[A-Za-z0-9_.-]{1,64}"  # noqa: S105 - a pattern, no secret
_STORE_PREFIX = "sqlite:///"
_WITH_PASSWORD = (AdapterUrl, ProxyUrl)


@dataclass(frozen=True, slots=True)
class Setting:
    """What is known of one key, besides its name and default."""

    kind: Kind
    doc: str
    """Its meaning, one sentence or two."""
    secret: bool = False
    live: bool = False
    """Whether a running daemon takes a new value on SIGHUP."""

    def shown(self, value: object) -> object:
        """A value that people may see: without secrets and passwords."""
        if self.secret and value is not None:
            return "(set)"
        if isinstance(self.kind, _WITH_PASSWORD) and isinstance(value, str):
            return without_password(value)
        return value


def _key(kind: Kind, default: object, doc: str, *, secret: bool = False, live: bool = False) -> Any:  # noqa: ANN401 - as above
    hidden = secret or isinstance(kind, _WITH_PASSWORD)
    setting = Setting(kind, doc, secret, live)
    return field(default=default, metadata={"setting": setting}, repr=not hidden)


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Where the API listens."""

    host: str = _key(
        Text("an address or a host name", r"[A-Za-z0-9._:%-]{1,255}"),
        "127.0.0.1",
        "Address that the API listens on. Off loopback, put TLS in front of it.",
    )
    port: int = _key(
        Integer(0, 65535), 9502, "Port that the API listens on; 0 lets the system choose one."
    )
    timezone: str = _key(
        Timezone(),
        "UTC",
        "Timezone of the times that clients send without an offset.",
    )
    max_body: int = _key(
        Integer(1024, 67_108_864, "bytes"),
        1_048_576,
        "Longest request body that is accepted.",
        live=True,
    )
    drain_timeout: float = _key(
        Number(0, 600, "seconds"),
        8.0,
        "How long attempts may go on after SIGTERM before they are cancelled; the end takes up to "
        "1.8 s more, and Docker waits 10 s for both.",
        live=True,
    )
    workers: int = _key(
        Integer(0, 64),
        1,
        "Processes that share the port and the SQLite file; 0 is one per core that may be used.",
    )
    tls_cert: Path | None = _key(
        FilePath(),
        None,
        "Certificate chain (PEM); with tls_key, the API speaks HTTPS.",
        live=True,
    )
    tls_key: Path | None = _key(FilePath(), None, "Private key (PEM) of tls_cert.", live=True)
    trusted_proxies: tuple[str, ...] = _key(
        Networks(),
        (),
        "Networks of proxies that clients come through: the bound on connections per address does "
        "not hold for them.",
        live=True,
    )

    @property
    def worker_count(self) -> int:
        """The number of worker processes: ``workers``, or one per core if that is 0."""
        return self.workers or len(os.sched_getaffinity(0))


@dataclass(frozen=True, kw_only=True)
class AuthConfig:
    """Who may call the API."""

    admin_key: str = _key(
        Text("1 to 64 letters, digits, dots, hyphens or underscores", HEADER_TOKEN),
        "admin",
        "The administrator's app_key.",
        live=True,
    )
    admin_secret: str | None = _key(
        Secret(16),
        None,
        "The administrator's secret key; without one, the administrator's endpoints are closed.",
        secret=True,
        live=True,
    )
    admin_secret_file: Path | None = _key(
        FilePath(), None, "A file that holds admin_secret, instead of admin_secret.", live=True
    )
    window: int = _key(
        Integer(1, 86_400, "seconds"),
        300,
        "How far a request's timestamp may be from the clock, either way.",
    )
    payload: Literal["digest", "opaque"] = _key(
        Choice(("digest", "opaque")),
        "digest",
        '"digest" checks the signed payload against the body; "opaque" does not, for old '
        "clients that send any string there.",
    )
    open_registration: bool = _key(
        Boolean(),
        default=False,
        doc="Lets anyone create an application, unsigned; callbacks reach public addresses of "
        "others only.",
    )


@dataclass(frozen=True, kw_only=True)
class StoreConfig:
    """Where tasks are kept."""

    url: str = _key(
        StoreUrl(
            '"sqlite:///" and a path, or "mysql://USER:PASSWORD@HOST:PORT/DATABASE"',
            _STORE_PREFIX + ".+",
            "mysql",
        ),
        "sqlite:///taskd.db",
        "The database: sqlite with three slashes and a path relative to the config file's folder, "
        "or four and an absolute path; or mysql (MariaDB 10.6, MySQL 8.0, or newer).",
    )
    durability: Literal["full", "relaxed"] = _key(
        Choice(("full", "relaxed")),
        "full",
        '"relaxed" also takes a MySQL server that does not sync each commit to disk, and so may '
        "lose the last ones.",
    )

    @property
    def on_server(self) -> bool:
        """Whether the store is a cluster's database, not one daemon's file."""
        return not self.url.startswith(_STORE_PREFIX)

    @property
    def path(self) -> Path:
        """The SQLite file."""
        return Path(self.url.removeprefix(_STORE_PREFIX))


@dataclass(frozen=True, kw_only=True)
class QueueConfig:
    """How wake-ups are carried between nodes."""

    url: str = _key(
        AdapterUrl(
            '"local:", or "nsq://HOST:PORT" with more of them after commas', r"local:", "nsq"
        ),
        "local:",
        "The queue of wake-ups: within the process, or NSQ's daemons.",
    )


@dataclass(frozen=True, kw_only=True)
class BusConfig:
    """How signals are carried between nodes."""

    url: str = _key(
        AdapterUrl('"local:", or "redis://HOST:PORT/NUMBER"', r"local:", "rediss?"),
        "local:",
        "The bus of signals between nodes, nonces and leadership: within the process, or Redis.",
    )


@dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """How much is worked on at a time."""

    max_running: int = _key(
        Integer(1, 100_000), 5000, "Most attempts under way at a time.", live=True
    )
    max_per_origin: int = _key(
        Integer(1, 100_000),
        125,
        "Most attempts under way to one origin (scheme, host and port); at most max_running.",
        live=True,
    )
    max_bytes: int = _key(
        Integer(1_048_576, 1_099_511_627_776, "bytes"),
        134_217_728,
        "Most memory for the contents of tasks under way; short ones (2,000 bytes) do not count.",
        live=True,
    )
    lease: int = _key(
        Integer(5, 3600, "seconds"),
        30,
        "How long a task stays with a node that no longer gives a sign of life.",
    )


@dataclass(frozen=True, kw_only=True)
class DeliveryConfig:
    """How applications are called back."""

    denied_networks: tuple[str, ...] = _key(
        Networks(),
        (),
        "Networks that are never delivered to, beside those denied by default.",
        live=True,
    )
    allowed_networks: tuple[str, ...] = _key(
        Networks(),
        (),
        "Networks that may be delivered to although a default denies them.",
        live=True,
    )
    ca_file: Path | None = _key(
        FilePath(), None, "Certificates (PEM) to trust for https receivers.", live=True
    )
    client_cert: Path | None = _key(
        FilePath(),
        None,
        "Certificate chain (PEM) for https receivers that ask for one; needs client_key.",
        live=True,
    )
    client_key: Path | None = _key(FilePath(), None, "Private key (PEM) of client_cert.", live=True)
    proxy: str | None = _key(
        ProxyUrl(),
        None,
        "HTTP proxy for all callbacks, by CONNECT. The rules on networks hold as without one.",
        live=True,
    )
    max_response: int = _key(
        Integer(1024, 67_108_864, "bytes"),
        65_536,
        "Longest answer in which success is looked for; of a longer one the first 4 KiB are read.",
        live=True,
    )
    keep_alive: float = _key(
        Number(0, 60, "seconds"),
        4.0,
        "How long an idle connection to a receiver is kept for the next request, at most; 0 for "
        "never. Shorter than receivers keep theirs.",
        live=True,
    )
    header_style: Literal["both", "underscore", "hyphen"] = _key(
        Choice(("both", "underscore", "hyphen")),
        "both",
        "How callbacks spell the header app_key: with the underscore, as app-key, or both, since "
        "many servers and proxies drop names with underscores.",
    )

    @property
    def client_files(self) -> tuple[Path, Path] | None:
        """The client certificate and its key; None without."""
        if self.client_cert is None or self.client_key is None:
            return None
        return self.client_cert, self.client_key


@dataclass(frozen=True, kw_only=True)
class RetentionConfig:
    """How long ended tasks are kept."""

    finished_days: int = _key(
        Integer(1, 36_500, "days"),
        30,
        "How long an ended task is kept before it is deleted.",
        live=True,
    )


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """How much is logged on standard error, and in which form."""

    level: Literal["debug", "info", "warning", "error"] = _key(
        Choice(("debug", "info", "warning", "error")),
        "info",
        "Least severity that is logged.",
        live=True,
    )
    format: Literal["text", "json"] = _key(
        Choice(("text", "json")),
        "text",
        "One readable line per event, or one JSON object.",
        live=True,
    )


@dataclass(frozen=True, kw_only=True)
class Config:
    """The whole configuration, checked. Its paths are absolute."""

    server: ServerConfig = field(default_factory=ServerConfig)
    auth: AuthConfig = field(default_factory=AuthConfig)
    store: StoreConfig = field(default_factory=StoreConfig)
    queue: QueueConfig = field(default_factory=QueueConfig)
    bus: BusConfig = field(default_factory=BusConfig)
    worker: WorkerConfig = field(default_factory=WorkerConfig)
    delivery: DeliveryConfig = field(default_factory=DeliveryConfig)
    retention: RetentionConfig = field(default_factory=RetentionConfig)
    log: LogConfig = field(default_factory=LogConfig)
    path: Path | None = None
    """The file it was read from."""
    warnings: tuple[str, ...] = ()
    """A sentence for each value that is allowed but unwise, to be logged at start."""
    sources: Mapping[str, str] = field(
        default_factory=lambda: MappingProxyType({}), compare=False, repr=False
    )
    """The source of each value that was given: ``{"server.port": "TASKD_SERVER_PORT"}``."""


SECTIONS: Mapping[str, type] = MappingProxyType(
    {
        "server": ServerConfig,
        "auth": AuthConfig,
        "store": StoreConfig,
        "queue": QueueConfig,
        "bus": BusConfig,
        "worker": WorkerConfig,
        "delivery": DeliveryConfig,
        "retention": RetentionConfig,
        "log": LogConfig,
    }
)
"""Every section by its name, in the order of the example file."""


def settings_of(section: str) -> dict[str, Setting]:
    """The keys of a section, in order, with what is known of each."""
    return {f.name: f.metadata["setting"] for f in dataclasses.fields(SECTIONS[section])}


def default_of(section: str, key: str) -> object:
    """A key's default, or None."""
    return next(f.default for f in dataclasses.fields(SECTIONS[section]) if f.name == key)

"""The configuration: frozen values from a TOML file and the environment.

It knows the runtime and the errors, not what its values are used for. Begin with
`sections`, which has a field for each key; `load` reads, `reload` applies a second reading.
"""

from taskd.config.kinds import without_password
from taskd.config.load import RESERVED, find_config, load_config, refuse_unshared_bounds
from taskd.config.reload import Renewal, from_bytes, renewed, to_bytes
from taskd.config.render import render_config, toml_string, toml_value
from taskd.config.sections import (
    SECTIONS,
    AuthConfig,
    BusConfig,
    Config,
    DeliveryConfig,
    LogConfig,
    QueueConfig,
    RetentionConfig,
    ServerConfig,
    StoreConfig,
    WorkerConfig,
    default_of,
    settings_of,
)
from taskd.config.toml import load_toml

__all__ = [
    "RESERVED",
    "SECTIONS",
    "AuthConfig",
    "BusConfig",
    "Config",
    "DeliveryConfig",
    "LogConfig",
    "QueueConfig",
    "Renewal",
    "RetentionConfig",
    "ServerConfig",
    "StoreConfig",
    "WorkerConfig",
    "default_of",
    "find_config",
    "from_bytes",
    "load_config",
    "load_toml",
    "refuse_unshared_bounds",
    "render_config",
    "renewed",
    "settings_of",
    "to_bytes",
    "toml_string",
    "toml_value",
    "without_password",
]

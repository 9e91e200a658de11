"""``taskd init`` and ``taskd check-config``."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import click

from taskd.cli.boundary import Command, CommandError, hint, print_json, wants_json
from taskd.cli.connection import config_option
from taskd.config import (
    SECTIONS,
    Config,
    load_config,
    refuse_unshared_bounds,
    render_config,
    settings_of,
    toml_value,
    without_password,
)
from taskd.delivery.transport.tls import tls_contexts
from taskd.domain.signing import random_token
from taskd.runtime import interpreter
from taskd.runtime.certificates import server_context

_SECRET_LENGTH = 40


@click.command(cls=Command, example="taskd init && taskd serve")
@click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path),
    default=Path("taskd.toml"),
    show_default=True,
    help="The file to write.",
)
def init(path: Path) -> None:
    """Write a config file with a fresh administrator's secret.

    The file is readable by you alone. One that is there is never overwritten.
    """
    text = render_config({"auth.admin_secret": random_token(_SECRET_LENGTH)})
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise CommandError(f"{path} is there already; nothing was changed") from error
    except FileNotFoundError as error:
        raise CommandError(f"{path}: there is no folder {path.parent}; make it first") from error
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink()  # half a file would be refused at start, and `init` never overwrites it
        raise
    if wants_json():
        print_json({"path": str(path.absolute())})
    else:
        click.echo(f"wrote {path} with a fresh admin_secret; next: taskd serve")


@click.command(
    "check-config", cls=Command, example="taskd check-config --config /etc/taskd/taskd.toml"
)
@config_option
def check_config(config_path: Path | None) -> None:
    """Say what would run, without running it.

    Checks the values, the files they name, and the database if it is there. Opens
    no port and changes nothing.
    """
    config = load_config(config_path, os.environ)
    refuse_unshared_bounds(config)
    _check_files(config)
    warnings = [*config.warnings, *_about_python()]
    for warning in warnings:
        hint(f"warning: {warning}")
    if wants_json():
        print_json(_as_data(config, warnings))
        return
    scheme = "http" if config.server.tls_cert is None else "https"
    click.echo(f"config file: {config.path or 'none, so the defaults'}")
    click.echo(f"would listen on {scheme}://{config.server.host}:{config.server.port}")
    where = config.store.url if config.store.on_server else str(config.store.path)
    click.echo(f"would keep tasks in {without_password(where)}")
    for section in SECTIONS:
        click.echo(f"\n[{section}]")
        for key in settings_of(section):
            shown = toml_value(_shown(config, section, key))
            source = config.sources.get(f"{section}.{key}")
            click.echo(f"{key} = {shown}" + (f"  # {source}" if source else ""))


def _about_python() -> list[str]:
    built = interpreter.slow_build()
    if built is None:
        return []
    return [f"{interpreter.SLOW} (Python {platform.python_version()}, built {built})"]


def _check_files(config: Config) -> None:
    """Refuse the files that ``serve`` would refuse."""
    server = config.server
    if server.tls_cert is not None and server.tls_key is not None:
        server_context(server.tls_cert, server.tls_key)
    tls_contexts(config.delivery.ca_file, config.delivery.client_files)
    # Imported here, so that other commands start sooner.
    from taskd.daemon import adapters  # noqa: PLC0415 - see above

    adapters.check(config)


def _shown(config: Config, section: str, key: str) -> object:
    value: object = getattr(getattr(config, section), key)
    value = settings_of(section)[key].shown(value)
    if isinstance(value, Path):
        return str(value)
    return "" if value is None else value


def _as_data(config: Config, warnings: list[str]) -> dict[str, object]:
    data: dict[str, object] = {
        section: {key: _shown(config, section, key) for key in settings_of(section)}
        for section in SECTIONS
    }
    data["path"] = None if config.path is None else str(config.path)
    data["warnings"] = warnings
    return data

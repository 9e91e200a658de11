"""``taskd app``: applications."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any, Literal

import click

from taskd.cli.boundary import CommandError, Section, plain, print_json, wants_json
from taskd.cli.connection import admin_client, config_option, url_option
from taskd.cli.credentials import StoredApp, add_app, credentials_path, read_apps
from taskd.errors import ConfigError


@click.group(
    cls=Section,
    example="taskd app create --name shop --link-url http://127.0.0.1:9000/callback",
)
def app() -> None:
    """Manage applications."""


@app.command(
    example="taskd app create --name shop --link-url http://127.0.0.1:9000/callback --step 5"
)
@url_option
@config_option
@click.option("--name", required=True, help="The application's name.")
@click.option("--link-url", required=True, help="Where its tasks are delivered.")
@click.option("--step", type=int, help="Seconds by which the wait before each retry grows.")
@click.option("--retry-total", type=int, help="Retries after the first attempt.")
@click.option("--remark", help="A note.")
@click.option(
    "--success",
    type=click.Choice(["body", "status"]),
    help="What ends a task well: a 2xx with the body `success`, or any 2xx.",
)
@click.option(
    "--env",
    is_flag=True,
    help="Print `export` lines for a shell, and nothing else, on stdout.",
)
def create(
    *,
    url: str | None,
    config_path: Path | None,
    name: str,
    link_url: str,
    step: int | None,
    retry_total: int | None,
    remark: str | None,
    success: Literal["body", "status"] | None,
    env: bool,
) -> None:
    """Create an application, and keep its keys for `taskd task`.

    Signs as the administrator: with TASKD_ADMIN_KEY and TASKD_ADMIN_SECRET, or
    with the keys of the config file. The new keys are stored in
    $TASKD_CREDENTIALS, or taskd/credentials.toml in your config folder.
    """
    if env and wants_json():
        raise click.UsageError("--env and --json are two outputs: give one of them")
    path = credentials_path(os.environ)
    read_apps(path)  # a broken file ends the command before there is a secret to lose
    with admin_client(url, config_path) as client:
        data = client.create_app(
            name=name,
            link_url=link_url,
            step=step,
            retry_total=retry_total,
            remark=remark,
            success=success,
        )
        target = client.url
    created = StoredApp(url=target, name=name, app_key=data["appKey"], secret_key=data["secretKey"])
    try:
        add_app(path, created)
    except (OSError, ConfigError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise CommandError(
            f"the application was created, but its keys could not be stored in {path}: {reason}; "
            "keep those printed above"
        ) from error
    finally:
        # Even if storing failed: the daemon will not tell the secret again. After storing:
        # standard output may be closed.
        if env:
            _export(created)
        else:
            _show(created, data)
    if not (env or wants_json()):
        click.echo(f"stored in {path}")


def _show(app: StoredApp, data: dict[str, Any]) -> None:
    if wants_json():
        print_json(data)
        return
    click.echo(f"application {plain(app.name)} created")
    click.echo(f"app key     {plain(app.app_key)}")
    click.echo(f"secret key  {plain(app.secret_key)}")


def _export(app: StoredApp) -> None:
    """Print ``export`` lines for a POSIX shell, safe for any characters of the values."""
    variables = {
        "TASKD_URL": app.url,
        "TASKD_APP_KEY": app.app_key,
        "TASKD_SECRET_KEY": app.secret_key,
    }
    for name, value in variables.items():
        click.echo(f"export {name}={shlex.quote(value)}")

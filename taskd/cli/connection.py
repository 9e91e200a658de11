"""Finds the daemon that a client command calls, and the keys to sign with.

Secrets come from the environment, a file or a prompt, never from a flag, since
everyone can see flags in ``ps``.
"""

from __future__ import annotations

import contextlib
import io
import ipaddress
import os
import sys
from collections.abc import Callable
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from taskd.cli.app_choice import choose, completions
from taskd.cli.boundary import CommandError, WrongUsage, hint, signs_with
from taskd.cli.credentials import credentials_path, read_apps
from taskd.client import Client, normalise_url
from taskd.config import Config, find_config, load_config
from taskd.errors import InvalidInput, TaskdError
from taskd.runtime.text import NotText, text_of

Decorated = Callable[..., None]

_PROMPT = "the prompt"

config_option = click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    help="The config file.  [default: $TASKD_CONFIG, ./taskd.toml, /etc/taskd/taskd.toml]",
)
url_option = click.option(
    "--url",
    help="The daemon's URL.  [default: $TASKD_URL, or as the config file says]",
)


def _complete_app(
    ctx: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """The completions of ``--app``, for the daemon that the options so far choose. None if
    a file can't be read: there is no place for a message while a shell completes."""
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            apps = read_apps(credentials_path(os.environ))
            url = daemon_url(ctx.params.get("url"), ctx.params.get("config_path"))
        except (TaskdError, OSError, click.ClickException):
            return []
        return completions(apps, url, incomplete)


def app_options(command: Decorated) -> Decorated:
    """Add the options that choose a daemon and one of its applications."""
    for option in (
        click.option(
            "--secret-key-file",
            type=click.Path(path_type=Path),
            help="A file that holds the secret key of --app-key.",
        ),
        click.option("--app-key", help="The application's key.  [default: $TASKD_APP_KEY]"),
        click.option(
            "--app",
            "app_name",
            help="Name or key of a stored application.  [default: the one created last]",
            shell_complete=_complete_app,
        ),
        config_option,
        url_option,
    ):
        command = option(command)
    return command


def daemon_url(url: str | None, config_path: Path | None) -> str:
    """The daemon's URL: from the option, the variable, or the config."""
    if url:
        return _named(url, "--url")
    if named := os.environ.get("TASKD_URL"):
        return _named(named, "TASKD_URL")
    config = _config(config_path)
    host = config.server.host
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        pass  # a name: used as it is
    else:
        if address.is_unspecified:
            host = "127.0.0.1" if isinstance(address, ipaddress.IPv4Address) else "::1"
    scheme = "http" if config.server.tls_cert is None else "https"
    shown = f"[{host}]" if ":" in host else host
    return normalise_url(f"{scheme}://{shown}:{config.server.port or Config().server.port}")


def _named(url: str, source: str) -> str:
    try:
        return normalise_url(url)
    except InvalidInput as error:
        raise WrongUsage(f"{source}: {error.problem}") from error


def admin_client(url: str | None, config_path: Path | None) -> Client:
    """A client that signs as the administrator.

    The keys are those of ``TASKD_ADMIN_KEY`` and ``TASKD_ADMIN_SECRET``, or of the config.
    Without a secret, it does not sign if registration is open, and else asks on a terminal.
    """
    target = daemon_url(url, config_path)
    named = os.environ.get("TASKD_ADMIN_KEY")
    if secret := os.environ.get("TASKD_ADMIN_SECRET"):
        return _signing(target, named or "admin", secret, "TASKD_ADMIN_SECRET")
    config = _config(config_path)
    key = named or config.auth.admin_key
    if config.auth.admin_secret is not None:
        return _signing(target, key, config.auth.admin_secret, str(config.path))
    if config.auth.open_registration:
        return Client(target)
    secret = _asked("administrator's secret", "TASKD_ADMIN_SECRET")
    return _signing(target, key, secret, _PROMPT)


def app_client(
    *,
    url: str | None,
    config_path: Path | None,
    app_name: str | None,
    app_key: str | None,
    secret_key_file: Path | None,
) -> Client:
    """A client that signs as an application.

    Which one is said, in this order, by ``--app-key``, ``--app``, ``TASKD_APP_KEY``; else
    it is the stored application of this URL that was created last.
    """
    target = daemon_url(url, config_path)
    if app_key is not None and app_name is not None:
        raise click.UsageError("give either --app or --app-key, not both")
    if secret_key_file is not None and app_key is None:
        raise click.UsageError("--secret-key-file needs --app-key")
    if app_key is not None:
        return _signing(target, app_key, *_secret_of(target, app_key, secret_key_file))
    if app_name is None and (named := os.environ.get("TASKD_APP_KEY")):
        return _signing(target, named, *_secret_of(target, named, None))
    app = choose(read_apps(credentials_path(os.environ)), target, app_name)
    return _signing(target, app.app_key, app.secret_key, str(credentials_path(os.environ)))


def _signing(url: str, key: str, secret: str, source: str) -> Client:
    signs_with(key, source)
    return Client(url, key, secret)


def _secret_of(url: str, app_key: str, secret_key_file: Path | None) -> tuple[str, str]:
    """The secret of this key, and the source for messages."""
    if secret_key_file is not None:
        return _first_line(secret_key_file), str(secret_key_file)
    if os.environ.get("TASKD_APP_KEY") in {None, "", app_key} and (
        named := os.environ.get("TASKD_SECRET_KEY")
    ):
        return named, "TASKD_SECRET_KEY"
    path = credentials_path(os.environ)
    for app in read_apps(path):
        if app.app_key == app_key and app.url == url:
            return app.secret_key, str(path)
    secret = _asked(f"secret key of {app_key}", "--secret-key-file or TASKD_SECRET_KEY")
    return secret, _PROMPT


def _first_line(path: Path) -> str:
    try:
        secret = text_of(path.read_bytes()).strip()
    except OSError as error:
        raise CommandError(f"--secret-key-file: {path} can't be read: {error.strerror}") from error
    except NotText as error:
        raise click.UsageError(f"--secret-key-file: {path} {error}") from error
    if not secret or "\n" in secret:
        raise click.UsageError(f"--secret-key-file: {path} must hold one line, the secret key")
    return secret


def _asked(what: str, instead: str) -> str:
    if not sys.stdin.isatty():
        raise click.UsageError(f"the {what} is needed: give it by {instead}")
    return str(click.prompt(what, hide_input=True, err=True))


def _config(path: Path | None) -> Config:
    """The config. If its file was not named by the user and can't be read, the defaults:
    the file may belong to the daemon's user, and a client needs little of it."""
    found = find_config(path, os.environ)
    if (
        found is not None
        and path is None
        and "TASKD_CONFIG" not in os.environ
        and not os.access(found, os.R_OK)
    ):
        hint(f"{found} is not readable, so the defaults are used")
        return Config()
    return load_config(path, os.environ)

"""Chooses the stored application that a command is about."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from click.shell_completion import CompletionItem

from taskd.cli.boundary import WrongUsage, hint
from taskd.cli.credentials import StoredApp

_SHOWN = 5
"""The most names, keys or URLs that a message lists."""


def choose(apps: Sequence[StoredApp], url: str, wanted: str | None) -> StoredApp:
    """The wanted application of a daemon: the one with this key, or else with this name; the
    one created last if nothing is wanted. A hint then names it, if there are others.

    Args:
        apps: all that are stored, the newest last.
        url: the daemon's.
        wanted: a key or a name; None if none was given.

    Raises:
        WrongUsage: there is no such application, or more than one has the name; the
            message lists those that there are.
    """
    here = _distinct(app for app in apps if app.url == url)
    if wanted is None and here:
        if len(here) > 1:
            last = here[-1]
            others = _listed(app.name for app in reversed(here[:-1]))
            hint(
                f"using the application {last.name} ({last.app_key}), created last; --app "
                f"chooses another: {others}"
            )
        return here[-1]
    found = [app for app in here if app.app_key == wanted]
    found = found or [app for app in here if app.name == wanted]
    if len(found) == 1:
        return found[0]
    if found:
        keys = _listed(app.app_key for app in reversed(found))
        raise WrongUsage(
            f"--app: {len(found)} applications of {url} have the name {wanted!r}: give the key "
            f"of one, the newest first: {keys}"
        )
    raise WrongUsage(_absence(apps, here, url, wanted))


def _absence(
    apps: Sequence[StoredApp], here: Sequence[StoredApp], url: str, wanted: str | None
) -> str:
    """The message that there is no such application, and which ones there are."""
    elsewhere = [app for app in apps if app.url != url]
    named = [app for app in elsewhere if wanted in {None, app.app_key, app.name}]
    which = "no application" if wanted is None else f"no application {wanted!r}"
    told = f"{which} of {url} is stored here"
    if here:
        told += f", but {_listed(app.name for app in reversed(here))}"
    if named:
        which = "those stored are" if wanted is None else "one of this name is"
        told += f"; {which} of {_listed(app.url for app in reversed(named))}: say which by --url"
    return f"{told}; make one with `taskd app create`, or set TASKD_APP_KEY and TASKD_SECRET_KEY"


def completions(
    apps: Iterable[StoredApp], url: str | None, incomplete: str
) -> list[CompletionItem]:
    """The completions of a value of ``--app``: names; and keys, for names that are not
    unique or have characters that are special to a shell.

    Args:
        apps: all that are stored.
        url: the daemon's; None if it is not known: then all daemons' applications count.
        incomplete: the text typed so far.
    """
    here = _distinct(app for app in apps if url in {None, app.url})
    names = [app.name for app in here]
    items = []
    for app in reversed(here):
        fit = names.count(app.name) == 1 and app.name.replace("-", "a").replace("_", "a").isalnum()
        if fit:
            items.append(CompletionItem(app.name, help=app.app_key))
        if not fit or (incomplete and app.app_key.startswith(incomplete)):
            shown = "".join(each if each.isprintable() else "?" for each in app.name)
            items.append(CompletionItem(app.app_key, help=shown))
    return [item for item in items if str(item.value).startswith(incomplete)]


def _distinct(apps: Iterable[StoredApp]) -> list[StoredApp]:
    """Each application once; of those stored several times the last entry."""
    by_key: dict[tuple[str, str], StoredApp] = {}
    for app in apps:
        by_key.pop((app.url, app.app_key), None)
        by_key[app.url, app.app_key] = app
    return list(by_key.values())


def _listed(words: Iterable[str]) -> str:
    distinct = list(dict.fromkeys(words))
    more = f" and {len(distinct) - _SHOWN} more" if len(distinct) > _SHOWN else ""
    return ", ".join(distinct[:_SHOWN]) + more

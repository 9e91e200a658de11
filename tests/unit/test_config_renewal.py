"""A configuration that is read again: what counts, what waits, and how it is handed on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from taskd.config import Config, default_of, from_bytes, load_config, renewed, settings_of, to_bytes
from taskd.config.sections import SECTIONS

_KEYS = [(section, key) for section in SECTIONS for key in settings_of(section)]


def other_than(value: object) -> object:
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, tuple):
        return (*value, "10.0.0.0/8")
    if isinstance(value, Path):
        return value / "other"
    return f"{value}-other"


def changed_in(config: Config, section: str, key: str, value: object) -> Config:
    part = dataclasses.replace(getattr(config, section), **{key: value})
    return dataclasses.replace(config, **{section: part})


@pytest.mark.parametrize(("section", "key"), _KEYS)
def test_a_new_value_counts_or_waits_for_a_restart(section: str, key: str) -> None:
    running = Config()
    running = dataclasses.replace(
        running,
        server=dataclasses.replace(running.server, tls_cert=Path("/c"), tls_key=Path("/k")),
    )
    value = other_than(getattr(getattr(running, section), key) or default_of(section, key))
    renewal = renewed(running, changed_in(running, section, key, value))
    if settings_of(section)[key].live:
        assert getattr(getattr(renewal.config, section), key) == value
        assert [one.partition(" = ")[0] for one in renewal.changed] == [f"{section}.{key}"]
        assert renewal.waiting == ()
    else:
        assert renewal.config == running
        assert (renewal.changed, renewal.waiting) == ((), (f"{section}.{key}",))


def test_a_secret_is_not_shown() -> None:
    read = changed_in(Config(), "auth", "admin_secret", "0123456789abcdef")
    assert renewed(Config(), read).changed == ('auth.admin_secret = "(set)"',)


@pytest.mark.parametrize("key", ["tls_cert", "tls_key"])
def test_tls_is_turned_on_and_off_by_a_restart(key: str) -> None:
    plain = Config()
    secured = changed_in(plain, "server", key, Path("/file.pem"))
    assert renewed(plain, secured).waiting == (f"server.{key}",)
    assert renewed(secured, plain).waiting == (f"server.{key}",)


def test_what_one_process_hands_over_is_what_another_gets(tmp_path: Path) -> None:
    for name in ("cert.pem", "key.pem"):
        (tmp_path / name).write_text("")
    secret = tmp_path / "secret"
    secret.write_text("帅的密码 0123456789abcdef\n")
    (tmp_path / "taskd.toml").write_text(
        '[server]\ntls_cert = "cert.pem"\ntls_key = "key.pem"\nmax_body = 5000\n'
        '[auth]\nadmin_secret_file = "secret"\n'
        '[delivery]\ndenied_networks = ["10.0.0.0/8"]\n'
    )
    config = load_config(tmp_path / "taskd.toml", {"TASKD_SERVER_DRAIN_TIMEOUT": "2.5"})
    cluster = load_config(
        tmp_path / "taskd.toml",
        {
            "TASKD_STORE_URL": "mysql://u:p%40@h/d?tls=true",
            "TASKD_BUS_URL": "redis://:p@h/0",
            "TASKD_QUEUE_URL": "nsq://h:1,h:2?topic=t",
        },
    )
    (tmp_path / "bare.toml").write_text("")
    bare = load_config(tmp_path / "bare.toml", {})
    for one in (bare, config, cluster):
        got = from_bytes(to_bytes(one), dataclasses.replace(Config(), path=one.path))
        assert dataclasses.replace(got, warnings=one.warnings) == one

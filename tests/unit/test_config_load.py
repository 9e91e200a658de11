"""From a file and the environment to a configuration, or to one sentence."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from taskd.config import (
    SECTIONS,
    Config,
    default_of,
    find_config,
    load_config,
    refuse_unshared_bounds,
    settings_of,
)
from taskd.config.render import render_config
from taskd.errors import ConfigError


def write(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "taskd.toml"
    path.write_text(text)
    path.chmod(mode)
    return path


def loaded(tmp_path: Path, text: str = "", **environ: str) -> Config:
    return load_config(write(tmp_path, text), environ)


def refusal(tmp_path: Path, text: str = "", **environ: str) -> str:
    with pytest.raises(ConfigError) as raised:
        loaded(tmp_path, text, **environ)
    message = str(raised.value)
    assert "\n" not in message
    return message


def test_without_anything_the_embedded_defaults_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(None, {})
    for section in SECTIONS:
        for key in settings_of(section):
            value = getattr(getattr(config, section), key)
            if (section, key) == ("store", "url"):
                assert config.store.path == tmp_path / "taskd.db"
            else:
                assert value == default_of(section, key), f"{section}.{key}"


def test_the_example_file_is_the_defaults(tmp_path: Path) -> None:
    config = loaded(tmp_path, render_config())
    bare = loaded(tmp_path)
    assert dataclasses.replace(config, sources={}) == dataclasses.replace(bare, sources={})


def test_the_file_is_searched_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    named = write(tmp_path, "")
    assert find_config(Path("given.toml"), {"TASKD_CONFIG": "x"}) == Path("given.toml")
    assert find_config(None, {"TASKD_CONFIG": "x"}) == Path("x")
    assert find_config(None, {}) == Path(named.name)
    named.unlink()
    assert find_config(None, {}) in (None, Path("/etc/taskd/taskd.toml"))


def test_a_file_that_was_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml"):
        load_config(tmp_path / "nowhere.toml", {})


def test_variables_override_the_file(tmp_path: Path) -> None:
    config = loaded(
        tmp_path,
        '[server]\nport = 1\nhost = "127.0.0.1"\n[auth]\nopen_registration = false\n',
        TASKD_SERVER_PORT="2",
        TASKD_AUTH_OPEN_REGISTRATION="true",
        TASKD_DELIVERY_DENIED_NETWORKS="10.0.0.0/8,192.168.0.0/16",
        TASKD_AUTH_ADMIN_SECRET="s" * 16,
    )
    assert config.server.port == 2
    assert config.auth.open_registration is True
    assert [str(network) for network in config.delivery.denied_networks] == [
        "10.0.0.0/8",
        "192.168.0.0/16",
    ]
    assert config.auth.admin_secret == "s" * 16


def test_reserved_and_foreign_variables_are_no_overrides(tmp_path: Path) -> None:
    loaded(
        tmp_path,
        TASKD_URL="http://x",
        TASKD_ADMIN_KEY="a",
        TASKD_ADMIN_SECRET="b",
        TASKD_APP_KEY="c",
        TASKD_SECRET_KEY="d",
        TASKD_CREDENTIALS="e",
        TASKD_OF_ANOTHER_PROGRAM="f",
        PATH=os.environ["PATH"],
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[server]\nprot = 1", ("[server] prot", "port")),
        ("[sever]\nport = 1", ("[sever]", "server")),
        ("server = 1", ("[server]",)),
        ("[server]\nport = true", ("[server] port",)),
        ('[server]\nport = "1"', ("[server] port",)),
        ("[server]\nport = 1.0", ("[server] port",)),
        ("[server]\nport = -1", ("[server] port",)),
        ("[server]\nport = 65536", ("[server] port",)),
        ("[server]\nhost = 1", ("[server] host",)),
        ("[server]\ndrain_timeout = nan", ("[server] drain_timeout",)),
        ("[server]\ndrain_timeout = -1", ("[server] drain_timeout",)),
        ('[server]\ntimezone = "../etc/passwd"', ("[server] timezone",)),
        ("[auth]\nopen_registration = 1", ("[auth] open_registration",)),
        ('[auth]\npayload = "none"', ("[auth] payload", "digest", "opaque")),
        ('[auth]\nadmin_secret = "short"', ("[auth] admin_secret", "16")),
        ('[store]\nurl = "postgres://h/db"', ("[store] url", "sqlite")),
        ('[store]\nurl = "mysql://h/db"', ("[store] url",)),
        ('[queue]\nurl = "nsq://h"', ("[queue] url",)),
        ('[bus]\nurl = "redis://h"', ("[bus] url",)),
        ("[worker]\nlease = 1", ("[worker] lease",)),
        ("[worker]\nmax_running = 0", ("[worker] max_running",)),
        ('[delivery]\ndenied_networks = "10.0.0.0/8"', ("[delivery] denied_networks",)),
        ('[delivery]\ndenied_networks = ["10.0.0.1/8"]', ("[delivery] denied_networks",)),
        ('[log]\nlevel = "loud"', ("[log] level",)),
        ("[log\n", ("taskd.toml", "TOML")),
    ],
)
def test_what_is_wrong_in_the_file_is_told_by_its_key(
    tmp_path: Path, text: str, told: tuple[str, ...]
) -> None:
    message = refusal(tmp_path, text)
    for word in told:
        assert word in message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TASKD_SERVER_PORT", "x"),
        ("TASKD_SERVER_PORT", "1e3"),
        ("TASKD_SERVER_PROT", "1"),
        ("TASKD_AUTH_OPEN_REGISTRATION", "maybe"),
        ("TASKD_DELIVERY_DENIED_NETWORKS", "10.0.0.0/8;11.0.0.0/8"),
    ],
)
def test_what_is_wrong_in_a_variable_is_told_by_its_name(
    tmp_path: Path, name: str, value: str
) -> None:
    assert name in refusal(tmp_path, **{name: value})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[server]\ntls_cert = "c"', "tls_key"),
        ('[server]\ntls_key = "k"', "tls_cert"),
        ('[delivery]\nclient_cert = "c"', "[delivery] client_key: is needed with client_cert"),
        ('[delivery]\nclient_key = "k"', "[delivery] client_cert: is needed with client_key"),
        ('[delivery]\nclient_cert = "c"\nclient_key = "k"', "client_cert: "),
        ("[worker]\nmax_running = 5\nmax_per_origin = 6", "max_per_origin"),
        (
            '[auth]\nadmin_secret = "ssssssssssssssss"\nadmin_secret_file = "f"',
            "admin_secret_file",
        ),
    ],
)
def test_impossible_combinations_are_refused(tmp_path: Path, text: str, told: str) -> None:
    assert told in refusal(tmp_path, text)


@pytest.mark.parametrize("key", ["max_running", "max_per_origin"])
def test_bounds_that_the_workers_can_not_share_are_refused_where_they_serve(
    tmp_path: Path, key: str
) -> None:
    fine = loaded(tmp_path, f"[server]\nworkers = 3\n[worker]\n{key} = 3")
    refuse_unshared_bounds(fine)
    config = loaded(tmp_path, f"[server]\nworkers = 3\n[worker]\n{key} = 2")
    told = rf"\[worker\] {key}: .* \[server\] workers \(3\), which share it, got 2 \(.*taskd.toml"
    with pytest.raises(ConfigError, match=told):
        refuse_unshared_bounds(config)


def test_paths_are_relative_to_the_files_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "secret").write_text("s" * 20 + "\n")
    (tmp_path / "conf" / "ca.pem").touch()
    path = write(
        tmp_path / "conf",
        '[store]\nurl = "sqlite:///data/t.db"\n[auth]\nadmin_secret_file = "secret"\n'
        '[delivery]\nca_file = "ca.pem"\n',
    )
    monkeypatch.chdir("/")
    config = load_config(path, {})
    assert config.store.path == tmp_path / "conf" / "data" / "t.db"
    assert config.delivery.ca_file == tmp_path / "conf" / "ca.pem"
    assert config.auth.admin_secret == "s" * 20
    absolute = load_config(path, {"TASKD_STORE_URL": "sqlite:////var/t.db"})
    assert absolute.store.path == Path("/var/t.db")


def test_secrets_show_in_no_repr_and_no_message(tmp_path: Path) -> None:
    config = loaded(tmp_path, '[auth]\nadmin_secret = "hunter2hunter2hunter2"')
    assert "hunter2" not in repr(config)
    message = refusal(tmp_path, '[store]\nurl = "mysql://u:hunter2@h/db"')
    assert "hunter2" not in message
    assert "hunter2" not in refusal(tmp_path, '[auth]\nadmin_secret = "hunter2"')


def test_a_file_with_a_secret_that_others_can_read_is_warned_of(tmp_path: Path) -> None:
    text = '[auth]\nadmin_secret = "hunter2hunter2hunter2"'
    assert load_config(write(tmp_path, text, 0o600), {}).warnings == ()
    (warning,) = load_config(write(tmp_path, text, 0o644), {}).warnings
    assert "taskd.toml" in warning

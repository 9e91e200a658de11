"""Where a value comes from: options, variables, the file, a secret file."""

from __future__ import annotations

import os
import threading
import traceback
from pathlib import Path

import pytest

from taskd.config import Config, load_config, settings_of
from taskd.errors import ConfigError

_SECRET = "hunter2hunter2hunter2"


def loaded(folder: Path, text: str = "", **environ: str) -> Config:
    path = folder / "taskd.toml"
    path.write_text(text)
    path.chmod(0o600)
    return load_config(path, environ)


def secret_file(folder: Path, content: bytes, mode: int = 0o600) -> Path:
    path = folder / "secret"
    path.write_bytes(content)
    path.chmod(mode)
    return path


def test_an_option_beats_a_variable_beats_the_file(tmp_path: Path) -> None:
    path = tmp_path / "taskd.toml"
    path.write_text('[server]\nport = 1\nhost = "127.0.0.1"\nmax_body = 2048\n')
    environ = {"TASKD_SERVER_PORT": "2", "TASKD_SERVER_HOST": "127.0.0.2"}
    config = load_config(path, environ, overrides={"--port": "3"})
    assert (config.server.port, config.server.host, config.server.max_body) == (
        3,
        "127.0.0.2",
        2048,
    )
    assert dict(config.sources) == {
        "server.port": "--port",
        "server.host": "TASKD_SERVER_HOST",
        "server.max_body": str(path),
    }


def test_a_wrong_option_is_told_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "taskd.toml"
    path.touch()
    with pytest.raises(ConfigError, match=r"^\[server\] port: .* \(--port\)$"):
        load_config(path, {}, overrides={"--port": "0x50"})


@pytest.mark.parametrize(
    ("text", "value"),
    [("true", True), ("TRUE", True), ("1", True), ("false", False), ("False", False), ("0", False)],
)
def test_a_variable_may_hold_a_boolean(tmp_path: Path, text: str, value: bool) -> None:
    config = loaded(tmp_path, TASKD_AUTH_OPEN_REGISTRATION=text)
    assert config.auth.open_registration is value


@pytest.mark.parametrize("text", ["", "yes", "2", " true", "ｔrue"])
def test_what_is_no_boolean_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="TASKD_AUTH_OPEN_REGISTRATION"):
        loaded(tmp_path, TASKD_AUTH_OPEN_REGISTRATION=text)


@pytest.mark.parametrize("text", ["", " 80", "+80", "8_0", "٨٠", "80.0", "9" * 30])
def test_a_port_is_plain_digits(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="TASKD_SERVER_PORT"):
        loaded(tmp_path, TASKD_SERVER_PORT=text)


@pytest.mark.parametrize(
    ("text", "networks"),
    [
        ("", ()),
        ("10.0.0.0/8", ("10.0.0.0/8",)),
        ("10.0.0.0/8, fd00::/8 ,192.0.2.1", ("10.0.0.0/8", "fd00::/8", "192.0.2.1/32")),
    ],
)
def test_a_variable_holds_a_list_with_commas(
    tmp_path: Path, text: str, networks: tuple[str, ...]
) -> None:
    """An empty text is an empty list, so that a list of the file can be emptied."""
    config = loaded(
        tmp_path,
        '[delivery]\nallowed_networks = ["127.0.0.0/8"]\n',
        TASKD_DELIVERY_ALLOWED_NETWORKS=text,
    )
    assert config.delivery.allowed_networks == networks


def test_a_variable_of_either_secret_replaces_both_of_the_file(tmp_path: Path) -> None:
    path = secret_file(tmp_path, b"of-the-secret-file\n")
    in_file = f'[auth]\nadmin_secret = "{_SECRET}"\n'
    config = loaded(tmp_path, in_file, TASKD_AUTH_ADMIN_SECRET_FILE=str(path))
    assert config.auth.admin_secret == "of-the-secret-file"
    config = loaded(
        tmp_path, '[auth]\nadmin_secret_file = "nowhere"\n', TASKD_AUTH_ADMIN_SECRET=_SECRET
    )
    assert config.auth.admin_secret == _SECRET
    with pytest.raises(ConfigError, match="not both"):
        loaded(tmp_path, TASKD_AUTH_ADMIN_SECRET=_SECRET, TASKD_AUTH_ADMIN_SECRET_FILE=str(path))


@pytest.mark.parametrize("ending", [b"", b"\n", b"\r\n"])
def test_a_secret_file_holds_one_line(tmp_path: Path, ending: bytes) -> None:
    secret_file(tmp_path, _SECRET.encode() + ending)
    config = loaded(tmp_path, '[auth]\nadmin_secret_file = "secret"\n')
    assert config.auth.admin_secret == _SECRET
    assert _SECRET not in repr(config)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "16"),
        (b"hunter2", "16"),
        (b"hunter2hunter2\nhunter2hunter2\n", "control characters"),
        (b"hunter2hunter2hunter2\xff", "UTF-8"),
        (b"hunter2" * 1000, "longer than 4096 bytes"),
    ],
)
def test_a_secret_file_that_cannot_be_used_is_told_without_the_secret(
    tmp_path: Path, content: bytes, told: str
) -> None:
    secret_file(tmp_path, content)
    with pytest.raises(ConfigError) as raised:
        loaded(tmp_path, '[auth]\nadmin_secret_file = "secret"\n')
    assert told in str(raised.value)
    assert str(raised.value).startswith("[auth] admin_secret_file: ")
    assert "hunter2" not in "".join(traceback.format_exception(raised.value))


def test_a_secret_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="secret cannot be read: No such file"):
        loaded(tmp_path, '[auth]\nadmin_secret_file = "secret"\n')


def test_a_secret_may_come_through_a_pipe(tmp_path: Path) -> None:
    """As ``admin_secret_file`` of a process substitution: it can be read once."""
    path = tmp_path / "pipe"
    os.mkfifo(path, 0o600)
    writer = threading.Thread(target=path.write_text, args=(_SECRET,))
    writer.start()
    config = loaded(tmp_path, '[auth]\nadmin_secret_file = "pipe"\n')
    writer.join(5)
    assert config.auth.admin_secret == _SECRET


def test_who_may_read_a_secret_is_watched_where_it_is_kept(tmp_path: Path) -> None:
    secret_file(tmp_path, _SECRET.encode(), 0o640)
    (warning,) = loaded(tmp_path, '[auth]\nadmin_secret_file = "secret"\n').warnings
    assert "secret holds the administrator's secret" in warning
    path = tmp_path / "taskd.toml"
    path.chmod(0o644)  # it only names the secret's file
    (warning,) = load_config(path, {}).warnings
    assert "taskd.toml" not in warning
    environ = {"TASKD_AUTH_ADMIN_SECRET": _SECRET}
    assert load_config(path, environ).warnings == ()


def test_off_loopback_without_tls_and_an_opaque_payload_are_warned_of(tmp_path: Path) -> None:
    (host,) = loaded(tmp_path, '[server]\nhost = "0.0.0.0"\n').warnings
    assert "TLS" in host
    (payload,) = loaded(tmp_path, '[auth]\npayload = "opaque"\n').warnings
    assert "unauthenticated" in payload
    for loopback in ("127.0.0.9", "::1", "localhost"):
        assert loaded(tmp_path, f'[server]\nhost = "{loopback}"\n').warnings == ()


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://taskd.db",
        "sqlite:///",
        "sqlite:////",
        "sqlite:///:memory:",
        "sqlite:///a?mode=ro",
        "sqlite:///a#b",
        "sqlite:///folder/",
        "taskd.db",
        "",
    ],
)
def test_a_store_url_that_names_no_file_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError, match=r"^\[store\] url: must be .*sqlite:///.*, got "):
        loaded(tmp_path, f'[store]\nurl = "{url}"\n')


CLUSTER = {
    "TASKD_STORE_URL": "mysql://user:hunter2@db:3306/taskd",
    "TASKD_QUEUE_URL": "nsq://nsq:4150?topic=taskd",
    "TASKD_BUS_URL": "redis://:hunter2@redis:6379/0",
}


def test_a_clusters_urls_are_taken_and_never_shown_whole(tmp_path: Path) -> None:
    config = loaded(tmp_path, **CLUSTER)
    assert config.store.on_server
    assert config.store.url == CLUSTER["TASKD_STORE_URL"]
    assert "hunter2" not in repr(config)
    shown = settings_of("store")["url"].shown(config.store.url)
    assert shown == "mysql://…@db:3306/taskd"


@pytest.mark.parametrize(
    "url",
    [
        "mysql:/u:hunter2@h/t",
        "mysql:u:hunter2@h",
        "u:hunter2@h",
        "mysql:// a:hunter2@b/c",
        "myqsl://a:hunter2@b/c",
    ],
)
def test_a_url_of_no_adapter_is_refused_without_its_password(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError, match=r"^\[store\] url: must be ") as raised:
        loaded(tmp_path, TASKD_STORE_URL=url)
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize("missing", ["TASKD_STORE_URL", "TASKD_BUS_URL"])
def test_half_a_cluster_is_refused(tmp_path: Path, missing: str) -> None:
    given = {name: url for name, url in CLUSTER.items() if name != missing}
    with pytest.raises(ConfigError, match="mysql://"):
        loaded(tmp_path, **given)


def test_a_cluster_may_do_without_a_queue(tmp_path: Path) -> None:
    given = {name: url for name, url in CLUSTER.items() if name != "TASKD_QUEUE_URL"}
    assert loaded(tmp_path, **given).queue.url == "local:"


@pytest.mark.parametrize("zone", ["", ".", "..", "/etc/localtime", "Asia", "Mars/Base", "a\0b"])
def test_a_timezone_that_is_none_is_refused(tmp_path: Path, zone: str) -> None:
    with pytest.raises(ConfigError, match=r"^\[server\] timezone: "):
        loaded(tmp_path, TASKD_SERVER_TIMEZONE=zone)


@pytest.mark.parametrize("key", ["tls_cert", "tls_key"])
def test_a_tls_file_that_cannot_be_read_is_told_by_its_key(tmp_path: Path, key: str) -> None:
    for name in ("tls_cert", "tls_key"):
        if name != key:
            (tmp_path / name).touch()
    with pytest.raises(ConfigError, match=rf"^\[server\] {key}: .*{key} cannot be read"):
        loaded(tmp_path, '[server]\ntls_cert = "tls_cert"\ntls_key = "tls_key"\n')


def test_a_default_that_no_longer_fits_is_lowered(tmp_path: Path) -> None:
    """Who lowers ``max_running`` alone has said nothing that can't be."""
    config = loaded(tmp_path, "[worker]\nmax_running = 5\n")
    assert (config.worker.max_running, config.worker.max_per_origin) == (5, 5)


@pytest.mark.parametrize("name", ["taskd_server_port", "TASKD_Server_Port", "TASKD_SERVER"])
def test_a_variable_in_another_form_is_somebody_elses(tmp_path: Path, name: str) -> None:
    assert loaded(tmp_path, **{name: "x"}).server.port == 9502


def test_the_nearest_key_is_told_also_for_a_variable(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        loaded(tmp_path, TASKD_WORKER_MAX_RUNING="1")
    assert str(raised.value) == (
        "[worker] max_runing: no such key; did you mean max_running? (TASKD_WORKER_MAX_RUNING)"
    )


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[server]\nport = 1\nport = 2\n", b"\0"])
def test_a_file_that_is_no_toml_is_told_by_its_path(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "taskd.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as raised:
        load_config(path, {})
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_folder_is_no_config_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Is a directory"):
        load_config(tmp_path, {})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "[worker]\nmax_runing = 1\n",
            "[worker] max_runing: no such key; did you mean max_running?",
        ),
        # Near no key of its section, but at home in another.
        ("[server]\nmax_running = 1\n", "; did you mean [worker] max_running?"),
        ("[log]\ncolour = 1\n", "[log] colour: no such key; there are level, format"),
        ("[sever]\nport = 1\n", "[sever]: no such section; did you mean server?"),
        ("[metrics]\nport = 1\n", "[metrics]: no such section; there are server, auth, store"),
    ],
)
def test_what_is_meant_by_an_unknown_key_is_told_only_where_that_is_likely(
    tmp_path: Path, text: str, told: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        loaded(tmp_path, text)
    assert told in str(raised.value)


def test_a_byte_order_mark_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "taskd.toml"
    path.write_bytes(b"\xef\xbb\xbf[server]\nport = 7\n")
    assert load_config(path, {}).server.port == 7


def test_a_key_outside_its_section_is_told_where_it_belongs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^port: must stand in a section; did you mean \[server"):
        loaded(tmp_path, "port = 7\n")


def test_a_variable_that_is_nearly_a_key_is_warned_of(tmp_path: Path) -> None:
    path = tmp_path / "taskd.toml"
    path.touch()
    (warning,) = load_config(path, {"TASKD_SERVR_PORT": "7", "TASKD_HOMEPAGE": "x"}).warnings
    assert "TASKD_SERVR_PORT" in warning
    assert warning.endswith("did you mean TASKD_SERVER_PORT?")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("TASKD_WORKERS", "TASKD_SERVER_WORKERS"),
        ("TASKD_PORT", "TASKD_SERVER_PORT"),
        ("TASKD_MAX_RUNNING", "TASKD_WORKER_MAX_RUNNING"),
        ("TASKD_LOGLEVEL", "TASKD_LOG_LEVEL"),
        ("TASKD_SERVERPORT", "TASKD_SERVER_PORT"),
        ("TASKD_STORAGE_URL", "TASKD_STORE_URL"),
        ("TASKD_CONFG", "TASKD_CONFIG"),
        ("TASKD_ADMIN_SERCET", "TASKD_ADMIN_SECRET"),
        ("TASKD_APPKEY", "TASKD_APP_KEY"),
        ("TASKD_SERVER", None),
        ("TASKD_", None),
        ("TASKD_DEBUG", None),
        ("TASKD_DATA_DIR", None),
    ],
)
def test_a_variable_of_no_section_is_told_which_may_be_meant(
    tmp_path: Path, name: str, meant: str | None
) -> None:
    path = tmp_path / "taskd.toml"
    path.touch()
    told = [f"{name}: names no key, so it counts for nothing; did you mean {meant}?"]
    assert list(load_config(path, {name: "1"}).warnings) == (told if meant else [])

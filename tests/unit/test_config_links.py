"""What Kubernetes and Docker set for services that are called like sections is no key."""

from __future__ import annotations

from pathlib import Path

import pytest

from taskd.config import SECTIONS, load_config
from taskd.config.service_links import is_service_link
from taskd.errors import ConfigError
from taskd.runtime import interpreter
from tests.support.commands import invoke


def links_of_kubernetes(service: str, host: str = "10.96.0.7", port: int = 9502) -> dict[str, str]:
    """As the kubelet makes them of a service with a named port and one more."""
    name = service.upper().replace("-", "_")
    at = f"[{host}]" if ":" in host else host
    made = {
        f"{name}_SERVICE_HOST": host,
        f"{name}_SERVICE_PORT": f"{port}",
        f"{name}_SERVICE_PORT_HTTP": f"{port}",
        f"{name}_SERVICE_PORT_METRICS_2": "9100",
        f"{name}_PORT": f"tcp://{at}:{port}",
    }
    for number, protocol in ((port, "tcp"), (9100, "udp"), (9101, "sctp")):
        prefix = f"{name}_PORT_{number}_{protocol.upper()}"
        made |= {
            prefix: f"{protocol}://{at}:{number}",
            f"{prefix}_PROTO": protocol,
            f"{prefix}_PORT": f"{number}",
            f"{prefix}_ADDR": host,
        }
    return made


def links_of_docker(alias: str) -> dict[str, str]:
    """As ``docker run --link web:alias`` makes them."""
    name = alias.upper().replace("-", "_")
    return {
        f"{name}_NAME": f"/application/{alias}",
        f"{name}_PORT": "tcp://172.17.0.5:9502",
        f"{name}_PORT_9502_TCP": "tcp://172.17.0.5:9502",
        f"{name}_PORT_9502_TCP_ADDR": "172.17.0.5",
        f"{name}_PORT_9502_TCP_PORT": "9502",
        f"{name}_PORT_9502_TCP_PROTO": "tcp",
        f"{name}_PORT_9502_TCP_START": "tcp://172.17.0.5:9502",
        f"{name}_PORT_9502_TCP_END": "tcp://172.17.0.5:9510",
        f"{name}_PORT_9502_TCP_PORT_START": "9502",
        f"{name}_PORT_9502_TCP_PORT_END": "9510",
        f"{name}_ENV_PATH": "/usr/bin:/bin",
        f"{name}_ENV_SERVER_PORT": "many\nlines",
    }


SERVICES = (
    "taskd",
    *(f"taskd-{section}" for section in SECTIONS),
    "taskd-server-http",
    "taskd-url",
)


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("host", ["10.96.0.7", "fd00:10:96::7"])
def test_the_links_of_a_service_are_passed_over_with_one_warning(
    tmp_path: Path, service: str, host: str
) -> None:
    (tmp_path / "taskd.toml").write_text("[server]\nport = 1234\n")
    links = links_of_kubernetes(service, host)
    config = load_config(tmp_path / "taskd.toml", links)
    assert config.server.port == 1234
    (warning,) = config.warnings
    assert all(name in warning for name in links)


@pytest.mark.parametrize("alias", SERVICES)
def test_the_links_of_docker_are_passed_over_with_one_warning(tmp_path: Path, alias: str) -> None:
    (tmp_path / "taskd.toml").write_text("")
    links = links_of_docker(alias)
    (warning,) = load_config(tmp_path / "taskd.toml", links).warnings
    assert all(name in warning for name in links)


def test_a_key_beside_links_counts(tmp_path: Path) -> None:
    (tmp_path / "taskd.toml").write_text("")
    environ = links_of_kubernetes("taskd-log") | {"TASKD_SERVER_PORT": "1234"}
    assert load_config(tmp_path / "taskd.toml", environ).server.port == 1234


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TASKD_SERVER_PORT", "http://10.0.0.1:80"),
        ("TASKD_SERVER_PORT", "tcp://10.0.0.1"),
        ("TASKD_SERVER_PORT", "80/tcp"),
        ("TASKD_LOG_PORT", "80"),
        ("TASKD_SERVER_SERVICE_PORT", "http"),
        ("TASKD_SERVER_SERVICE_HOST", "a b"),
        ("TASKD_SERVER_SERVICE", "10.0.0.1"),
        ("TASKD_SERVER_PORTS", "tcp://10.0.0.1:80"),
        ("TASKD_SERVER_PORT_HTTP_TCP", "tcp://10.0.0.1:80"),
        ("TASKD_SERVER_PORT_80_TCP", "80"),
        ("TASKD_SERVER_PORT_80_TCP_PROTO", "http"),
        ("TASKD_SERVER_NAME", "taskd"),
        ("TASKD_SERVER_ADDR", "10.0.0.1"),
        ("TASKD_SERVER_HOST", "tcp://10.0.0.1:80"),
    ],
)
def test_what_has_no_links_form_is_as_strict_as_ever(tmp_path: Path, name: str, value: str) -> None:
    (tmp_path / "taskd.toml").write_text("")
    assert not is_service_link(name, value)
    with pytest.raises(ConfigError, match=rf"\({name}\)"):
        load_config(tmp_path / "taskd.toml", {name: value})


def test_commands_bear_links_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(interpreter, "slow_build", lambda: None)
    for service in SERVICES:
        for name, value in (links_of_kubernetes(service) | links_of_docker(service)).items():
            monkeypatch.setenv(name, value.replace("\n", " "))
    done = invoke("check-config")
    assert done.exit_code == 0, done.stderr
    assert "would listen on http://127.0.0.1:9502" in done.stdout
    assert done.stderr.count("warning: ") == 1
    monkeypatch.setenv("TASKD_CREDENTIALS", str(tmp_path / "none.toml"))
    refused = invoke("task", "detail", "1")
    assert "no application of http://127.0.0.1:9502 is stored here" in refused.stderr

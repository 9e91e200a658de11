from __future__ import annotations

import base64

import pytest

from taskd.config import load_config
from taskd.errors import ConfigError
from taskd.runtime.proxy_url import parse_proxy


@pytest.mark.parametrize(
    ("url", "host", "port", "address", "name"),
    [
        ("http://Proxy.test:3128", "proxy.test", 3128, None, "http://proxy.test:3128"),
        ("http://10.0.0.1:80/", "10.0.0.1", 80, "10.0.0.1", "http://10.0.0.1:80"),
        ("http://[FD00::1]:8080", "fd00::1", 8080, "fd00::1", "http://[fd00::1]:8080"),
        ("http://u:p@proxy:1", "proxy", 1, None, "http://proxy:1"),
    ],
)
def test_a_proxy_is_taken_apart(
    url: str, host: str, port: int, address: str | None, name: str
) -> None:
    proxy = parse_proxy(url)
    assert (proxy.host, proxy.port, proxy.address) == (host, port, address)
    assert proxy.name == f"the proxy {name}"


@pytest.mark.parametrize(
    ("login", "decoded"),
    [
        ("user:pass", b"user:pass"),
        ("user", b"user:"),
        ("user:", b"user:"),
        ("u%C3%A9:p%3A%40%2F%25", "ué:p:@/%".encode()),
    ],
)
def test_a_login_is_decoded_and_shows_nowhere(login: str, decoded: bytes) -> None:
    proxy = parse_proxy(f"http://{login}@proxy:3128")
    assert proxy.authorization is not None
    assert base64.b64decode(proxy.authorization.removeprefix("Basic ")) == decoded
    assert "Basic" not in repr(proxy)
    assert "pass" not in repr(proxy) + proxy.name


@pytest.mark.parametrize(
    "url",
    [
        "https://user:hunter2@proxy:3128",
        "socks5://user:hunter2@proxy:1080",
        "http://user:hunter2@proxy",
        "http://user:hunter2@proxy:0",
        "http://user:hunter2@proxy:65536",
        "http://user:hunter2@proxy:3128/path",
        "http://user:hunter2@proxy:3128?x=1",
        "http://user:hunter2@[::g]:3128",
        "http://user:hunter2@[::1:3128",
        "http://user:hunter2@:3128",
        "http://user:hunter2@a b:3128",
        "http://user:hunter2 @proxy:3128",
        "http://user:hun@ter2@proxy:3128",
        "http://user:hunter2@proxy:٣١٢٨",
        "user:hunter2@proxy:3128",
        "proxy:3128",
        "\n",
    ],
)
def test_another_url_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ValueError, match=r"^$"):
        parse_proxy(url)
    with pytest.raises(ConfigError) as caught:
        load_config(None, {"TASKD_DELIVERY_PROXY": url})
    told = str(caught.value)
    assert told.startswith('[delivery] proxy: must be "http://HOST:PORT"')
    assert "hunter2" not in told
    assert "ter2" not in told


def test_an_empty_text_is_no_proxy_and_a_url_is_shown_without_its_password() -> None:
    assert load_config(None, {"TASKD_DELIVERY_PROXY": ""}).delivery.proxy is None
    config = load_config(None, {"TASKD_DELIVERY_PROXY": "http://user:hunter2@proxy:3128"})
    assert config.delivery.proxy == "http://user:hunter2@proxy:3128"
    assert "hunter2" not in repr(config)

"""The files of examples/cluster say what taskd understands, and fit each other.

No container and no unit is started here: what they would tell taskd is read by
taskd's own code.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from taskd.buses.redis.target import parse_redis_url
from taskd.config import Config, load_config
from taskd.daemon.run import END_S
from taskd.errors import InvalidInput
from taskd.queues.nsq.target import parse_nsq_url
from taskd.stores.mysql.target import parse_mysql_url

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "examples" / "cluster"
_SECRET = "0123456789abcdef0123456789abcdef"
_NODES = ["taskd1", "taskd2", "taskd3"]


def compose_services() -> dict[str, str]:
    """The services of the compose file, each with its text. The tests' environment
    has no YAML parser, so this knows the file's own indentation."""
    text = (CLUSTER / "compose.yaml").read_text()
    assert "\t" not in text
    body = re.search(r"^services:\n(.*?)^volumes:$", text, re.MULTILINE | re.DOTALL)
    assert body is not None
    found = re.split(r"^  ([a-z0-9]+):", body[1], flags=re.MULTILINE)[1:]
    return dict(zip(found[::2], found[1::2], strict=True))


def check_urls(config: Config) -> None:
    assert config.store.on_server
    parse_mysql_url(config.store.url)
    parse_nsq_url(config.queue.url)
    parse_redis_url(config.bus.url)


def test_the_compose_file_starts_three_nodes_after_their_tables_are_made() -> None:
    services = compose_services()
    assert [name for name, text in services.items() if text.startswith(" *node\n")] == _NODES
    assert 'command: ["migrate"]' in services["migrate"]
    nodes = (CLUSTER / "compose.yaml").read_text().partition("services:")[0]
    assert "condition: service_completed_successfully" in nodes


def test_the_compose_file_sets_what_the_configuration_knows(tmp_path: Path) -> None:
    text = (CLUSTER / "compose.yaml").read_text()
    environ = {
        name: re.sub(r"\$\{\w+:\?[^}]*\}", _SECRET, value)
        for name, value in re.findall(r"^ +(TASKD_\w+): (.+)$", text, re.MULTILINE)
    }
    assert "$" not in "".join(environ.values())
    (tmp_path / "taskd.toml").write_text("")
    config = load_config(tmp_path / "taskd.toml", environ)
    check_urls(config)
    store = parse_mysql_url(config.store.url)
    bus = parse_redis_url(config.bus.url)
    lookupd = [address.host for address in parse_nsq_url(config.queue.url).lookupds]
    assert {store.host, bus.host, *lookupd} <= set(compose_services())
    assert store.password == bus.password == config.auth.admin_secret == _SECRET
    assert config.server.host == "0.0.0.0"


def test_the_proxy_knows_the_nodes_and_asks_them_whether_they_are_ready() -> None:
    text = (CLUSTER / "haproxy.cfg").read_text()
    port = Config().server.port
    assert re.findall(r"^ +server (\S+) (\S+)$", text, re.MULTILINE) == [
        (name, f"{name}:{port}") for name in _NODES
    ]
    assert "option httpchk GET /readyz" in text
    (bound,) = re.findall(r"^ +bind :(\d+)$", text, re.MULTILINE)
    assert f'ports: ["127.0.0.1:{port}:{bound}"]' in compose_services()["proxy"]


def test_the_image_is_built_from_what_is_there() -> None:
    text = (CLUSTER / "Dockerfile").read_text()
    for sources in re.findall(r"^COPY (?!--)(.+) \S+$", text, re.MULTILINE):
        for source in sources.split():
            assert (ROOT / source).exists(), source
    project = (ROOT / "pyproject.toml").read_text()
    assert re.search(r"^cluster = \[", project, re.MULTILINE), "there is no extra `cluster`"
    assert "/src[cluster]" in text


def test_the_nodes_configuration_is_one(tmp_path: Path) -> None:
    (tmp_path / "taskd.toml").write_text((CLUSTER / "taskd.toml").read_text())
    (tmp_path / "taskd.toml").chmod(0o600)
    credential = tmp_path / "admin_secret"
    credential.write_text(f"{_SECRET}\n")
    credential.chmod(0o600)
    config = load_config(tmp_path / "taskd.toml", unit_environ(tmp_path))
    check_urls(config)
    assert config.auth.admin_secret == _SECRET
    assert config.server.port == 9502
    assert config.log.format == "json"
    assert parse_mysql_url(config.store.url).tls
    assert parse_redis_url(config.bus.url).tls


def unit_environ(credentials: Path) -> dict[str, str]:
    """The variables that the unit sets, of its instance for port 9502."""
    unit = (CLUSTER / "taskd@.service").read_text()
    assignments = re.findall(r"^Environment=(\w+)=(.*)$", unit, re.MULTILINE)
    return {
        name: value.replace("%d", str(credentials)).replace("%i", "9502")
        for name, value in assignments
    }


def test_the_unit_hands_over_the_files_that_the_configuration_names() -> None:
    unit = (CLUSTER / "taskd@.service").read_text()
    assert "serve --config %d/taskd.toml" in unit
    handed_over = re.findall(r"^LoadCredential=(\S+):/etc/taskd/(\S+)$", unit, re.MULTILINE)
    assert handed_over == [("taskd.toml", "taskd.toml"), ("admin_secret", "admin_secret")]


def test_the_units_are_started_again_and_read_again() -> None:
    for unit in (CLUSTER / "taskd@.service", ROOT / "examples" / "taskd.service"):
        lines = unit.read_text().splitlines()
        assert "Restart=always" in lines
        assert "ExecReload=/bin/kill -HUP $MAINPID" in lines
        assert "KillMode=mixed" in lines


def test_docker_has_the_patience_that_a_stop_takes() -> None:
    assert Config().server.drain_timeout + END_S < 10
    assert "stop_grace_period" not in (CLUSTER / "compose.yaml").read_text()


def test_the_images_keep_signals_until_they_can_be_heard() -> None:
    page = (ROOT / "docs" / "how-to" / "run-in-a-container.md").read_text()
    for text in (page, (CLUSTER / "Dockerfile").read_text()):
        (entry,) = re.findall(r"^ENTRYPOINT (.*)$", text, re.MULTILINE)
        assert entry == '["env", "--block-signal=TERM,INT,HUP", "/opt/taskd/bin/taskd"]'


def test_both_units_are_hardened_in_the_same_way() -> None:
    def hardening(path: Path) -> str:
        return path.read_text()[path.read_text().index("CapabilityBoundingSet=") :]

    assert hardening(CLUSTER / "taskd@.service") == hardening(ROOT / "examples" / "taskd.service")


@pytest.mark.parametrize("name", ["compose.yaml", "taskd@.service", "README.md"])
def test_what_is_not_run_says_so(name: str) -> None:
    text = (CLUSTER / name).read_text().lower()
    assert "not run in our ci" in " ".join(text.replace("**", "").replace("#", " ").split())


def test_the_reference_names_every_part_of_the_urls_and_no_other() -> None:
    page = (ROOT / "docs" / "reference" / "configuration.md").read_text()
    chapters = dict(re.findall(r"^### (\w+)\n(.*?)(?=^### |\Z)", page, re.MULTILINE | re.DOTALL))
    base = {
        "mysql": "mysql://u:p@h/d",
        "nsq": "nsq://h",
        "redis": "rediss://h",
    }
    parse = {"mysql": parse_mysql_url, "nsq": parse_nsq_url, "redis": parse_redis_url}
    here = str(Path(__file__))
    values = {"tls": "true", "lookupd": "h", "prefix": "p", "topic": "t", "channel": "c"}
    assert chapters.keys() == base.keys()
    for scheme, text in chapters.items():
        rows = re.findall(r"^\| (`.+?) \|", text, re.MULTILINE)
        options = [name for row in rows for name in re.findall(r"`([a-z_]+)`", row)]
        options = [name for name in options if name != "rediss"]
        query = "&".join(f"{name}={values.get(name, here)}" for name in options)
        parse[scheme](f"{base[scheme]}?{query}")
        # What else is known is told where an option is not.
        with pytest.raises(InvalidInput) as refused:
            parse[scheme](f"{base[scheme]}?{query}&nonsense=1")
        told = str(refused.value).partition("stand" if scheme == "mysql" else "known are")[2]
        known = set(re.findall(r"[a-z_]+", told)) - {"and", "once", "each", "nothing", "else"}
        assert known == set(options), scheme


def test_the_pages_show_urls_that_can_be_read() -> None:
    seen = set()
    for page in [*(ROOT / "docs").rglob("*.md"), CLUSTER / "taskd.toml"]:
        for url in re.findall(r'"((?:mysql|nsq|rediss?)://[^"…]+)"', page.read_text()):
            if "HOST" not in url:
                scheme = url.partition(":")[0]
                {"mysql": parse_mysql_url, "nsq": parse_nsq_url}.get(scheme, parse_redis_url)(url)
                seen.add(scheme)
    assert seen == {"mysql", "nsq", "rediss"}

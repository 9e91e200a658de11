"""The commands in this process, against a stand-in for the daemon."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import Result

from taskd.cli import cli
from taskd.cli.credentials import StoredApp, add_app, read_apps
from taskd.domain import signing
from taskd.errors import ConfigError
from taskd.runtime import interpreter
from tests.support.commands import invoke
from tests.support.scripted_api import Script, answering

_SECRET = "0123456789abcdef0123456789abcdef"
_SUBMIT = ("task", "submit", "--task-no", "1", "--name", "n", "--content", "1", "--timeout", "5")


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def url(script: Script) -> Iterator[str]:
    with answering(script) as url:
        yield url


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user with nothing of taskd's set."""
    for name in [name for name in os.environ if name.startswith("TASKD_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TASKD_CREDENTIALS", str(tmp_path / "c" / "credentials.toml"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def as_app(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user whose environment names the daemon and an application."""
    monkeypatch.setenv("TASKD_URL", url)
    monkeypatch.setenv("TASKD_APP_KEY", "an-app")
    monkeypatch.setenv("TASKD_SECRET_KEY", _SECRET)


def run(*arguments: str, stdin: str = "") -> Result:
    return invoke(*arguments, stdin=stdin)


def refusal(code: int, *arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert "internal error" not in line
    return line


def stored(home: Path) -> list[StoredApp]:
    return read_apps(home / "c" / "credentials.toml")


def keep(home: Path, url: str, *names: str) -> None:
    for name in names:
        app = StoredApp(url=url, name=name, app_key=f"key-of-{name}", secret_key=f"{name}-secret")
        add_app(home / "c" / "credentials.toml", app)


def signed_by(script: Script) -> str:
    """The key of the last request, whose signature holds."""
    headers = script.seen[-1].headers
    signed = (headers["timestamps"], headers["nonce"], headers["payload"])
    key = headers["app-key"]
    secret = _SECRET if key == "an-app" else f"{key.removeprefix('key-of-')}-secret"
    assert headers["signature"] == signing.sign(secret, *signed)
    return key


_CREATE = ("app", "create", "--name", "shop", "--link-url", "http://h/")


def create_app(monkeypatch: pytest.MonkeyPatch, script: Script, url: str) -> tuple[str, ...]:
    script.envelope(0, "Ok!", {"appKey": "key-of-shop", "secretKey": "shop-secret"})
    monkeypatch.setenv("TASKD_ADMIN_SECRET", "admin-secret")
    return (*_CREATE, "--url", url)


def test_a_new_applications_keys_are_shown_and_kept(
    monkeypatch: pytest.MonkeyPatch, script: Script, url: str, home: Path
) -> None:
    result = run(*create_app(monkeypatch, script, url))
    assert result.exit_code == 0
    assert "shop-secret" in result.stdout
    path = home / "c" / "credentials.toml"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    (app,) = stored(home)
    assert (app.url, app.name, app.app_key) == (url, "shop", "key-of-shop")
    assert "shop-secret" not in repr(app)
    assert script.seen[0].headers["app-key"] == "admin"


def test_keys_that_cannot_be_kept_are_shown_all_the_same(
    monkeypatch: pytest.MonkeyPatch, script: Script, url: str, home: Path
) -> None:
    def fail(_path: Path, _app: StoredApp) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("taskd.cli.apps.add_app", fail)
    result = run(*create_app(monkeypatch, script, url))
    assert result.exit_code == 1
    assert "shop-secret" in result.stdout
    assert "No space left on device" in result.stderr
    assert "shop-secret" not in result.stderr


def test_keys_that_cannot_be_shown_are_kept_all_the_same(
    monkeypatch: pytest.MonkeyPatch, script: Script, url: str, home: Path
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("taskd.cli.apps._show", fail)
    assert run(*create_app(monkeypatch, script, url)).exit_code == 1
    assert [app.secret_key for app in stored(home)] == ["shop-secret"]


@pytest.mark.parametrize("secret", ["plain", "a'b\"c $(id) `id` \\ *", "-n", "é ü", "two\nlines"])
def test_new_keys_reach_a_shell_as_they_are(
    monkeypatch: pytest.MonkeyPatch, script: Script, url: str, home: Path, secret: str
) -> None:
    script.envelope(0, "Ok!", {"appKey": "key", "secretKey": secret})
    monkeypatch.setenv("TASKD_ADMIN_SECRET", "admin-secret")
    result = run(*_CREATE, "--url", url, "--env")
    assert result.exit_code == 0
    assert [app.secret_key for app in stored(home)] == [secret]
    shown = 'set -eu; eval "$1"; printf "%s\\0" "$TASKD_URL" "$TASKD_APP_KEY" "$TASKD_SECRET_KEY"'
    shell = subprocess.run(
        ["sh", "-c", f'{shown}; export -p | grep -c "^export TASKD_"', "sh", result.stdout],
        env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
        capture_output=True,
        check=True,
    )
    *values, exported = shell.stdout.decode().split("\0")
    assert values == [url, "key", secret]
    assert exported.strip() == "3"


def test_a_shell_evaluates_nothing_where_an_application_is_refused(
    monkeypatch: pytest.MonkeyPatch, script: Script, url: str, home: Path
) -> None:
    script.envelope(401, "no", [])
    monkeypatch.setenv("TASKD_ADMIN_SECRET", "admin-secret")
    refusal(1, *_CREATE, "--url", url, "--env")


def test_lines_for_a_shell_are_no_json(script: Script, url: str, home: Path) -> None:
    result = run(*_CREATE, "--url", url, "--env", "--json")
    assert result.exit_code == 2
    assert "--env and --json" in result.stderr
    assert script.seen == []


def test_a_broken_credentials_file_is_told_before_an_application_is_made(
    monkeypatch: pytest.MonkeyPatch, script: Script, url: str, home: Path
) -> None:
    path = home / "c" / "credentials.toml"
    path.parent.mkdir()
    path.write_text("app = 1\n")
    assert "not a credentials file" in refusal(1, *create_app(monkeypatch, script, url))
    assert script.seen == []
    assert path.read_text() == "app = 1\n"


def test_credentials_of_many_at_once_are_all_kept(home: Path) -> None:
    path = home / "c" / "credentials.toml"
    threads = [
        threading.Thread(target=keep, args=(home, "http://h", f"app-{number}"))
        for number in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {app.name for app in read_apps(path)} == {f"app-{number}" for number in range(20)}
    assert {entry.name for entry in path.parent.iterdir()} == {path.name, f"{path.name}.lock"}


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a\nb", "名前", "a\x7fb", "'''"])
def test_any_name_can_be_kept(home: Path, name: str) -> None:
    keep(home, "http://h", name)
    assert [app.name for app in stored(home)] == [name]


def test_a_credentials_file_that_cannot_be_replaced_is_left_as_it_is(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(home, "http://h", "first")

    def fail(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        keep(home, "http://h", "second")
    assert [app.name for app in stored(home)] == ["first"]
    assert not list((home / "c").glob(".credentials-*"))


def test_the_keys_of_the_daemon_that_is_called_are_used_the_newest_first(
    script: Script, url: str, home: Path
) -> None:
    keep(home, url, "old", "new")
    keep(home, "http://another", "of-another")
    script.envelope(0, "ok!", {"taskId": 1, "coroutine_id": 1})
    assert run(*_SUBMIT, "--url", f"{url}/").exit_code == 0
    assert signed_by(script) == "key-of-new"
    for chosen in ("old", "key-of-old"):
        assert run(*_SUBMIT, "--url", url, "--app", chosen).exit_code == 0
        assert signed_by(script) == "key-of-old"
    told = refusal(2, *_SUBMIT, "--url", url, "--app", "of-another")
    assert f"no application 'of-another' of {url} is stored here, but new, old" in told
    assert "one of this name is of http://another: say which by --url" in told


def test_which_of_several_applications_is_used_is_told(
    script: Script, url: str, home: Path
) -> None:
    script.envelope(0, "ok!", {"taskId": 1, "coroutine_id": 1})
    keep(home, url, "one")
    keep(home, "http://another", "of-another")
    assert run(*_SUBMIT, "--url", url).stderr == ""
    keep(home, url, "two", "three")
    result = run(*_SUBMIT, "--url", url, "--json")
    assert signed_by(script) == "key-of-three"
    assert result.stderr.startswith("using the application three (key-of-three), created last; ")
    assert result.stderr.endswith("; --app chooses another: two, one\n")
    assert json.loads(result.stdout) == {"taskId": 1, "coroutine_id": 1}
    for chosen in ("one", "key-of-two"):
        assert run(*_SUBMIT, "--url", url, "--app", chosen).stderr == ""
    keep(home, url, *(f"app-{number}" for number in range(10)))
    assert "app-8, app-7, app-6, app-5, app-4 and 7 more" in run(*_SUBMIT, "--url", url).stderr


def test_a_name_that_two_applications_have_is_ambiguous(
    script: Script, url: str, home: Path
) -> None:
    script.envelope(0, "ok!", {"taskId": 1, "coroutine_id": 1})
    path = home / "c" / "credentials.toml"
    for app_key in ("first", "second"):
        app = StoredApp(url=url, name="shop", app_key=app_key, secret_key=f"{app_key}-secret")
        add_app(path, app)
    told = refusal(2, *_SUBMIT, "--url", url, "--app", "shop")
    assert f"2 applications of {url} have the name 'shop'" in told
    assert told.endswith("the newest first: second, first")
    assert script.seen == []
    assert run(*_SUBMIT, "--url", url, "--app", "first").exit_code == 0
    assert script.seen[-1].headers["app-key"] == "first"
    # A key is never ambiguous, whatever others are called.
    add_app(path, StoredApp(url=url, name="first", app_key="third", secret_key="x"))
    assert run(*_SUBMIT, "--url", url, "--app", "first").exit_code == 0
    assert script.seen[-1].headers["app-key"] == "first"
    # Nor is one application that is stored twice.
    again = StoredApp(url=url, name="once", app_key="fourth", secret_key="y")
    add_app(path, again)
    add_app(path, again)
    assert run(*_SUBMIT, "--url", url, "--app", "once").exit_code == 0


def test_the_urls_that_are_stored_are_listed_where_one_is_not(home: Path) -> None:
    keep(home, "http://one", "a")
    keep(home, "https://two", "b", "c")
    told = refusal(2, *_SUBMIT, "--url", "http://127.0.0.1:9")
    assert told.startswith("Error: no application of http://127.0.0.1:9 is stored here; ")
    assert "those stored are of https://two, http://one: say which by --url" in told


def completed(*words: str) -> list[str]:
    """What a shell is offered for the last of these words."""
    *before, incomplete = words
    completion = ShellComplete(cli, {}, "taskd", "_TASKD_COMPLETE")
    return [str(item.value) for item in completion.get_completions(before, incomplete)]


def test_a_shell_completes_applications(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKD_URL", "http://h")
    ask = ("task", "detail", "--app")
    assert completed(*ask, "s") == []
    keep(home, "http://h", "shop", "stock", "two words", "other")
    keep(home, "http://another", "second")
    add_app(
        home / "c" / "credentials.toml",
        StoredApp(url="http://h", name="other", app_key="k2", secret_key="x"),
    )
    assert completed(*ask, "s") == ["stock", "shop"]
    # A name that is not enough, or that a shell would take apart, is offered as its key.
    assert completed(*ask, "") == ["k2", "key-of-other", "key-of-two words", "stock", "shop"]
    assert completed(*ask, "key-of-s") == ["key-of-stock", "key-of-shop"]
    assert completed("task", "submit", "--url", "http://another", "--app", "s") == ["second"]
    (home / "c" / "credentials.toml").write_text("broken")
    assert completed(*ask, "s") == []
    (home / "taskd.toml").write_text("broken")
    monkeypatch.delenv("TASKD_URL")
    assert completed(*ask, "s") == []


def test_the_environment_beats_the_kept_and_an_option_beats_both(
    script: Script, url: str, home: Path, as_app: None
) -> None:
    keep(home, url, "kept", "other")
    (home / "secret").write_text("other-secret\n")
    script.envelope(0, "ok!", {"taskId": 1, "coroutine_id": 1})
    assert run(*_SUBMIT).exit_code == 0
    assert signed_by(script) == "an-app"
    assert run(*_SUBMIT, "--app", "kept").exit_code == 0
    assert signed_by(script) == "key-of-kept"
    # The kept secret of this key is found; the environment's is another's.
    assert run(*_SUBMIT, "--app-key", "key-of-kept").exit_code == 0
    assert signed_by(script) == "key-of-kept"
    options = ("--app-key", "key-of-other", "--secret-key-file", "secret")
    assert run(*_SUBMIT, *options).exit_code == 0
    assert signed_by(script) == "key-of-other"


def test_keys_that_are_missing_are_told(url: str, home: Path) -> None:
    told = refusal(2, *_SUBMIT, "--url", url)
    assert "taskd app create" in told
    assert "TASKD_APP_KEY" in told
    assert "--secret-key-file" in refusal(2, *_SUBMIT, "--url", url, "--app-key", "k")
    assert "TASKD_ADMIN_SECRET" in refusal(
        2, "app", "create", "--name", "n", "--link-url", "http://h/", "--url", url
    )
    assert "not both" in refusal(2, *_SUBMIT, "--app", "a", "--app-key", "b")
    (home / "secret").write_text("a\nb\n")
    options = ("--url", url, "--app-key", "k", "--secret-key-file", "secret")
    assert "one line" in refusal(2, *_SUBMIT, *options)
    (home / "secret").write_bytes(b"hunter2\xff")
    assert "not UTF-8" in refusal(2, *_SUBMIT, *options)


@pytest.mark.parametrize(
    ("config", "url"),
    [
        ("", "http://127.0.0.1:9502"),
        ("port = 1", "http://127.0.0.1:1"),
        ("port = 0", "http://127.0.0.1:9502"),
        ('host = "0.0.0.0"', "http://127.0.0.1:9502"),
        ('host = "::"', "http://[::1]:9502"),
        ('host = "taskd.internal"\nport = 80', "http://taskd.internal"),
        ('tls_cert = "taskd.toml"\ntls_key = "taskd.toml"', "https://127.0.0.1:9502"),
    ],
)
def test_the_daemon_is_found_where_the_config_file_says(home: Path, config: str, url: str) -> None:
    (home / "taskd.toml").write_text(f"[server]\n{config}\n")
    assert f" of {url} is stored" in refusal(2, *_SUBMIT)


def test_the_administrators_secret_is_found_in_the_config_file(
    script: Script, url: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = create_app(monkeypatch, script, url)
    monkeypatch.delenv("TASKD_ADMIN_SECRET")
    path = home / "taskd.toml"
    path.write_text('[auth]\nadmin_key = "boss"\nadmin_secret = "boss-secret-of-config"\n')
    assert run(*create).exit_code == 0
    headers = script.seen[-1].headers
    signed = (headers["timestamps"], headers["nonce"], headers["payload"])
    assert headers["app-key"] == "boss"
    assert headers["signature"] == signing.sign("boss-secret-of-config", *signed)


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ('{"a": 1.0, "b": 1e400}', '{"a": 1.0, "b": 1e400}'),
        (" [1]\n", " [1]\n"),
        ('"文"', '"文"'),
        ("null", "null"),
    ],
)
def test_content_is_sent_as_the_text_it_is(
    script: Script, as_app: None, given: str, sent: str
) -> None:
    script.envelope(0, "ok!", {"taskId": 1, "coroutine_id": 1})
    assert run(*_SUBMIT, "--content", given).exit_code == 0  # the last one counts
    assert json.loads(script.seen[-1].body)["content"] == sent


@pytest.mark.parametrize("given", ["-", "@-"])
def test_content_may_come_from_standard_input(script: Script, as_app: None, given: str) -> None:
    script.envelope(0, "ok!", {"taskId": 1, "coroutine_id": 1})
    assert run(*_SUBMIT, "--content", given, stdin="[7]").exit_code == 0
    assert json.loads(script.seen[-1].body)["content"] == "[7]"


@pytest.mark.parametrize(
    ("option", "field"), [("--task-no", "taskNo"), ("--name", "name"), ("--runtime", "runtime")]
)
def test_an_argument_in_another_encoding_is_named(
    script: Script, as_app: None, option: str, field: str
) -> None:
    """Python reads a byte that is no UTF-8, here 0xFF, as a lone surrogate."""
    told = refusal(2, *_SUBMIT, option, "b\udcff")
    assert told == f"Error: {field}: must be text that UTF-8 can carry"
    assert script.seen == []


def test_why_keys_could_not_be_stored_is_told_without_numbers(
    script: Script, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TASKD_URL", url)
    monkeypatch.setenv("TASKD_ADMIN_SECRET", _SECRET)
    monkeypatch.setenv("TASKD_CREDENTIALS", "/proc/none/credentials.toml")
    script.envelope(0, "Ok!", {"appKey": "k" * 16, "secretKey": _SECRET})
    result = run("app", "create", "--name", "n", "--link-url", "http://127.0.0.1:9/")
    assert (result.exit_code, "k" * 16 in result.stdout) == (1, True)
    assert "credentials.toml: No such file or directory; keep those printed above" in result.stderr


@pytest.mark.parametrize("command", ["backup", "restore"])
def test_a_backup_is_no_stream(home: Path, command: str) -> None:
    assert "no standard input or output" in refusal(2, command, "-")
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("content", ["", "{", "NaN", "[Infinity]", "{'a': 1}", "1 2", "-1-"])
def test_content_that_is_no_json_is_refused_here(
    script: Script, as_app: None, content: str
) -> None:
    assert "--content: must be JSON text" in refusal(2, *_SUBMIT, "--content", content)
    assert script.seen == []


@pytest.mark.parametrize(
    "options",
    [
        ("--content", "@{}"),
        ("--app-key", "k", "--secret-key-file", "{}"),
        ("--config", "{}"),
    ],
)
@pytest.mark.parametrize("there", [False, True])
def test_a_file_that_is_missing_or_can_not_be_read_is_told_alike(
    script: Script,
    as_app: None,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    options: tuple[str, ...],
    there: bool,
) -> None:
    path = home / "file"
    if there:
        path.mkdir()
    if "--config" in options:
        monkeypatch.delenv("TASKD_URL")
    told = refusal(1, *_SUBMIT, *(option.format(path) for option in options))
    assert str(path) in told
    assert ("Is a directory" if there else "No such file or directory") in told
    assert script.seen == []


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("1700000000", 1_700_000_000),
        ("1700000000.25", 1_700_000_000.25),
        ("2030-01-02 03:04:05", "2030-01-02 03:04:05"),
        ("2030-01-02T03:04:05+08:00", "2030-01-02T03:04:05+08:00"),
        ("tomorrow", "tomorrow"),
        ("-5", -5),
        ("1700000000000", 1_700_000_000_000),
        ("1700000000.1234567", 1_700_000_000.124),
    ],
)
def test_a_runtime_is_sent_in_the_protocols_forms(
    script: Script, as_app: None, given: str, sent: object
) -> None:
    """What it means, and whether it is one, the daemon decides."""
    script.envelope(0, "ok!", {"taskId": 1, "coroutine_id": 1})
    assert run(*_SUBMIT, "--runtime", given).exit_code == 0
    assert json.loads(script.seen[-1].body)["runtime"] == sent


@pytest.mark.parametrize(
    ("given", "sent"),
    [("30m", "30m"), ("1h30m", "1h30m"), ("90", 90), ("0.5", 0.5), ("-5", -5), ("soon", "soon")],
)
def test_a_delay_is_sent_in_place_of_a_runtime(
    script: Script, as_app: None, given: str, sent: object
) -> None:
    due = "2030-01-01T00:30:00.000Z"
    script.envelope(0, "ok!", {"taskId": 1, "coroutine_id": 1, "dueAt": due})
    result = run(*_SUBMIT, "--in", given)
    assert result.stdout == f"task 1 submitted, due {due}\n"
    body = json.loads(script.seen[-1].body)
    assert body["delay"] == sent
    assert "runtime" not in body
    told = refusal(2, *_SUBMIT, "--in", given, "--runtime", "2030-01-01 00:00:00")
    assert "either --runtime or --in" in told
    assert "--from can't be given together with --in" in refusal(
        2, "task", "submit", "--from", "-", "--in", given
    )


_NAMED = [
    (("42",), {"taskId": 42}),
    (("9007199254740991",), {"taskId": 9007199254740991}),
    (("order-1234",), {"taskNo": "order-1234"}),
    (("4_2",), {"taskNo": "4_2"}),
    (("٤٢",), {"taskNo": "٤٢"}),
    (("+1",), {"taskNo": "+1"}),
    (("1.0",), {"taskNo": "1.0"}),
    (("--", "-1"), {"taskNo": "-1"}),
    (("订单 1",), {"taskNo": "订单 1"}),
    (("--task-no", "42"), {"taskNo": "42"}),
    (("--task-no", "007"), {"taskNo": "007"}),
    (("--task-no=-1",), {"taskNo": "-1"}),
    (("--task-no", "9007199254740992"), {"taskNo": "9007199254740992"}),
]


@pytest.mark.parametrize(("given", "sent"), _NAMED)
def test_a_task_is_named_by_its_number_or_by_its_task_no(
    script: Script, as_app: None, given: tuple[str, ...], sent: dict[str, object]
) -> None:
    script.envelope(0, "ok!", detail_of("succeeded", taskId=7))
    for options in ((), ("--watch",)):
        assert run("task", "detail", *options, *given).exit_code == 0
        assert json.loads(script.seen[-1].body) == sent
    answer = {"coroutine_id": 7, "state": "cancelled", "delivery": "never_sent"}
    script.envelope(0, "ok!", answer)
    result = run("task", "cancel", *given)
    assert json.loads(script.seen[-1].body) == sent
    assert result.stdout == "task 7 cancelled, never_sent: nothing was ever sent\n"


@pytest.mark.parametrize("given", ["0", "007", "9007199254740992", "1" * 5000])
def test_what_looks_like_a_number_and_is_none_is_refused_here(
    script: Script, as_app: None, given: str
) -> None:
    for command in ("cancel", "detail"):
        assert "if it is a taskNo, say --task-no" in refusal(2, "task", command, given)
        assert "or '--task-no'" in refusal(2, "task", command)
        assert "not both" in refusal(2, "task", command, "1", "--task-no", "1")
    assert script.seen == []


def test_a_task_that_is_not_there_is_told_by_the_name_it_was_given(
    script: Script, as_app: None
) -> None:
    script.envelope(1, "Unknown!", [])
    assert "task no-\\u001b1 is unknown to this" in refusal(1, "task", "cancel", "no-\x1b1")
    script.envelope(0, "ok!", {"state": None, "trace_list": "null"})
    assert refusal(1, "task", "detail", "--task-no", "42").endswith("task 42 of this application")
    assert refusal(1, "task", "detail", "n1", "--watch").endswith("no task n1 of this application")


def test_a_number_that_no_task_has_may_have_been_meant_as_a_task_no(
    script: Script, as_app: None
) -> None:
    told = ": if 42 is a taskNo, say --task-no 42"
    script.envelope(1, "Unknown!", [])
    assert refusal(1, "task", "cancel", "42").endswith(f"or it has ended{told}")
    script.envelope(0, "ok!", {"state": None, "trace_list": "null"})
    assert refusal(1, "task", "detail", "42").endswith(f"no task 42 of this application{told}")
    assert refusal(1, "task", "detail", "42", "--watch").endswith(told)


def test_a_task_that_is_watched_by_its_task_no_is_followed_by_its_number(
    script: Script, as_app: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A taskNo may be another task's by the next look."""
    states = iter(["running", "succeeded"])
    asked: list[dict[str, object]] = []

    def detail(_self: object, **name: object) -> dict[str, Any]:
        asked.append({key: value for key, value in name.items() if value is not None})
        return detail_of(next(states), taskId=7)

    monkeypatch.setattr("taskd.client.Client.detail", detail)
    assert run("task", "detail", "order-7", "--watch").exit_code == 0
    assert asked == [{"task_no": "order-7"}, {"task_id": 7}]


def test_a_task_no_that_is_taken_is_told_with_the_task_that_has_it(
    script: Script, as_app: None
) -> None:
    script.envelope(1, "请勿重复提交!", [])
    assert refusal(1, *_SUBMIT).endswith("there is a task 1 already (请勿重复提交!)")
    script.headers["Taskd-Existing"] = "42 succeeded"
    told = refusal(1, *_SUBMIT)
    assert told.endswith("there is a task 1 already: task 42, succeeded (请勿重复提交!)")


@pytest.mark.parametrize(
    ("code", "msg"),
    [
        (1, "请勿重复提交!"),
        (401, "unknown app_key or signature"),
        (422, "name: too long"),
        (503, "draining"),
        (500, "internal error of request 1f"),
    ],
)
def test_a_refusal_is_one_line_and_exit_code_1(
    script: Script, as_app: None, code: int, msg: str
) -> None:
    script.envelope(code, msg, [])
    result = run(*_SUBMIT)
    assert result.exit_code == 1
    assert msg in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""


def test_keys_that_are_refused_are_named_with_their_source(
    script: Script, url: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script.envelope(401, "signature: does not match", [])
    keep(home, url, "shop")
    monkeypatch.setenv("TASKD_URL", url)
    kept = home / "c" / "credentials.toml"
    assert f"(signed with the keys of key-of-shop, from {kept})" in refusal(1, *_SUBMIT)
    monkeypatch.setenv("TASKD_APP_KEY", "an-app")
    monkeypatch.setenv("TASKD_SECRET_KEY", _SECRET)
    told = refusal(1, *_SUBMIT)
    assert "(signed with the keys of an-app, from TASKD_SECRET_KEY)" in told
    assert _SECRET not in told
    script.envelope(422, "name: too long", [])
    assert "signed with" not in refusal(1, *_SUBMIT)


def test_a_url_that_is_none_is_told_with_its_source(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Error: --url: must be http://" in refusal(2, *_SUBMIT, "--url", "localhost:9502")
    monkeypatch.setenv("TASKD_URL", "localhost:9502")
    assert "Error: TASKD_URL: must be http://" in refusal(2, *_SUBMIT)


def test_https_to_a_daemon_without_tls_is_told(url: str) -> None:
    asked = ("--url", url.replace("http://", "https://"), "--app-key", "k")
    (secret := Path("secret")).write_text(_SECRET)
    told = refusal(3, *_SUBMIT, *asked, "--secret-key-file", str(secret))
    assert "does not speak TLS" in told


def test_text_from_elsewhere_cannot_steer_the_terminal(script: Script, as_app: None) -> None:
    hostile = "a\x1b]0;title\x07\nError: forged\u202e"
    script.envelope(422, hostile, [])
    result = run(*_SUBMIT)
    assert len(result.stderr.splitlines()) == 1
    script.envelope(0, "ok!", detail_of("succeeded", name=hostile))
    shown = run("task", "detail", "1")
    printed = run("task", "detail", "1", "--json")
    for text in (result.stderr, shown.stdout, printed.stdout):
        assert not {"\x1b", "\x07", "\u202e"} & set(text)
        assert "Error: forged" not in text.splitlines()
    assert json.loads(printed.stdout)["task"]["name"] == hostile


def detail_of(state: str, **task: object) -> dict[str, Any]:
    known: dict[str, Any] = {
        "taskId": 1,
        "taskNo": "no-1",
        "name": "n",
        "state": state,
        "phase": None,
        "runtime": "2030-01-01T00:00:00.000Z",
        "timeout": 5,
        "attempt": 0,
        "retryTotal": 3,
        "createdAt": "2030-01-01T00:00:00.000Z",
        "finishedAt": None,
        "attempts": [],
    }
    return {"state": state, "trace_list": "null", "task": known | task}


@pytest.mark.parametrize(("state", "code"), [("succeeded", 0), ("failed", 1), ("cancelled", 1)])
def test_waiting_ends_with_the_task(
    script: Script, as_app: None, state: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter(["scheduled", "running", "retrying", state])

    def detail(*_: object, **__: object) -> dict[str, Any]:
        return detail_of(next(looks))

    monkeypatch.setattr("taskd.client.Client.detail", detail)
    script.envelope(0, "ok!", {"taskId": 1, "coroutine_id": 1})
    result = run(*_SUBMIT, "--wait")
    assert result.exit_code == code
    told = [f"task 1 {word}" for word in ("scheduled", "running", "retrying", state)]
    assert result.stdout.splitlines() == told
    assert "\x1b" not in result.stdout


def test_waiting_outlasts_a_restart_of_the_daemon(
    script: Script, as_app: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Script.envelope
    script.envelope(0, "ok!", {"taskId": 1, "coroutine_id": 1})
    answers = iter([(503, "draining", []), (0, "ok!", detail_of("succeeded"))])

    def pause(_seconds: float) -> None:
        real(script, *next(answers))

    monkeypatch.setattr("taskd.cli.follow.time.sleep", pause)
    script.envelope(0, "ok!", {"coroutine_id": 1, **detail_of("running")})
    result = run(*_SUBMIT, "--wait")
    assert result.exit_code == 0
    assert "draining; trying again" in result.stderr


def test_a_daemon_that_stays_gone_ends_the_waiting(
    script: Script, as_app: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskd.cli.follow.PATIENCE_S", 0.2)
    script.envelope(503, "draining", [])
    result = run("task", "detail", "1", "--watch")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == "Error: draining"


def test_a_task_that_is_unknown_is_told(script: Script, as_app: None) -> None:
    unknown = {"state": None, "trace_list": "null"}
    script.envelope(0, "ok!", unknown)
    assert "no task 7" in refusal(1, "task", "detail", "7")
    assert "no task 7" in refusal(1, "task", "detail", "7", "--watch")
    result = run("task", "detail", "7", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout) == unknown


def test_a_live_task_is_shown_with_its_stack(script: Script, as_app: None) -> None:
    frames = [{"file": "taskd/delivery/attempt.py", "line": 7, "function": "deliver"}]
    live = detail_of("running", phase="awaiting_response") | {
        "trace_list": json.dumps(frames),
        "elapsed": 12,
        "round": 3,
        "vars": {"attempt": 1},
    }
    script.envelope(0, "ok!", live)
    shown = run("task", "detail", "1").stdout
    assert "running, awaiting_response" in shown
    assert "taskd/delivery/attempt.py:7 deliver" in shown
    assert "attempt = 1" in shown


_ATTEMPT = {
    "attempt": 1,
    "startedAt": "2030-01-01T00:00:00.020Z",
    "endedAt": "2030-01-01T00:00:00.041Z",
    "outcome": "rejected",
    "httpStatus": 500,
    "response": "out of\n\x1b[2Jstock\ufeff \u202e\x9b\u00a0😀\U000e0001",
    "error": "the application answered with status 500",
}


def shown(script: Script, state: str, **task: object) -> list[str]:
    """The lines of a task's detail."""
    script.envelope(0, "ok!", detail_of(state, **task))
    result = run("task", "detail", "1")
    assert result.exit_code == 0
    return result.stdout.splitlines()


def test_every_attempt_is_shown_with_its_times_its_error_and_the_receivers_answer(
    script: Script, as_app: None
) -> None:
    gone = _ATTEMPT | {
        "attempt": 2,
        "outcome": "unreachable",
        "httpStatus": None,
        "response": None,
        "error": "no connection",
    }
    well = _ATTEMPT | {"attempt": 3, "httpStatus": 200, "outcome": "succeeded", "error": None}
    attempts = [_ATTEMPT, gone, well | {"response": "success"}]
    lines = shown(script, "succeeded", attempts=attempts)
    assert lines[-10:] == [
        "  attempt 1 rejected, HTTP 500",
        "    2030-01-01T00:00:00.020Z to 2030-01-01T00:00:00.041Z",
        "    the application answered with status 500",
        r'    answer "out of\n\u001b[2Jstock\ufeff \u202e\u009b\u00a0😀\udb40\udc01"',
        "  attempt 2 unreachable",
        "    2030-01-01T00:00:00.020Z to 2030-01-01T00:00:00.041Z",
        "    no connection",
        "  attempt 3 succeeded, HTTP 200",
        "    2030-01-01T00:00:00.020Z to 2030-01-01T00:00:00.041Z",
        '    answer "success"',
    ]
    assert all(line.isprintable() for line in lines)


def test_a_long_answer_is_shown_in_part(script: Script, as_app: None) -> None:
    (line,) = [
        line
        for line in shown(script, "failed", attempts=[_ATTEMPT | {"response": "<p>" * 1365}])
        if "answer " in line
    ]
    assert line == "    answer " + '"' + "<p>" * 100 + '"… (4095 characters)'


def test_the_url_the_next_attempt_and_the_word_of_a_cancel_are_shown(
    script: Script, as_app: None
) -> None:
    url = "http://127.0.0.1:9000/orders?a=1"
    due = "2030-01-01T00:00:15.000Z"
    lines = shown(
        script, "retrying", attempt=1, attempts=[_ATTEMPT], dueAt=due, linkUrl=url, retryTotal=3
    )
    assert f"  url       {url}" in lines
    assert f"  next      {due}, attempt 2" in lines
    waiting = shown(script, "scheduled", dueAt=due)
    assert f"  next      {due}, attempt 1" in waiting
    ended = shown(script, "succeeded", attempt=1, dueAt=due, finishedAt=due)
    assert f"  due       {due}, since its runtime had passed" in ended
    assert not any("next" in line for line in ended)
    cancelled = shown(script, "cancelled", delivery="never_sent", finishedAt=due)
    assert "  cancelled never_sent: nothing was ever sent" in cancelled
    new_word = shown(script, "cancelled", delivery="half_sent", finishedAt=due)
    assert any("half_sent" in line for line in new_word)


def test_news_of_a_failed_attempt_have_the_receivers_answer(
    script: Script, as_app: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter([detail_of("retrying", attempts=[_ATTEMPT]), detail_of("failed")])
    monkeypatch.setattr("taskd.client.Client.detail", lambda *_, **__: next(looks))
    said = run("task", "detail", "1", "--watch").stdout
    assert said.splitlines()[0].startswith(
        r'attempt 1 rejected, HTTP 500, the application answered with status 500, "out of\n\u001b'
    )


def test_an_error_of_the_program_is_one_line_and_a_traceback_only_with_debug(
    as_app: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr("taskd.client.Client.detail", fail)
    result = run("task", "detail", "1")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        "Error: internal error, --debug shows where: ZeroDivisionError: by zero\n"
    )
    result = run("task", "detail", "1", "--debug")
    assert "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("Error: ")


def test_a_config_file_closed_to_this_user_leaves_the_defaults(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon's user owns it; only where it was named it must be readable."""
    (home / "taskd.toml").write_text("[server]\nport = 1\n")
    monkeypatch.setattr(os, "access", lambda _path, _mode: False)
    result = run(*_SUBMIT)
    assert "taskd.toml is not readable, so the defaults are used" in result.stderr
    assert "http://127.0.0.1:9502" in result.stderr
    monkeypatch.setenv("TASKD_CONFIG", "taskd.toml")
    assert "http://127.0.0.1:1 " in refusal(2, *_SUBMIT)
    assert "not readable" in refusal(2, *_SUBMIT, "--config", "taskd.toml")


def test_check_config_says_where_each_value_came_from(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "taskd.toml").write_text('[auth]\nadmin_secret = "hunter2hunter2hunter2"\n')
    (home / "taskd.toml").chmod(0o644)
    monkeypatch.setenv("TASKD_SERVER_PORT", "7")
    result = run("check-config")
    assert result.exit_code == 0
    assert "would listen on http://127.0.0.1:7" in result.stdout
    assert "port = 7  # TASKD_SERVER_PORT" in result.stdout
    assert "others may read it" in result.stderr
    printed = run("check-config", "--json")
    data = json.loads(printed.stdout)
    assert data["server"]["port"] == 7
    assert data["path"] == str(home / "taskd.toml")
    assert "hunter2" not in result.stdout + result.stderr + printed.stdout + printed.stderr
    assert not (home / "taskd.db").exists()


def test_check_config_refuses_the_files_that_serve_would(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("no.pem", "taskd.db"):
        (home / name).write_text("something else, long enough to be a header\n" * 10)
    monkeypatch.setenv("TASKD_STORE_URL", "sqlite:///taskd.db")
    told = refusal(1, "check-config")
    assert (
        told == f"Error: [store] url: {home}/taskd.db is not a taskd database, it is no SQLite file"
    )
    monkeypatch.setenv("TASKD_STORE_URL", "sqlite:///new.db")
    assert run("check-config").exit_code == 0
    assert not (home / "new.db").exists()
    monkeypatch.setenv("TASKD_DELIVERY_CA_FILE", "no.pem")
    assert "[delivery] ca_file: " in refusal(1, "check-config")
    monkeypatch.delenv("TASKD_DELIVERY_CA_FILE")
    monkeypatch.setenv("TASKD_SERVER_TLS_CERT", "no.pem")
    monkeypatch.setenv("TASKD_SERVER_TLS_KEY", "no.pem")
    assert "[server] tls_cert: " in refusal(1, "check-config")
    monkeypatch.delenv("TASKD_SERVER_TLS_CERT")
    monkeypatch.delenv("TASKD_SERVER_TLS_KEY")
    monkeypatch.setenv("TASKD_DELIVERY_CLIENT_CERT", "no.pem")
    monkeypatch.setenv("TASKD_DELIVERY_CLIENT_KEY", "no.pem")
    assert "[delivery] client_cert: " in refusal(1, "check-config")


def test_check_config_refuses_bounds_that_the_workers_can_not_share(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TASKD_SERVER_WORKERS", "4")
    assert run("check-config").exit_code == 0
    monkeypatch.setenv("TASKD_WORKER_MAX_PER_ORIGIN", "3")
    told = refusal(1, "check-config")
    assert "[worker] max_per_origin: must be at least [server] workers (4)" in told


def test_init_names_a_folder_that_is_not_there(home: Path) -> None:
    assert "there is no folder gone" in refusal(1, "init", "--config", "gone/taskd.toml")


@pytest.mark.parametrize("built", ["without --enable-optimizations", "for debugging", None])
def test_check_config_says_once_that_python_is_slow(
    monkeypatch: pytest.MonkeyPatch, built: str | None
) -> None:
    monkeypatch.setattr(interpreter, "slow_build", lambda: built)
    checked = run("check-config")
    assert checked.exit_code == 0
    told = [] if built is None else [f"warning: {interpreter.SLOW} "]
    assert [line.partition("(")[0] for line in checked.stderr.splitlines()] == told
    assert checked.stderr.count(f"built {built})") == len(told)
    printed = json.loads(run("check-config", "--json").stdout)["warnings"]
    assert [f"warning: {warning}" for warning in printed] == checked.stderr.splitlines()


def test_init_writes_a_file_that_serve_takes(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreter, "slow_build", lambda: None)
    result = run("init", "--config", "other.toml", "--json")
    assert json.loads(result.stdout) == {"path": str(home / "other.toml")}
    checked = run("check-config", "--config", "other.toml")
    assert checked.exit_code == 0
    assert 'admin_secret = "(set)"' in checked.stdout
    assert checked.stderr == ""


def test_init_follows_no_link_and_leaves_no_half_file(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "taskd.toml").symlink_to(home / "elsewhere")
    assert "nothing was changed" in refusal(1, "init")
    assert not (home / "elsewhere").exists()

    def fail(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    assert "No space left on device" in refusal(1, "init", "--config", "new.toml")
    assert not (home / "new.toml").exists()


def commands(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            yield from commands(child, (*path, name))


@pytest.mark.parametrize("path", list(commands(cli)), ids=lambda path: " ".join(("taskd", *path)))
def test_the_example_of_each_help_is_a_command_that_would_be_taken(path: tuple[str, ...]) -> None:
    """Every option that an example shows, and every one it must give, is there."""
    command: click.Command = cli
    for name in path:
        assert isinstance(command, click.Group)
        command = command.commands[name]
    example = command.example  # type: ignore[attr-defined] # all commands have one
    assert example.startswith(f"taskd {' '.join(path)}")
    help_text = run(*path, "--help").stdout
    assert all(line in help_text for line in example.splitlines())
    if isinstance(command, click.Group):
        return
    known = {flag for parameter in command.params for flag in parameter.opts}
    own = example.split("&&")[0].split()
    shown = {word for word in own if word.startswith("--")}
    assert shown <= known
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.required:
            assert shown & set(parameter.opts)


def test_credentials_that_are_none_are_told(home: Path) -> None:
    path = home / "credentials.toml"
    for content in (b"app = 1", b"[[app]]\nurl = 1\n", b"\xff", b"app = [1]", b"[[app]\n"):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="not a credentials file"):
            read_apps(path)

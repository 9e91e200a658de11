"""Text from files and pipes: with a byte order mark, without one, or in another encoding."""

from __future__ import annotations

import io
import json
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme
from hypothesis import assume, given
from hypothesis import strategies as st

from taskd.buses.redis.target import parse_redis_url
from taskd.cli.bulk.lines import LineReader
from taskd.cli.credentials import StoredApp, add_app, read_apps
from taskd.config import load_config
from taskd.delivery.transport import tls_contexts
from taskd.errors import ConfigError, InvalidInput, StoreRefused
from taskd.queues.nsq.queue import _tls_context as nsq_context
from taskd.queues.nsq.target import parse_nsq_url
from taskd.runtime.certificates import server_context
from taskd.runtime.text import MARK, NotText, lines_of, text_of, unmarked
from taskd.stores.mysql.schema import tls_context as mysql_context
from taskd.stores.mysql.target import parse_mysql_url
from tests.support.commands import invoke

OTHERS = ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"]
_SECRET = "0123456789abcdef"


@given(st.text())
def test_the_mark_is_taken_off_and_nothing_else(text: str) -> None:
    assume("\x00" not in text[:2])  # no text that anybody would write
    assume(not text.startswith("\ufeff"))
    assert text_of(text.encode("utf-8", "surrogateescape")) == text
    assert text_of(MARK + text.encode()) == text


@pytest.mark.parametrize("encoding", OTHERS)
@given(text=st.text(st.characters(min_codepoint=1, max_codepoint=127), min_size=2))
def test_other_encodings_are_named(encoding: str, text: str) -> None:
    with pytest.raises(NotText, match=encoding[:6].upper()):
        text_of(text.encode(encoding))


def test_what_is_no_text_shows_nothing_of_it() -> None:
    with pytest.raises(NotText, match="at byte 6") as raised:
        text_of(b"hidden\xff more")
    told = traceback.TracebackException.from_exception(raised.value, capture_locals=False)
    assert told.__cause__ is None
    assert told.__context__ is None


@given(st.binary(), st.lists(st.integers(1, 5)))
def test_chunks_of_any_size_make_the_same_text(data: bytes, sizes: list[int]) -> None:
    chunks, rest = [], MARK + b"{}" + data
    for size in sizes:
        chunks += [rest[:size], b""]
        rest = rest[size:]
    assert b"".join(unmarked([*chunks, rest])) == b"{}" + data


def test_lines_tell_which_of_them_is_no_text() -> None:
    assert list(lines_of(io.BytesIO(MARK + b"a\n" + MARK + b"b\n"))) == ["a\n", "b\n"]
    with pytest.raises(NotText, match="in line 2, at byte 1"):
        list(lines_of(io.BytesIO(b"a\nb\xff\n")))
    with pytest.raises(NotText, match="UTF-16"):
        list(lines_of(io.BytesIO("a\n".encode("utf-16"))))


# What reads a file of each kind, given its path; and its text.


def config(path: Path) -> None:
    assert load_config(path, {}).server.port == 1234


def secret_of_admin(path: Path) -> None:
    (path.parent / "taskd.toml").write_text(f'[auth]\nadmin_secret_file = "{path.name}"\n')
    assert load_config(path.parent / "taskd.toml", {}).auth.admin_secret == _SECRET


def credentials(path: Path) -> None:
    assert [app.name for app in read_apps(path)] == ["帅"]
    before = path.read_bytes()
    add_app(path, StoredApp(url="u", name="n", app_key="k", secret_key="s"))
    assert len(read_apps(path)) == 2
    path.write_bytes(before)


def secret_key(path: Path) -> None:
    arguments = ("--url", "http://127.0.0.1:1", "--app-key", "a" * 16, "--secret-key-file")
    done = invoke("task", "detail", "1", *arguments, str(path))
    if done.exit_code == 2:
        raise ConfigError(done.stderr)
    assert done.exit_code == 3  # it was read, and nobody is there


def content(path: Path) -> None:
    for given_as in (f"@{path}", "-"):
        done = invoke(
            *("task", "submit", "--url", "http://127.0.0.1:1", "--app-key", "a" * 16),
            *("--secret-key-file", str(path.parent / "key"), "--content", given_as),
            *("--task-no", "1", "--name", "n", "--timeout", "1"),
            stdin=path.read_bytes(),
        )
        if done.exit_code == 2:
            raise ConfigError(done.stderr)
        assert done.exit_code == 3, done.stderr


def tasks(path: Path) -> None:
    (batch,) = LineReader().batches([path.read_bytes()])
    assert not batch.refused
    assert [json.loads(line.text)["taskNo"] for line in batch.lines] == ["帅"]


_APP = '[[app]]\nurl = "u"\nname = "帅"\napp_key = "k"\nsecret_key = "s"\n'

READERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "config": (config, "# 帅\n[server]\nport = 1234\n"),
    "admin_secret_file": (secret_of_admin, f"{_SECRET}\n"),
    "credentials": (credentials, _APP),
    "--secret-key-file": (secret_key, "s" * 32 + "\r\n"),
    "--content": (content, '{"name": "帅"}'),
    "--from": (tasks, '{"taskNo": "帅"}\n'),
}


@pytest.fixture(params=READERS)
def reader(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Callable[[Path], None], str]:
    (tmp_path / "key").write_text("s" * 32)
    return READERS[request.param]


def test_every_file_may_begin_with_a_mark(
    reader: tuple[Callable[[Path], None], str], tmp_path: Path
) -> None:
    read, text = reader
    path = tmp_path / "file"
    for mark in (b"", MARK):
        path.write_bytes(mark + text.encode())
        path.chmod(0o600)
        read(path)


@pytest.mark.parametrize("encoding", OTHERS)
def test_every_file_in_another_encoding_is_refused_in_a_sentence(
    reader: tuple[Callable[[Path], None], str], tmp_path: Path, encoding: str
) -> None:
    read, text = reader
    path = tmp_path / "file"
    path.write_bytes(text.removeprefix("# 帅\n").encode(encoding))
    with pytest.raises((ConfigError, NotText)) as raised:
        read(path)
    name = encoding[:6].upper()
    assert f"is {name} and must be UTF-8: iconv -f {name} -t UTF-8" in str(raised.value)


@pytest.mark.parametrize("marked", [b"", MARK])
def test_certificates_may_begin_with_a_mark(tmp_path: Path, marked: bytes) -> None:
    cert, key, authority = certificates(tmp_path, lambda data: marked + data)
    server_context(cert, key)
    tls_contexts(authority)
    nsq_context(parse_nsq_url(f"nsq://h:1?tls=true&ca_file={authority}"))
    mysql_context(parse_mysql_url(f"mysql://u@h/d?ca_file={authority}"))
    parse_redis_url(f"rediss://h/0?ca_file={authority}")


def test_certificates_in_another_encoding_are_refused_in_a_sentence(tmp_path: Path) -> None:
    cert, key, authority = certificates(tmp_path, lambda data: data.decode().encode("utf-16"))
    reasons: list[Callable[[], object]] = [
        lambda: server_context(cert, key),
        lambda: tls_contexts(authority),
        lambda: nsq_context(parse_nsq_url(f"nsq://h:1?tls=true&ca_file={authority}")),
        lambda: mysql_context(parse_mysql_url(f"mysql://u@h/d?ca_file={authority}")),
        lambda: parse_redis_url(f"rediss://h/0?ca_file={authority}"),
    ]
    for read in reasons:
        with pytest.raises(
            (ConfigError, InvalidInput, StoreRefused), match="is UTF-16 and must be"
        ):
            read()


def certificates(folder: Path, written: Callable[[bytes], bytes]) -> tuple[Path, Path, Path]:
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    blobs = (issued.cert_chain_pems[0], issued.private_key_pem, authority.cert_pem)
    paths = (folder / "cert.pem", folder / "key.pem", folder / "ca.pem")
    for path, blob in zip(paths, blobs, strict=True):
        path.write_bytes(written(blob.bytes()))
    return paths

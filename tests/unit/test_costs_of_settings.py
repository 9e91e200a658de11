"""Nothing that an operator or a user gives costs more than its length: configuration, URLs,
files, options.

What reads it has a line in `READERS`.
"""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from taskd.buses.redis.target import parse_redis_url
from taskd.cli.bulk.lines import LineReader
from taskd.cli.serve_output import _JSON_IN_FILE
from taskd.cli.tasks import _content, _number_or_text
from taskd.client import normalise_url
from taskd.config import SECTIONS, load_config, load_toml, settings_of, without_password
from taskd.daemon import transfer
from taskd.delivery.hosts import LONGEST_BYTES, names_in
from taskd.queues.nsq.target import parse_nsq_url
from taskd.runtime.text import lines_of, unmarked
from taskd.stores.mysql.target import parse_mysql_url
from tests.support.costs import (
    BARE,
    IN_BODY,
    KIB,
    MIB,
    OF_JSON,
    OF_STREAMS,
    Reader,
    check_costs,
    text,
)
from tests.support.growth import Read, in_pieces, numbered, repeated

_NSQ, _REDIS, _MYSQL = b"nsq://a", b"redis://a", b"mysql://u@a/d"


def every_kind(value: str) -> None:
    for section in SECTIONS:
        for setting in settings_of(section).values():
            try:
                setting.kind.parse(setting.kind.from_text(value), Path("/"))
            except ValueError:
                continue


def environment(name: str) -> None:
    load_config(None, {"TASKD_" + name.replace("\0", "").upper(): "1"})


def lines(size: int) -> Read:
    def read(data: bytes) -> None:
        for _ in LineReader().batches(in_pieces(data, size)):
            pass

    return read


def exported(line: str) -> None:
    for entry in transfer._entries(iter([(1, line)])):
        assert entry.number


_IMPORTED = b'{"task":{"content":"","attempts":['

_FORMS = (*BARE, (b"[log]\n", b""), (b"[log]\nformat", b"="), (b"[log]\n", b"\nformat='json'"))

READERS = {
    "a hosts file": Reader(
        names_in,
        LONGEST_BYTES,
        (*BARE, (b"1.1.1.1 ", b"")),
        (numbered(b"", "1.1.1.1 n#\n", b""), numbered(b"1.1.1.1", " n#", b"")),
        units=OF_STREAMS,
    ),
    "TOML": Reader(
        lambda data: load_toml(data.decode(errors="replace")),
        64 * KIB,
        (
            *(*BARE, (b"x=", b""), (b'x="', b'"'), (b'x="""', b'"""'), (b"x='''", b"'''")),
            *((b"[", b"]"), (b"x=[", b"]"), (b"x={", b"}"), (b'x="""', b""), (b"#", b"")),
        ),
        (
            repeated(b"", b'"a".', b"a=1"),
            repeated(b"", b"a . ", b"a=1"),
            repeated(b"x={", b"a.", b"a=1}"),
            repeated(b"", b"[[a]]\n", b""),
            repeated(b"", b"a.b.c=1\n", b""),
            numbered(b"", "[a#]\nb.c=1\n", b""),
            numbered(b"[a]\n", "b.c#='''\n'''\n", b""),
        ),
    ),
    "a setting": Reader(
        text(every_kind),
        64 * KIB,
        (*BARE, (b"sqlite:///", b""), (b"nsq://", b""), (b"http://", b"@")),
    ),
    "a variable": Reader(
        text(environment),
        64 * KIB,
        (*BARE, (b"SERVER_", b""), (b"SERVE_", b"_")),
        (
            repeated(b"SERVER", b"_SERVICE_PORT", b"-"),
            repeated(b"SERVER", b"_PORT_1_TCP_PORT", b"-"),
            repeated(b"SERVER", b"_ENV_", b"-"),
        ),
    ),
    "the log's form": Reader(
        text(_JSON_IN_FILE.search), 128 * KIB, _FORMS, (repeated(b"", b"[log]\n", b"format"),)
    ),
    "a text that is piped": Reader(
        lambda data: list(lines_of(io.BytesIO(data))), MIB, units=OF_STREAMS
    ),
    "chunks that are piped": Reader(
        lambda data: list(unmarked(in_pieces(data))), 64 * KIB, units=OF_STREAMS
    ),
    "a URL that is shown": Reader(text(without_password), 64 * KIB, (*BARE, (b"nsq://:", b"@a"))),
    "NSQ's URL": Reader(
        text(parse_nsq_url),
        64 * KIB,
        (
            (_NSQ, b""),
            (b"nsq://", b":"),
            (_NSQ + b"?", b""),
            (_NSQ + b"?topic=", b""),
            (b"nsq://:", b"@a"),
            (_NSQ + b"?lookupd=", b""),
        ),
        (repeated(_NSQ + b"?lookupd=a", b"&lookupd=a", b""), repeated(b"nsq://", b"a-", b"a,")),
    ),
    "Redis' URL": Reader(
        text(parse_redis_url),
        64 * KIB,
        ((_REDIS, b""), (b"redis://:", b"@a"), (_REDIS + b"?", b"")),
    ),
    "MySQL's URL": Reader(
        text(parse_mysql_url),
        64 * KIB,
        ((_MYSQL, b""), (b"mysql://", b"@a/d"), (_MYSQL + b"?", b"")),
    ),
    "the daemon's URL": Reader(text(normalise_url), 64 * KIB, (*BARE, (b"http://", b"/"))),
    "a content option": Reader(
        text(_content), MIB, (*BARE, (b'["', b'"]'), (b"[", b"1]")), units=OF_JSON
    ),
    "a runtime option": Reader(text(_number_or_text), 64 * KIB, (*BARE, (b"1.", b"1"))),
    "a file of tasks": Reader(lines(64 * KIB), MIB, (*BARE, *IN_BODY), units=OF_JSON),
    "a pipe of tasks": Reader(lines(7), 128 * KIB, ((b'{"a":"', b'"}\n'),), units=OF_STREAMS),
    "an import": Reader(
        text(exported),
        256 * KIB,
        (*BARE, *IN_BODY, (_IMPORTED, b"1]}}"), (b'{"app":{"a":"', b'"}}')),
        units=OF_JSON,
    ),
}


@pytest.mark.parametrize("name", READERS)
def test_nothing_costs_more_than_its_length(name: str) -> None:
    check_costs(READERS[name])

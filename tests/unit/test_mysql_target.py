"""The URL of a MySQL store."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest

from taskd.errors import InvalidInput
from taskd.stores.mysql.target import MySQLTarget, parse_mysql_url

SECRET = "pa%2Fss%40w%C3%B6rd"


def test_a_url_gives_host_user_password_and_database() -> None:
    assert parse_mysql_url(f"mysql://me:{SECRET}@db.example:3307/taskd") == MySQLTarget(
        host="db.example", port=3307, user="me", password="pa/ss@wörd", database="taskd"
    )


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("mysql://me@h/d", MySQLTarget(host="h", user="me", database="d")),
        ("mysql://me:@h/d", MySQLTarget(host="h", user="me", database="d")),
        ("mysql://me@[::1]:33/d", MySQLTarget(host="::1", port=33, user="me", database="d")),
        ("mysql://m%40e@h/d%2De", MySQLTarget(host="h", user="m@e", database="d-e")),
        ("mysql://me@h/d?tls=true", MySQLTarget(host="h", user="me", database="d", tls=True)),
        ("mysql://me@h/d?tls=false", MySQLTarget(host="h", user="me", database="d")),
        (
            "mysql://me@h/d?ca_file=/etc/ca%20s.pem",
            MySQLTarget(host="h", user="me", database="d", tls=True, ca_file=Path("/etc/ca s.pem")),
        ),
        (
            "mysql://me@h/d?cert_file=/c&key_file=/k",
            MySQLTarget(
                host="h",
                user="me",
                database="d",
                tls=True,
                cert_file=Path("/c"),
                key_file=Path("/k"),
            ),
        ),
    ],
)
def test_what_may_be_left_out_has_a_default(url: str, expected: MySQLTarget) -> None:
    assert parse_mysql_url(url) == expected


@pytest.mark.parametrize(
    ("url", "told"),
    [
        (f"postgres://me:{SECRET}@h/d", "another form"),
        (f"mysql://me:{SECRET}@h/d#part", "another form"),
        (f"mysql://me:{SECRET}@/d", "the host is missing"),
        (f"mysql://:{SECRET}@h/d", "the user is missing"),
        (f"mysql://me:{SECRET}@h", "the database is missing"),
        (f"mysql://me:{SECRET}@h/", "the database is missing"),
        (f"mysql://me:{SECRET}@h/d/e", "the database is one name"),
        (f"mysql://me:{SECRET}@h/{'d' * 65}", "the database is one name"),
        (f"mysql://me:{SECRET}@h:port/d", "percent-encoded"),
        (f"mysql://me:{SECRET}@h:99999/d", "percent-encoded"),
        (f"mysql://me:{SECRET}%FF@h/d", "percent-encoded"),
        ("mysql://me:pa/ss@h/d", "percent-encoded"),
        ("mysql://me:pa ss@h/d", "percent-encoded"),
        ("mysql://me:paß@h/d", "percent-encoded"),
        (f"mysql://me:{SECRET}@[::1/d", "percent-encoded"),
        (f"mysql://me:{SECRET}@h/d?tls=yes", "tls is true or false"),
        (f"mysql://me:{SECRET}@h/d?tls=false&ca_file=/ca", "tls is true or false"),
        (f"mysql://me:{SECRET}@h/d?ca_file=ca.pem", "an absolute path"),
        (f"mysql://me:{SECRET}@h/d?cert_file=/c", "needed together"),
        (f"mysql://me:{SECRET}@h/d?cert_file=/c&key_file=k", "key_file is an absolute path"),
        (f"mysql://me:{SECRET}@h/d?tls=false&cert_file=/c&key_file=/k", "tls is true or false"),
        (f"mysql://me:{SECRET}@h/d?tls=true&tls=true", "once each"),
        (f"mysql://me:{SECRET}@h/d?ssl=true", "nothing else"),
    ],
)
def test_a_url_that_is_refused_is_not_repeated(url: str, told: str) -> None:
    with pytest.raises(InvalidInput, match=told) as caught:
        parse_mysql_url(url)
    told_with_causes = "".join(traceback.format_exception(caught.value))
    for piece in ("pa%2F", "pa/ss", "pa ss", "paß", "w%C3"):
        assert piece not in told_with_causes


def test_a_password_is_in_no_representation() -> None:
    target = parse_mysql_url("mysql://me:geheim@h/d")
    assert "geheim" not in f"{target} {target!r}"
    assert str(parse_mysql_url("mysql://me:x@[::1]/d")) == "mysql://me@[::1]:3306/d"

#!/bin/sh
# Run the tests of the MySQL store on another server than `make test` does: its
# contract, what is special to it, and a cluster whose parts are killed.
#
#   tools/scripts/test_mysql.sh [--if-here] DATABASE PYTEST...
#
# --if-here  where the server can't be had: say so, and exit 0
# DATABASE   mysql: that of MYSQLD_BIN, an installed one, or Debian unstable's;
#            mariadb: that of MARIADBD_BIN, or Debian unstable's
# PYTEST     the command that runs pytest, with its options
set -eu

say() { printf 'taskd: %s\n' "$*" >&2; }

missing=1
[ "$1" = --if-here ] && { missing=0; shift; }
database=$1
shift

bring() {
    say "bringing $* from Debian's unstable suite into .servers, for these tests alone"
    tools/scripts/unstable.sh ".servers/$database" "$@"
}

here=yes
case $database in
    mysql)
        installed=$(PATH=$PATH:/usr/sbin command -v mysqld || true)
        if [ -z "${MYSQLD_BIN:-}" ] && [ -n "$installed" ] &&
            ! "$installed" --version | grep -q MariaDB; then
            MYSQLD_BIN=$installed
        fi
        if [ -z "${MYSQLD_BIN:-}" ]; then
            bring mysql-server-core mysql-client-core || here=
            MYSQLD_BIN=$PWD/.servers/mysql/usr/sbin/mysqld
        fi
        export MYSQLD_BIN
        server=$MYSQLD_BIN
        ;;
    mariadb)
        if [ -z "${MARIADBD_BIN:-}" ]; then
            bring mariadb-server-core mariadb-client-core || here=
            MARIADBD_BIN=$PWD/.servers/mariadb/usr/sbin/mariadbd
        fi
        export MARIADBD_BIN
        server=$MARIADBD_BIN
        ;;
    *)
        say "DATABASE is mysql or mariadb, not $database"
        exit 2
        ;;
esac
if [ -z "$here" ]; then
    say "the tests of the MySQL store were not run on $database: it can't be had here"
    exit $missing
fi

say "the MySQL store's tests on $("$server" --version)"
exec "$@" --database="$database" -k "mysql or database or faults_of_every_kind" \
    tests/contract tests/services tests/acceptance/test_cluster.py \
    tests/acceptance/test_cluster_start.py

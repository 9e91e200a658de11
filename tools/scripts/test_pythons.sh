#!/bin/sh
# Run the unit, contract and integration tests on every Python that is at hand
# (tools/scripts/pythons.sh), but for the one that runs the whole suite.
#
#   tools/scripts/test_pythons.sh FOLDER ARGUMENT...
#
# FOLDER    the environment of that one
# ARGUMENT  of Python: -m pytest and what follows
set -eu

say() { printf 'taskd: %s\n' "$*" >&2; }

whole=$("$1/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
shift

failed=
seen=
for line in $(tools/scripts/pythons.sh | tr ' ' '='); do
    version=${line%%=*}
    [ "$version" != "$whole" ] || continue
    seen="$seen $version"
    PYTHON=${line#*=} tools/scripts/venv.sh ".venv-$version" --project tools/requirements/dev.txt
    say "unit, contract and integration tests on Python $version"
    ".venv-$version/bin/python" "$@" tests/unit tests/contract tests/integration ||
        failed="$failed $version"
done

[ -n "$seen" ] || say "no other Python from 3.11 to 3.13 is at hand than $whole"
[ -z "$failed" ] || { say "tests failed on Python$failed"; exit 1; }

#!/bin/sh
# List the Pythons that taskd promises to run on and that are at hand here, one of
# each: a line with its version, such as 3.12, and its path.
#
#   tools/scripts/pythons.sh [--embeddable] [CANDIDATE...]
#
# CANDIDATE     a command; without any, those in pyenv's folder and on PATH
# --embeddable  only Pythons whose shared library, by which a program embeds them, is
#               known to be optimised
#
# What does not run, or can't make a virtual environment, is none; of several patch
# releases the newest counts.
set -eu

embeddable=
[ "${1:-}" != --embeddable ] || { embeddable=$1; shift; }
[ $# -gt 0 ] || set -- "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.1[123].*/bin/python \
    python3.11 python3.12 python3.13 python3

for candidate; do
    "$candidate" - $embeddable 2>/dev/null <<'PY' || true
import ctypes, ensurepip, shlex, sqlite3, ssl, sys, sysconfig, venv

if "--embeddable" in sys.argv:
    # Where library and program are two builds, as Debian's are, this describes the library.
    options = shlex.split(sysconfig.get_config_var("CONFIG_ARGS"))
    if not {"--enable-shared", "--enable-optimizations"} <= set(options):
        sys.exit()
plain = sys.implementation.name == "cpython" and not sysconfig.get_config_var("Py_GIL_DISABLED")
if plain and (3, 11) <= sys.version_info[:2] <= (3, 13) and sys.version_info[3] == "final":
    # Of an environment, what it was made with.
    path = getattr(sys, "_base_executable", sys.executable)
    print("%d.%d %d %s" % (*sys.version_info[:3], path))
PY
done | sort -t ' ' -k 1,1V -k 2,2nr -s | awk '!seen[$1]++ { print $1, $3 }'

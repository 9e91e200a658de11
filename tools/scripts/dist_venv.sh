#!/bin/sh
# Make the environment that the single executable is built in, or leave it if it is so
# already. The executable embeds the shared library of that environment's Python: this
# takes $PYTHON, or else the newest Python at hand whose library is optimised; where there
# is none, it says so in one sentence, and takes any.
#
#   tools/scripts/dist_venv.sh FOLDER LOCK...
set -eu

venv=$1
made_with() { "$1" -c 'import sys; print(sys.base_prefix)' 2>/dev/null || true; }

if [ -z "${PYTHON:-}" ]; then
    PYTHON=$(tools/scripts/pythons.sh --embeddable | tail -n 1 | cut -d ' ' -f 2-)
    export PYTHON
fi
# For venv.sh any other build of the same version would do as well.
if [ -n "$PYTHON" ] && [ -e "$venv/pyvenv.cfg" ] &&
    [ "$(made_with "$venv/bin/python")" != "$(made_with "$PYTHON")" ]; then
    rm -rf "$venv"
fi
tools/scripts/venv.sh "$@"

if [ -z "$(tools/scripts/pythons.sh --embeddable "$venv/bin/python")" ]; then
    version=$("$venv/bin/python" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])')
    printf "taskd: the executable's Python (%s) is not known to be optimised, which costs %s: %s\n" \
        "$version" "10 to 20 % more CPU" "see docs/how-to/run-the-single-executable.md" >&2
fi

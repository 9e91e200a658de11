#!/bin/sh
# Make a virtual environment exactly as a lock says, or leave it if it is so already.
#
#   tools/scripts/venv.sh FOLDER [--project] LOCK...
#
# FOLDER     the environment; made with $PYTHON, or else the first suitable
#            Python on PATH
# --project  install taskd itself too, editable
# LOCK       pip requirements with hashes
#
# What was installed is noted in FOLDER/.installed by content, not by time, so
# that a checkout that only touches files installs nothing.
set -eu

say() { printf 'taskd: %s\n' "$*" >&2; }
die() { say "$@"; exit 1; }

# Run a command whose output matters only if it fails, and show meanwhile that it goes
# on: how many packages pip has come to ("of $total", where that is known), and how long
# it has taken. On a terminal that is one line, which is drawn again and again; elsewhere
# a line every ten seconds.
#
#   working WHAT COMMAND...
working() {
    what=$1
    shift
    log=$(mktemp)
    PYTHONUNBUFFERED=1 "$@" >"$log" 2>&1 &
    child=$!
    # The shell lets no Ctrl-C through to what runs in its background.
    trap 'kill "$child" 2>/dev/null || true; rm -f "$log"; exit 130' INT TERM HUP
    began=$(date +%s)
    told=0
    [ -t 2 ] || say "$what"
    while kill -0 "$child" 2>/dev/null; do
        seconds=$(($(date +%s) - began))
        if [ -t 2 ]; then
            printf '\r\033[Ktaskd: %s: %s' "$what" "$(progress)" >&2
        elif [ $((seconds - told)) -ge 10 ]; then
            told=$seconds
            say "still at it: $(progress)"
        fi
        sleep 0.2
    done
    [ ! -t 2 ] || printf '\r\033[K' >&2
    failed=0
    wait "$child" || failed=$?
    trap - INT TERM HUP
    [ "$failed" = 0 ] || { tail -n 40 "$log" >&2; rm -f "$log"; die "$what: failed"; }
    rm -f "$log"
    say "$what: done in $(($(date +%s) - began)) s"
}

progress() {
    count=$(grep -cE '^(Collecting|Ignoring) ' "$log" || true)
    if grep -q '^Installing collected' "$log"; then
        printf 'unpacking, %s s' "$seconds"
    elif [ "$count" != 0 ]; then
        printf '%s of %s packages, %s s' "$count" "$total" "$seconds"
    else
        printf '%s s' "$seconds"
    fi
}

version_of() {
    "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true
}

suitable() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        suitable "$PYTHON" && { echo "$PYTHON"; return; }
        found=$(version_of "$PYTHON")
        die "PYTHON=$PYTHON is ${found:+Python }${found:-no Python that runs}; taskd needs Python 3.11, 3.12 or 3.13."
    fi
    for candidate in python3 python3.13 python3.12 python3.11; do
        suitable "$candidate" && { echo "$candidate"; return; }
    done
    found=$(version_of python3)
    die "taskd needs Python 3.11, 3.12 or 3.13, but ${found:+python3 is Python }${found:-there is no python3 on PATH}. Install one (on Debian 12: apt-get install python3.11 python3.11-venv) or name it: make PYTHON=/path/to/python3.11 ..."
}

make_venv() {
    python=$1
    version=$(version_of "$python")
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        die "$python has no ensurepip, so it cannot make a virtual environment. On Debian and Ubuntu: apt-get install python$version-venv"
    working "making $venv with Python $version" "$python" -m venv "$venv"
}

[ $# -ge 2 ] || die "usage: tools/scripts/venv.sh FOLDER [--project] LOCK..."
venv=$1
shift
project=
[ "$1" = --project ] && { project=yes; shift; }

if [ -e "$venv" ] && [ ! -e "$venv/pyvenv.cfg" ]; then
    die "$venv is there but is no virtual environment; move it away, or name another: make VENV=FOLDER ..."
fi
if [ -e "$venv" ] && ! suitable "$venv/bin/python"; then
    say "$venv does not work any more; making it anew"
    rm -rf "$venv"
elif [ -e "$venv" ] && [ -n "${PYTHON:-}" ] &&
    [ "$(version_of "$venv/bin/python")" != "$(version_of "$PYTHON")" ]; then
    say "$venv has Python $(version_of "$venv/bin/python"), not that of PYTHON=$PYTHON; making it anew"
    rm -rf "$venv"
fi
if [ ! -e "$venv" ]; then
    # An assignment, so that find_python's exit ends this script as well.
    chosen=$(find_python)
    make_venv "$chosen"
fi

# The folder counts too: an editable install points into it. So does the version, which
# the installed metadata has.
wanted=$({ pwd; echo "$project"; [ -z "$project" ] || cat taskd/__init__.py; cat pyproject.toml "$@"; } | cksum)
if grep -qxF "$wanted" "$venv/.installed" 2>/dev/null; then
    exit 0
fi

total=$(cat "$@" | grep -cE '^[A-Za-z0-9].*==')
set -- $(printf -- '-r %s ' "$@")
pip="$venv/bin/python -m pip --disable-pip-version-check --no-input"
# A lock names everything, so there is nothing to resolve; and where pip resolves,
# some releases of it do not see that a lock's `package` pins `package[extra]`.
working "installing the locked packages into $venv" \
    $pip install --progress-bar off --require-hashes --no-deps "$@"
problems=$("$venv/bin/python" -m pip --disable-pip-version-check check 2>&1) || die "$problems"
if [ -n "$project" ]; then
    working "installing taskd into $venv" $pip install --no-deps --no-build-isolation --editable .
fi
echo "$wanted" >"$venv/.installed"

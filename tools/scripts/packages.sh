#!/bin/sh
# Install with apt what is missing here, where that is allowed; elsewhere say what
# is missing, and go on: the tests that need it skip, and name the package again.
#
#   tools/scripts/packages.sh PROGRAM:PACKAGE...
#
# PROGRAM  a command on PATH or in /usr/sbin; with a slash, a pattern of a file
# PACKAGE  Debian's and Ubuntu's package that brings it
set -eu

say() { printf 'taskd: %s\n' "$*" >&2; }

PATH=$PATH:/usr/sbin:/usr/local/sbin

here() {
    case $1 in
        */*) set -- $1; [ -e "$1" ] ;; # the shell fills in the pattern
        *) command -v "$1" >/dev/null ;;
    esac
}

missing=
for pair; do
    here "${pair%%:*}" || missing="$missing ${pair#*:}"
done

if [ -z "$missing" ]; then
    exit 0
elif [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    say "missing here, and not to be installed without root and apt-get:$missing"
    exit 0
fi

say "installing$missing"
# Servers among them are for tests that start their own: the system is not to run any.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    trap 'exit 1' HUP INT TERM
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086 # a list of packages
if ! { apt-get update -qq && apt-get install -y -qq --no-install-recommends $missing; } >/dev/null
then
    say "apt-get could not install$missing"
fi

#!/bin/sh
# Unpack servers of Debian's unstable suite into a folder, with the libraries that
# they need, the C library included. Nothing is installed: the system keeps what it
# has, and its list of packages does not learn of that suite.
#
#   tools/scripts/unstable.sh FOLDER PACKAGE...
#
# FOLDER   what is unpacked: the packages' files, so FOLDER/usr/sbin/mysqld; their
#          programs there start with the libraries beside them
#
# The mirror is that of the system's own sources, so this needs apt and dpkg of a
# Debian, but not root. Where that fails: one sentence, and exit 1.
set -eu

say() { printf 'taskd: %s\n' "$*" >&2; }

[ $# -ge 2 ] || { say "usage: tools/scripts/unstable.sh FOLDER PACKAGE..."; exit 2; }
folder=$1
shift
packages=$*

mkdir -p "$(dirname "$folder")"
folder=$(cd "$(dirname "$folder")" && pwd)/$(basename "$folder")
# The folder counts too: the programs name it.
wanted="$folder $packages"
if [ "$(cat "$folder/.unpacked" 2>/dev/null)" = "$wanted" ]; then
    exit 0
fi
for program in apt-get dpkg-deb; do
    if ! command -v "$program" >/dev/null; then
        say "not to be had here without $program: $packages"
        exit 1
    fi
done

rm -rf "$folder" "$folder.new"
mkdir -p "$folder.new"
work=$(mktemp -d)
trap 'rm -rf "$work" "$folder.new"' EXIT
mkdir -p "$work/lists/partial" "$work/archives/partial"
: >"$work/status" # nothing is installed, so everything that is needed is fetched

apt() {
    apt-get -qq \
        -o Dir::State::Lists="$work/lists" -o Dir::State::status="$work/status" \
        -o Dir::Cache="$work" -o Dir::Cache::archives="$work/archives" \
        -o Dir::Etc::SourceList="$work/sources.list" -o Dir::Etc::SourceParts=- \
        -o Acquire::Languages=none -o Acquire::Retries=2 -o Debug::NoLocking=true \
        -o APT::Sandbox::User="$(id -un)" -o APT::Keep-Downloaded-Packages=true \
        -o APT::Update::Error-Mode=any "$@"
}

# Where the system's packages come from, unstable is too, or else at none of them.
keys=/usr/share/keyrings/debian-archive-keyring.gpg
[ -e "$keys" ] && signed="[signed-by=$keys] " || signed=
found=
for mirror in $(apt-get update --print-uris |
    sed -n "s#^'\([^']*\)/dists/[^']*/InRelease'.*#\1#p" | sort -u | grep -v security); do
    echo "deb $signed$mirror unstable main" >"$work/sources.list"
    if apt update >/dev/null 2>&1; then
        found=yes
        break
    fi
done
if [ -z "$found" ]; then
    say "none of the system's package sources has Debian's unstable suite: no $packages"
    exit 1
fi
# shellcheck disable=SC2086 # a list of packages
if ! apt install -y --no-install-recommends --download-only $packages >"$work/log" 2>&1; then
    say "unstable's packages can't be had: $packages"
    cat "$work/log" >&2
    exit 1
fi
for package in "$work"/archives/*.deb; do
    # Owned by whoever runs this, and without setuid bits.
    dpkg-deb --fsys-tarfile "$package" |
        tar -x -C "$folder.new" --no-same-owner --no-same-permissions --wildcards \
            --exclude='./usr/share/doc' --exclude='./usr/share/locale' './usr/*'
done

# The programs are linked against a newer C library than the system's, which only its
# own loader can load.
loader=$(find "$folder.new"/usr/lib* -name 'ld-linux*.so*' | head -n 1)
libraries=$(dirname "$(find "$folder.new/usr/lib" -name libc.so.6 | head -n 1)")
inside() { printf '%s' "$folder${1#"$folder.new"}"; }
for program in "$folder.new"/usr/bin/* "$folder.new"/usr/sbin/*; do
    if [ ! -f "$program" ] || [ -L "$program" ] || [ "$(head -c 4 "$program" | tail -c 3)" != ELF ]; then
        continue
    fi
    mv "$program" "$program.elf"
    # Some do one thing or another by the name that they are called.
    printf '#!/bin/sh\nexec "%s" --library-path "%s" --argv0 "$0" "%s" "$@"\n' \
        "$(inside "$loader")" "$(inside "$libraries")" "$(inside "$program.elf")" >"$program"
    chmod +x "$program"
done

echo "$wanted" >"$folder.new/.unpacked"
mv "$folder.new" "$folder"

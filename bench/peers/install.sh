#!/bin/sh
# Install what the comparison needs, into .bench-peers/ and nowhere else but for the
# servers, which are packages of the system.
set -eu
home=.bench-peers

scripts/packages.sh redis-server:redis-server node:nodejs npm:npm cc:gcc \
    "/usr/lib/postgresql/*/bin/postgres:postgresql"
scripts/venv.sh "$home/venv" bench/peers/requirements.txt
scripts/venv.sh "$home/venv-arq" bench/peers/requirements-arq.txt

if command -v npm >/dev/null; then
    mkdir -p "$home/bullmq"
    cp bench/peers/apps/bullmq/*.mjs "$home/bullmq/"
    wanted=$(cksum <bench/peers/apps/bullmq/package-lock.json)
    if ! grep -qxF "$wanted" "$home/bullmq/.installed" 2>/dev/null; then
        cp bench/peers/apps/bullmq/package.json bench/peers/apps/bullmq/package-lock.json \
            bench/peers/apps/bullmq/.npmrc "$home/bullmq/"
        (cd "$home/bullmq" && npm ci --silent)
        echo "$wanted" >"$home/bullmq/.installed"
    fi
fi

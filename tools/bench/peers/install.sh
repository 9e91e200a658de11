#!/bin/sh
# Install what the comparison needs, into .bench-peers/ and nowhere else but for the
# servers, which are packages of the system.
set -eu
home=.bench-peers

tools/scripts/packages.sh redis-server:redis-server node:nodejs npm:npm cc:gcc \
    "/usr/lib/postgresql/*/bin/postgres:postgresql"
tools/scripts/venv.sh "$home/venv" tools/bench/peers/requirements.txt
tools/scripts/venv.sh "$home/venv-arq" tools/bench/peers/requirements-arq.txt

if command -v npm >/dev/null; then
    mkdir -p "$home/bullmq"
    cp tools/bench/peers/apps/bullmq/*.mjs "$home/bullmq/"
    wanted=$(cksum <tools/bench/peers/apps/bullmq/package-lock.json)
    if ! grep -qxF "$wanted" "$home/bullmq/.installed" 2>/dev/null; then
        cp tools/bench/peers/apps/bullmq/package.json tools/bench/peers/apps/bullmq/package-lock.json \
            tools/bench/peers/apps/bullmq/.npmrc "$home/bullmq/"
        (cd "$home/bullmq" && npm ci --silent)
        echo "$wanted" >"$home/bullmq/.installed"
    fi
fi

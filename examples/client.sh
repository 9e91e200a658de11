#!/bin/sh
# A client of taskd's API, signing with curl and openssl alone.
#
#   examples/client.sh app-create NAME LINK_URL
#   examples/client.sh task-create TASK_NO NAME CONTENT_JSON TIMEOUT_MS [WHEN]
#   examples/client.sh detail TASK
#   examples/client.sh cancel TASK
#
# WHEN is a delay (30m, 2h, or 90 for seconds) or a moment ("2030-01-01 00:00:00" in
# the daemon's timezone, 2030-01-01T00:00:00Z). TASK is a task's number or its TASK_NO.
#
# TASKD_URL                            default http://127.0.0.1:9502
# TASKD_ADMIN_KEY, TASKD_ADMIN_SECRET  for app-create (the key's default: admin)
# TASKD_APP_KEY, TASKD_SECRET_KEY      for the others, as app-create answered them
#
# Prints the answer. Exit code: 0 done, 1 refused, 2 wrong usage, 3 no answer.
set -eu

url=${TASKD_URL:-http://127.0.0.1:9502}

die() { printf '%s\n' "client.sh: $2" >&2; exit "$1"; }
usage() { sed -n 's/^#   //p' "$0" >&2; exit 2; }

# Bytes on stdin, hex digits on stdout.
hex() { od -An -v -tx1 | tr -d ' \n'; }
sha256() { openssl dgst -sha256 -r | cut -d ' ' -f 1; }

# The key (as hex digits), filled up to 64 bytes, every byte XOR a number.
key_xor() {
    rest=$1
    count=0
    while [ "$count" -lt 64 ]; do
        byte=${rest%"${rest#??}"}
        rest=${rest#"$byte"}
        # shellcheck disable=SC2059 # the octal escape is the format
        printf "\\$(printf '%03o' $((0x${byte:-0} ^ $2)))"
        count=$((count + 1))
    done
}

# HMAC-SHA256 of $2 under key $1, by its definition: `openssl dgst -hmac` would
# show the key to everybody who looks at the process list.
hmac() {
    key=$(printf %s "$1" | hex)
    if [ "${#key}" -gt 128 ]; then
        key=$(printf %s "$1" | sha256)
    fi
    {
        key_xor "$key" 92
        { key_xor "$key" 54; printf %s "$2"; } | openssl dgst -sha256 -binary
    } | sha256
}

# A JSON string of $1.
quoted() {
    case $1 in *[[:cntrl:]]*) die 2 "control characters are not allowed: $1" ;; esac
    printf '"%s"' "$(printf %s "$1" | sed 's/[\\"]/\\&/g')"
}

number() {
    case $1 in '' | *[!0-9]*) die 2 "not a number: $1" ;; esac
    printf %s "$1"
}

# The field that names a task.
named() {
    case $1 in
    '' | *[!0-9]*)
        task_no=$(quoted "$1") || exit
        printf '"taskNo":%s' "$task_no"
        ;;
    *) printf '"coroutine_id":%s' "$1" ;;
    esac
}

# The field that says when a task is due.
when() {
    case $1 in
    *[-:]*) field=runtime ;;
    *) field=delay ;;
    esac
    case $1 in
    '' | *[!0-9]*) value=$(quoted "$1") || exit ;;
    *) value=$1 ;;
    esac
    printf '"%s":%s' "$field" "$value"
}

# Sign as $1 with secret $2, and send: POST the body $4 to path $3, or GET it
# with the query $5 where there is no body. app-key is app_key: many proxies drop
# names with underscores.
send() {
    timestamps=$(date +%s)
    nonce=$(openssl rand -hex 16)
    payload=$(printf %s "$4${5:-}" | sha256)
    signature=$(hmac "$2" "$timestamps$nonce$payload")
    signature=$(printf %s "$signature" | openssl base64 -A)
    target=$url$3${5:+?$5}
    set -- "$4" -sS --max-time 30 -H "app-key: $1" -H "nonce: $nonce" \
        -H "timestamps: $timestamps" -H "signature: $signature" -H "payload: $payload"
    body=$1
    shift
    if [ -n "$body" ]; then
        set -- "$@" -H 'Content-Type: application/json' --data-binary @-
    fi
    answer=$(printf %s "$body" | curl "$@" "$target") || exit 3
    printf '%s\n' "$answer"
    case $answer in '{"code":0,'* | '{"code": 0,'*) exit 0 ;; esac
    exit 1
}

as_admin() {
    [ -n "${TASKD_ADMIN_SECRET:-}" ] || die 2 "set TASKD_ADMIN_SECRET in the environment"
    send "${TASKD_ADMIN_KEY:-admin}" "$TASKD_ADMIN_SECRET" "$@"
}

as_app() {
    [ -n "${TASKD_APP_KEY:-}" ] && [ -n "${TASKD_SECRET_KEY:-}" ] ||
        die 2 "set TASKD_APP_KEY and TASKD_SECRET_KEY in the environment"
    send "$TASKD_APP_KEY" "$TASKD_SECRET_KEY" "$@"
}

# The parts are made by assignments, so that a bad one ends the script.
case ${1:-}:$# in
app-create:3)
    name=$(quoted "$2")
    link_url=$(quoted "$3")
    as_admin /application/create "{\"appName\":$name,\"linkUrl\":$link_url}"
    ;;
task-create:5 | task-create:6)
    task_no=$(quoted "$2")
    name=$(quoted "$3")
    timeout=$(number "$5")
    fields="\"taskNo\":$task_no,\"name\":$name,\"content\":$4,\"timeout\":$timeout"
    if [ $# -eq 6 ]; then
        when=$(when "$6")
        fields="$fields,$when"
    fi
    as_app /task/create "{$fields}"
    ;;
detail:2)
    task=$(named "$2")
    case $2 in
    '' | *[!0-9]*) as_app /task/detail "{$task}" ;;
    # A number needs no body: a GET does, whose query string is signed.
    *) as_app /task/detail '' "coroutine_id=$2" ;;
    esac
    ;;
cancel:2)
    task=$(named "$2")
    as_app /task/cancel "{$task}"
    ;;
*)
    usage
    ;;
esac

#!/usr/bin/env bash
# The whole service on this machine, with a demo sale: `make run`. Ctrl-C ends everything that it started; data stays in .run/.
#
# Servers whose addresses are in the environment (DATABASE_URL, REDIS_URL, KAFKA_BROKERS) are used as they are; the others are private
# ones. HTTP_ADDR and ADMIN_ADDR default to 127.0.0.1:8080 and :9090, or to free ports where those are taken.
# FLASHSALE_BIN=<program> runs that one instead of building it.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

RUN=$ROOT/.run
LOG=$RUN/flashsale.log PID_FILE=$RUN/flashsale.pid
SERVICES=$ROOT/scripts/services.sh
STOP_SECONDS=30 START_SECONDS=60

started=()       # servers of ours
pid=''           # flashsale
log_start=0      # size of its log before this run
on_interrupt=130 # exit code of Ctrl-C; 0 once everything is up, where it is the way to end

stop_flashsale() {
  local running
  running=$(recorded_pid "$PID_FILE") || return 0
  say "stopping flashsale"
  kill -TERM "$running" || true
  if ! gone "$running" "$STOP_SECONDS"; then
    say "flashsale did not end within $STOP_SECONDS s: killed"
    kill -KILL "$running" || true
  fi
  rm -f "$PID_FILE"
}
cleanup() {
  local code=$?
  set +e
  trap '' INT TERM HUP # a second Ctrl-C must not leave servers behind
  stop_flashsale
  if [ "${#started[@]}" -gt 0 ]; then
    say "stopping ${started[*]}"
    "$SERVICES" stop "$RUN" "${started[@]}" || code=1
  fi
  exit "$code"
}
start_services() {
  local addresses line name
  [ -n "${DATABASE_URL:-}" ] || started+=(postgres)
  [ -n "${REDIS_URL:-}" ] || started+=(redis)
  [ -n "${KAFKA_BROKERS:-}" ] || started+=(kafka)
  [ "${#started[@]}" -gt 0 ] || return 0
  say "run: starting ${started[*]} in .run/"
  addresses=$("$SERVICES" start "$RUN" "${started[@]}")
  # Only what is not set: the file may name a server of an earlier run that is not needed this time.
  while read -r line; do
    name=${line#export } name=${name%%=*}
    [ -n "${!name:-}" ] || eval "$line"
  done <<<"$addresses"
  export DATABASE_URL REDIS_URL KAFKA_BROKERS
}
address() { # name of a variable, default port: keeps what the user chose
  local -n chosen=$1
  if [ -z "${chosen:-}" ]; then
    chosen=127.0.0.1:$2
    if taken "$2"; then
      chosen=127.0.0.1:$(free_port "$2")
      say "run: port $2 is taken; $1=$chosen"
    fi
  fi
  export "${1?}"
}
build() {
  if [ -n "${FLASHSALE_BIN:-}" ]; then return; fi
  use_rust
  cargo build --release --locked
  FLASHSALE_BIN=$ROOT/target/release/flashsale
}
start_flashsale() {
  [ "$(stat -c %s "$LOG" 2>/dev/null || echo 0)" -lt 50000000 ] || mv "$LOG" "$LOG.1"
  echo "---- make run, $(date -u +%FT%TZ)" >>"$LOG"
  log_start=$(stat -c %s "$LOG")
  # A session of its own: Ctrl-C reaches this script alone, which then stops things in order.
  setsid "$FLASHSALE_BIN" all </dev/null >>"$LOG" 2>&1 9>&- &
  pid=$!
  record_pid "$pid" "$PID_FILE"
}
died() { # waits for its end and says what it was
  local code=0
  wait "$pid" || code=$?
  say "run: flashsale ended by itself (exit code $code). The end of .run/flashsale.log:"
  tail -c "+$((log_start + 1))" "$LOG" | tail -15 >&2
  return 1
}
# A step that needs flashsale alive: runs a command until it succeeds.
until_it_works() { # what for, command...
  local what=$1 tries=$((START_SECONDS * 10))
  shift
  until "$@" >/dev/null 2>"$RUN/step.log"; do
    kill -0 "$pid" 2>/dev/null || died
    [ $((tries -= 1)) -ge 0 ] || die 1 "$what: not within $START_SECONDS s: $(tail -3 "$RUN/step.log")"
    sleep 0.1
  done
}
# A sale that exists is left as it is: its settings may have been changed since.
demo_sale() {
  "$FLASHSALE_BIN" sku show demo || "$FLASHSALE_BIN" sku put demo --on-hand 100 --user-limit 2 --hold 120s
}
reachable() { # address to listen on: one to ask
  local host=${1%:*}
  case $host in 0.0.0.0 | '[::]' | '') host=127.0.0.1 ;; esac
  echo "$host:${1##*:}"
}
welcome() {
  local api admin
  api=http://$(reachable "$HTTP_ADDR") admin=http://$(reachable "$ADMIN_ADDR")
  cat <<T

flashsale is up, with 100 pieces of the SKU "demo" for sale, at most 2 each.

  API        $api/v1
  API page   $api/docs
  admin      $admin/v1/admin   $admin/metrics   $admin/readyz
  logs       .run/flashsale.log

Buy one and wait for the answer:
  curl -s $api/v1/reservations -H 'Content-Type: application/json' -H 'Prefer: wait=5' \\
    -d '{"user_id":"alice","sku_id":"demo","quantity":1}'

Or take the receipt (202) and follow its status_url:
  curl -s $api\$(curl -s $api/v1/reservations -H 'Content-Type: application/json' \\
    -d '{"user_id":"bob","sku_id":"demo","quantity":1}' | sed 's/.*"status_url":"\([^"]*\)".*/\1/')

See what is left:
  curl -s $api/v1/skus/demo

Ctrl-C ends all of it; the data stays in .run/ for the next time.
T
}

main() {
  mkdir -p "$RUN"
  exec 9>"$RUN/run.lock"
  flock -n 9 || die 1 "another make run works in .run/ already"
  stop_flashsale # of a run that was killed
  "$ROOT/scripts/setup.sh"
  build
  trap cleanup EXIT
  trap 'exit $on_interrupt' INT TERM HUP
  start_services
  address HTTP_ADDR 8080
  address ADMIN_ADDR 9090
  "$FLASHSALE_BIN" migrate >"$RUN/migrate.log" 2>&1 || {
    tail -15 "$RUN/migrate.log" >&2
    die 1 "flashsale migrate failed"
  }
  start_flashsale
  until_it_works "flashsale ready" "$FLASHSALE_BIN" healthcheck
  until_it_works "demo sale" demo_sale
  welcome
  on_interrupt=0
  died # which waits for it
}
main "$@"

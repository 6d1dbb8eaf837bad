#!/usr/bin/env bash
# Sets up what is missing, starts fresh Postgres, Redis and Kafka, and runs every test against them: `make test`.
# Arguments go to `cargo test`, for one test: make test ARGS="--test it fence". The servers end with the tests, whatever happens.
#
# Tests find DATABASE_URL, REDIS_URL and KAFKA_BROKERS, which they share; one that breaks a server starts its own:
# `$FLASHSALE_SERVICES start <dir>`, with <dir> below $TMPDIR, where this script ends what a test left running.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

SERVICES=$ROOT/scripts/services.sh

keep_logs() { # where an upload or a reader finds them after a failure
  local kept=$ROOT/target/test-services log
  rm -rf "$kept"
  for log in "$WORK"/*/*/server.log "$WORK"/*/*/*/server.log; do
    [ -f "$log" ] || continue
    log=${log#"$WORK/"}
    mkdir -p "$kept/${log%/*}"
    cp "$WORK/$log" "$kept/$log"
  done
  say "test: the servers' logs are in ${kept#"$ROOT/"}/"
}
cleanup() {
  local code=$? env
  set +e
  trap '' INT TERM HUP # a second Ctrl-C must not leave servers behind
  [ "$code" = 0 ] || keep_logs
  while read -r env; do
    "$SERVICES" clean "${env%/env}" || code=1
  done < <(find "$WORK" -name env -type f)
  rm -rf "$WORK"
  exit "$code"
}

main() {
  # Never the servers of the caller: tests create, break and drop things.
  unset DATABASE_URL REDIS_URL KAFKA_BROKERS
  "$ROOT/scripts/setup.sh" test
  use_rust
  cargo test --locked --no-run "$@" # before the servers: they would only wait

  WORK=$(mktemp -d "${TMPDIR:-/tmp}/flashsale-test.XXXXXX")
  trap cleanup EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
  chmod 711 "$WORK" # Postgres runs as a user of its own and must pass through
  mkdir -p "$WORK/services" "$WORK/tmp"
  export FLASHSALE_SERVICES=$SERVICES FLASHSALE_KAFKA_FAST=1
  local addresses
  addresses=$("$SERVICES" start "$WORK/services")
  eval "$addresses"

  TMPDIR=$WORK/tmp cargo test --locked --no-fail-fast "$@"
}
main "$@"

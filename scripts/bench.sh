#!/usr/bin/env bash
# The benchmarks of docs/benchmarks.md on private servers with fsync on: `make bench`.
# BENCH_ROWS, BENCH_BATCHES, BENCH_HOLDS, BENCH_SECONDS, BENCH_IDLE, BENCH_REQUESTS, BENCH_RECORDS, BENCH_PACK, BENCH_RATE, BENCH_ROUNDS and BENCH_COMMANDS
# change their sizes (see benches/*.rs); arguments choose: bench.sh batch drain
# `bench.sh peers` (six minutes, not in the default) runs other ways to do the same beside this one, and draws the plots anew.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

BENCH_WATCH=''
main() {
  "$ROOT/scripts/setup.sh"
  use_rust
  cargo build --release --locked --benches
  WORK=$(mktemp -d "${TMPDIR:-/tmp}/flashsale-bench.XXXXXX")
  trap '"$ROOT/scripts/services.sh" clean "$WORK/services" || true; rm -rf "$WORK"' EXIT
  chmod 711 "$WORK" # Postgres runs as a user of its own and must pass through
  mkdir -p "$WORK/services"
  local addresses bench
  addresses=$("$ROOT/scripts/services.sh" start "$WORK/services")
  eval "$addresses"
  local service
  for service in postgres redis kafka; do
    BENCH_WATCH+=" $service=$(cut -d' ' -f1 "$WORK/services/$service/pid")"
  done
  export BENCH_WATCH
  for bench in "${@:-collector policies publish batch expiry relay drain service}"; do
    # shellcheck disable=SC2086 # the default is several words
    for name in $bench; do
      cargo bench --locked --bench "$name"
      [ "$name" != peers ] || "$ROOT/scripts/plot.py"
    done
  done
}
main "$@"

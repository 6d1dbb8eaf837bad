#!/usr/bin/env bash
# Removes what was built and the data of `make run`, and ends its servers if they still run: `make clean`. The cache stays.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

if [ -d "$ROOT/.run" ]; then
  exec 9>"$ROOT/.run/run.lock"
  flock -n 9 || die 1 "make run is running: end it first"
  "$ROOT/scripts/services.sh" clean "$ROOT/.run"
  rm -rf "$ROOT/.run"
fi
if have cargo; then cargo clean --manifest-path "$ROOT/Cargo.toml"; fi

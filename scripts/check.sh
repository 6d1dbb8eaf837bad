#!/usr/bin/env bash
# Everything a machine can say about the code without running it: `make check`. The quick ones come first.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

step() { # command...
  say "check: $*"
  "$@"
}
scripts() { # those git knows and new ones alike
  (cd "$ROOT" && printf '%s\n' scripts/*.sh .ci/run)
}
shell_scripts() {
  local script
  while read -r script; do bash -n "$script"; done < <(scripts)
  # Setup installs it where it may; a machine where it may not can do without.
  if have shellcheck; then
    scripts | xargs shellcheck -x -P "$ROOT"
  else
    say "check: no shellcheck here, scripts are only parsed"
  fi
}
compose_file() { "$JSONSCHEMA_HOME/bin/check-jsonschema" -q --builtin-schema vendor.compose-spec docker-compose.yml; }
manifests() {
  local work overlay arguments=()
  work=$(mktemp -d)
  for overlay in dev production; do
    render "$ROOT/k8s/overlays/$overlay" >"$work/$overlay.yaml"
    arguments+=("$overlay=$work/$overlay.yaml")
  done
  "$K8S_CHECK_HOME/bin/python" "$ROOT/scripts/k8s_check.py" "$ROOT" "${arguments[@]}"
  rm -rf "$work"
}
plots() { # the committed pictures are those of the committed reports
  have python3 || die "$EX_UNAVAILABLE" "needs python3"
  "$ROOT/scripts/plot.py" --check
}
# Not advisories: see deny.toml. The log level leaves out the warnings about crates that are there in two versions;
# `cargo deny check bans` shows them.
dependencies() { "$(cargo_deny)" --log-level error --all-features check bans licenses sources; }
docs() { RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --locked --document-private-items; }

main() {
  "$ROOT/scripts/setup.sh" check
  use_rust
  step shell_scripts
  step compose_file
  step "$ROOT/scripts/monitoring.sh" check
  step manifests
  step plots
  step cargo fmt --check
  step dependencies
  step cargo clippy --all-targets --locked -- -D warnings
  step docs
  say "check: all good"
}
main "$@"

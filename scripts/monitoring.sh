#!/usr/bin/env bash
# What can be said about monitoring/ without running the service (tests/it/alarms.rs runs it), and what is made from it.
#
#   monitoring.sh check   rules and their unit tests, Prometheus' and Alertmanager's settings, who is told what
#   monitoring.sh write   k8s/components/monitoring/rules.yaml from the rules (a test compares)
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

RULES=monitoring/prometheus/flashsale.rules.yaml
ALERTMANAGER=monitoring/alertmanager/alertmanager.yml

quiet() { # command...: its output only if it fails
  local told
  told=$("$@" 2>&1) || {
    printf '%s\n' "$told" >&2
    return 1
  }
}
routes() {
  local receiver labels
  while read -r receiver labels; do
    case $receiver in '' | '#'*) continue ;; esac
    # shellcheck disable=SC2086 # labels are words
    quiet amtool config routes test --config.file="$ALERTMANAGER" --verify.receivers="$receiver" $labels ||
      die 1 "not for $receiver: $labels"
  done <monitoring/alertmanager/routes.test
}
check() {
  # Two rules that differ in nothing but their expression would hide each other: --lint-fatal.
  quiet promtool check rules --lint-fatal "$RULES"
  quiet promtool test rules monitoring/prometheus/flashsale.rules.test.yaml
  # Only the syntax: the file with the token is in the container.
  quiet promtool check config --syntax-only monitoring/prometheus/prometheus.yml
  quiet amtool check-config "$ALERTMANAGER"
  routes
}
write() {
  {
    cat <<'HEAD'
# Made from monitoring/prometheus/flashsale.rules.yaml by scripts/monitoring.sh write. Change it there.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata: {name: flashsale}
spec:
HEAD
    sed -n '/^groups:/,$p' "$RULES" | sed 's/^\(.\)/  \1/'
  } >k8s/components/monitoring/rules.yaml
}

cd "$ROOT"
case ${1:-} in
  check | write) "$1" ;;
  *) die "$EX_USAGE" "check or write" ;;
esac

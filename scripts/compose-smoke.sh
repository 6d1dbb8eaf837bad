#!/usr/bin/env bash
# The whole system by Docker Compose, tried: up, a sale that sells out, every service killed once in the middle of a crowd, the books, down.
#
#   compose-smoke.sh [--keep]      needs docker compose; --keep leaves it running
#
# A project of its own (flashsale-smoke), so that a running `docker compose up` keeps its data; but its ports must be free.
# Exit 0 if no request failed, every accepted one has its decision, nothing was oversold, and the data survived down and up.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

KEEP=no
[ "${1:-}" != --keep ] || KEEP=yes
compose() { docker compose -p flashsale-smoke -f "$ROOT/docker-compose.yml" "$@"; }
flashsale() { compose exec -T api /flashsale "$@"; }
down() { [ "$KEEP" = yes ] || compose down -v --timeout 40 >/dev/null 2>&1 || true; }

crowd() { # SKU, stock, service to kill in the middle or nothing
  local report=$1.json status=0 pid
  flashsale sku put "$1" --on-hand "$2" --user-limit 1 --hold 4h >/dev/null
  # From a container of its own: the API may be what is killed.
  compose run --rm -T --no-deps --entrypoint /flashsale relay load --url http://api:8080 --sku "$1" --rate 50 --seconds 16 >"$WORK/$report" &
  pid=$!
  if [ -n "${3:-}" ]; then
    sleep 5 # into the crowd
    crash "$3"
  fi
  wait "$pid" || status=$?
  row "$1" "$WORK/$report" || status=1
  [ "$status" = 0 ] || { cat "$WORK/$report" >&2 && die 1 "the crowd of $1 did not end well"; }
}
# As a crash of the program, not as an operator's `docker kill`, after which no restart policy acts.
crash() { # service
  local container pid
  container=$(compose ps -q "$1" | head -1)
  pid=$(docker inspect -f '{{.State.Pid}}' "$container")
  say "compose: kill -9 $1"
  kill -9 "$pid"
}
row() { # name, report
  python3 -c '
import json, sys
r = json.load(open(sys.argv[2]))
print("| {} | {} | {} | {} | {} | {} | {} |".format(
    sys.argv[1], r["offered"], r["accepted"], r["failed"], r["reserved"], r["sent_again"], r["latency_ms"]["p99"]))
sys.exit(bool(r["failed"]))' "$1" "$2"
}

main() {
  have python3 || die "$EX_UNAVAILABLE" "needs python3 for the table"
  WORK=$(mktemp -d)
  trap 'rm -rf "$WORK"; down' EXIT
  say "compose: up"
  compose up --build --detach --wait
  echo "| crowd | offered | accepted | failed | reserved | sent again | p99 ms |"
  echo "|---|---|---|---|---|---|---|"
  crowd plain 400
  for service in api consumer relay audit redis kafka postgres; do
    crowd "$service" 400 "$service"
    compose up --detach --wait >/dev/null 2>&1
  done
  flashsale audit
  say "compose: down and up again: the data stays"
  compose down --timeout 40 >/dev/null 2>&1
  compose up --detach --wait >/dev/null 2>&1
  flashsale sku show plain --json | grep -q '"reserved": 400' || die 1 "the holds are gone"
  flashsale audit
  say "compose: no request failed, and the books add up"
}
main "$@"

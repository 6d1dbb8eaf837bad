#!/usr/bin/env bash
# The whole system by Docker Compose, tried: up, a sale that sells out, every service killed once in the middle of a crowd, the books, down.
#
#   compose-smoke.sh [--keep]      needs docker compose, python3 and the ports of the compose file; --keep leaves it running
#
# A project of its own (flashsale-smoke), so that the data of a `docker compose up` is not touched. Prints a table, a line for each crowd:
# twice as many buyers as units, and "back" is how long the killed service took to be healthy again, started by its restart policy.
# Exit 0 if no request failed, every accepted one has its decision, every crowd bought all units and not one more, the auditor agrees,
# and the data survived down and up. RATE (50) requests a second for EACH (24) seconds each; TIMEOUT (300) seconds to be up or back.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

RATE=${RATE:-50} SECONDS_EACH=${EACH:-24} WAIT=${TIMEOUT:-300}
UNITS=$((RATE * SECONDS_EACH / 2))
SERVICES=(api consumer relay audit redis kafka postgres)
GIT_REVISION=${GIT_REVISION:-$(git -C "$ROOT" rev-parse --short HEAD 2>/dev/null || echo unknown)}
export GIT_REVISION

compose() { docker compose -p flashsale-smoke -f "$ROOT/docker-compose.yml" "$@"; }
flashsale() { compose exec -T api /flashsale "$@"; }
up() { compose up --detach --wait --wait-timeout "$WAIT" "$@"; }
down() { compose down --remove-orphans --timeout 40 "$@"; }
quietly() { # command...: its output only if it fails
  "$@" >"$WORK/log" 2>&1 || { cat "$WORK/log" >&2 && die 1 "$* failed"; }
}
finish() {
  [ "$KEEP" = yes ] || down --volumes >/dev/null 2>&1 || true
  rm -rf "$WORK"
}

# A row of the table; whether it is a good one.
row() { # crowd, seconds until it was back or -, report
  python3 - "$1" "$2" "$3" "$UNITS" <<'PYTHON'
import json, sys
r = json.load(open(sys.argv[3]))
print("| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |".format(
    sys.argv[1], r["offered"], r["accepted"], sum(r["refused"].values()), r["failed"], r["reserved"], r["sent_again"],
    r["connections_broken"], r["latency_ms"]["p50"], r["latency_ms"]["p99"], sys.argv[2]), flush=True)
sys.exit(bool(r["violations"] or r["failed"] or r["reserved"] != int(sys.argv[4])))
PYTHON
}
crowd() { # its name; service to kill in the middle, or nothing
  local report=$WORK/$1.json back=- status=0 pid
  flashsale sku put "$1" --on-hand "$UNITS" --user-limit 1 --hold 4h >/dev/null
  # In a container of its own: the API may be what is killed.
  compose run --rm -T --no-deps --name "flashsale-smoke-load-$1" relay load --url http://api:8080 --sku "$1" --rate "$RATE" \
    --seconds "$SECONDS_EACH" --patience 120 >"$report" 2>"$WORK/load.log" &
  pid=$!
  if [ -n "${2:-}" ]; then
    crowd_has_begun "$1"
    back=$(crash "$2")
  fi
  wait "$pid" || status=$?
  row "$1" "$back" "$report" || status=1
  [ "$status" = 0 ] || { cat "$report" "$WORK/load.log" >&2 && die 1 "the crowd of $1 did not end well"; }
}
crowd_has_begun() { # SKU: waits until a tenth of it is sold
  local tries=$((WAIT * 2)) reserved
  while [ $((tries -= 1)) -ge 0 ]; do
    reserved=$(flashsale sku show "$1" --json | sed -n 's/^ *"reserved": \([0-9]*\),*$/\1/p')
    [ "${reserved:-0}" -lt $((UNITS / 10)) ] || return 0
    sleep 0.2
  done
  die 1 "nobody buys $1"
}

# Kills the process of a service as a crash would, and waits until the restart policy has brought it back. Not by `docker kill`: that is an
# operator's wish, after which no policy acts; and the first process of a container can only be killed from outside of it.
crash() { # service: prints the seconds
  local container restarts started tries=$((WAIT * 5))
  container=$(compose ps -q "$1" | head -1)
  restarts=$(docker inspect -f '{{.RestartCount}}' "$container")
  say "compose: kill -9 $1"
  started=$(date +%s%N)
  docker run --rm --pid host --entrypoint bash postgres:18 -c "kill -9 $(docker inspect -f '{{.State.Pid}}' "$container")" ||
    die 1 "could not kill $1"
  while [ $((tries -= 1)) -ge 0 ]; do
    # In this order: until the count is another one, the health is still that of before.
    if [ "$(docker inspect -f '{{.RestartCount}}' "$container")" -gt "$restarts" ] &&
      [ "$(docker inspect -f '{{.State.Running}} {{.State.Health.Status}}' "$container")" = "true healthy" ]; then
      python3 -c 'import sys; print(round((int(sys.argv[2]) - int(sys.argv[1])) / 1e9, 1))' "$started" "$(date +%s%N)"
      return
    fi
    sleep 0.2
  done
  die 1 "$1 did not come back: $(docker inspect -f '{{json .State}}' "$container")"
}

# What a browser and a person need: the API page on loopback, a demo sale, an image that says what it is.
look() {
  local page=http://127.0.0.1:8080/docs/ label
  python3 -c 'import sys, urllib.request as u; assert b"<html" in u.urlopen(sys.argv[1], timeout=5).read()' "$page" ||
    die 1 "no page at $page"
  flashsale sku show demo >/dev/null || die 1 "there is no demo sale"
  label=$(docker inspect -f '{{index .Config.Labels "org.opencontainers.image.revision"}}' flashsale:dev)
  [ "$label" = "$GIT_REVISION" ] || die 1 "the image is of $label, not of $GIT_REVISION"
  flashsale --version | grep -qF "($GIT_REVISION)" || die 1 "the program is not of $GIT_REVISION"
}
books() {
  flashsale audit || die 1 "the books do not add up"
  flashsale partition show >/dev/null || die 1 "a partition is halted"
}

main() {
  case $* in
    '') KEEP=no ;;
    --keep) KEEP=yes ;;
    *) die "$EX_USAGE" "no such argument: $*" ;;
  esac
  have python3 || die "$EX_UNAVAILABLE" "needs python3"
  docker compose version >/dev/null 2>&1 || die "$EX_UNAVAILABLE" "needs docker compose"
  WORK=$(mktemp -d)
  trap finish EXIT
  say "compose: up"
  up --build
  look
  echo "| crowd | offered | accepted | refused | failed | reserved | sent again | connections broken | p50 ms | p99 ms | back after s |"
  echo "|---|---|---|---|---|---|---|---|---|---|---|"
  crowd undisturbed
  local service
  for service in "${SERVICES[@]}"; do crowd "kill-$service" "$service"; done
  books
  say "compose: down and up again: the data stays"
  quietly down
  quietly up
  [ "$(flashsale sku show undisturbed --json | sed -n 's/^ *"reserved": \([0-9]*\),*$/\1/p')" = "$UNITS" ] || die 1 "the holds are gone"
  crowd after-down-and-up
  books
  say "compose: no request failed, and the books add up"
}
main "$@"

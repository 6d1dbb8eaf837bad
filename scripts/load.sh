#!/usr/bin/env bash
# The whole service under load, measured from outside: `make load`.
#
#   load.sh [arm...]    default: headline half post sold-out
#     headline          one SKU, keyed, each POST answered with its decision (Prefer: wait), at LOAD_RATE
#     half              the same at half the rate: latencies are those of this one
#     unkeyed           the headline without Idempotency-Key
#     flood             the headline at LOAD_FLOOD, more than two cores can carry: what is answered is what they can; flood-unkeyed: without a key
#     batch             the headline in calls of 250 (LOAD_BATCH), on 32 connections
#     batch-unkeyed     the same without keys
#     post              202, and the decisions asked for after the rush
#     zipf              the headline on ten SKUs, Zipf's law
#     burst             the headline, half of it in a tenth of the time
#     sold-out          refusals of a sold-out SKU, keyed; sold-out-unkeyed: without a key
#     million           1,000,000 requests for 10,000 units
#     traces            the half rate with and without traces of 1 % (LOAD_TRACE_SHARE), in turns
#
# Private servers with fsync on; api, consumer, relay and auditor as processes of their own; everything on this machine, the generator too.
# A report of each arm goes to load-tests/results/ARM.json, a table to stdout. Exit 1 if a run saw what can't be.
# LOAD_ROUNDS (1): all arms so many times, in turns, so that whatever drifts meets them alike; a report is then that of the round with the median CPU
# time, and has the numbers of all.
# LOAD_RATE (requests a second, 10000), LOAD_FLOOD (30000), LOAD_SECONDS (20), LOAD_CONNECTIONS (512), LOAD_WARM_UP
# (seconds at half the rate, 60); FLASHSALE_BIN runs that program instead of building it.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

RATE=${LOAD_RATE:-10000} SECONDS_EACH=${LOAD_SECONDS:-20} CONNECTIONS=${LOAD_CONNECTIONS:-512} WARM_UP=${LOAD_WARM_UP:-60} FLOOD=${LOAD_FLOOD:-30000} ROUNDS=${LOAD_ROUNDS:-1}
RESULTS=$ROOT/load-tests/results
WORK='' API='' status=0
declare -A PIDS=()

cleanup() {
  set +e
  local role
  for role in "${!PIDS[@]}"; do kill -TERM "${PIDS[$role]}" 2>/dev/null; done
  for role in "${!PIDS[@]}"; do gone "${PIDS[$role]}" 30 || kill -KILL "${PIDS[$role]}"; done
  "$ROOT/scripts/services.sh" clean "$WORK/services" >/dev/null 2>&1
  rm -rf "$WORK"
}
# Starts one process and waits until it is ready.
start() { # role, arguments...
  local role=$1 admin tries=600
  shift
  HTTP_ADDR=127.0.0.1:0 ADMIN_ADDR=127.0.0.1:$(free_port 8080) # bound a moment later; nobody else takes ports there
  export HTTP_ADDR ADMIN_ADDR
  "$FLASHSALE_BIN" "$@" </dev/null >"$WORK/$role.log" 2>&1 &
  PIDS[$role]=$!
  admin=$ADMIN_ADDR
  until ADMIN_ADDR=$admin "$FLASHSALE_BIN" healthcheck >/dev/null 2>&1; do
    kill -0 "${PIDS[$role]}" 2>/dev/null || die 1 "$role ended: $(tail -5 "$WORK/$role.log")"
    [ $((tries -= 1)) -ge 0 ] || die 1 "$role is not ready: $(tail -5 "$WORK/$role.log")"
    sleep 0.1
  done
}
stop() { # role...
  local role
  for role in "$@"; do
    kill -TERM "${PIDS[$role]}"
    gone "${PIDS[$role]}" 30 || die 1 "$role did not end"
    unset "PIDS[$role]"
  done
}
start_service() { # more arguments of the api and the consumer...
  start api api "$@"
  API=http://$(sed -n 's/.*"http.addr":"\([^"]*\)".*/\1/p' "$WORK/api.log" | head -1)
  start consumer consumer "$@"
  start relay relay
  start auditor audit --watch
}
sku() { # name, on hand, limit
  "$FLASHSALE_BIN" sku put "$1" --on-hand "$2" --user-limit 1 --hold 4h >/dev/null
}
crowd() { # arm, arguments of flashsale load...
  local arm=$1 service watched=()
  shift
  for service in "${!PIDS[@]}"; do watched+=(--watch "$service=${PIDS[$service]}"); done
  for service in postgres redis kafka; do
    watched+=(--watch "$service=$(cut -d' ' -f1 "$WORK/services/$service/pid")")
  done
  "$FLASHSALE_BIN" load --url "$API" --connections "$CONNECTIONS" --patience 120 "${watched[@]}" "${SETTINGS[@]}" \
    --report "$RESULTS/$arm.json" "$@" >/dev/null 2>"$WORK/load.err" || {
    status=1
    say "load: $arm: $(cat "$WORK/load.err")"
  }
  row "$arm"
  choose "$arm"
}
# Of all rounds so far of an arm: the report of the median one, with the numbers of all.
choose() { # arm
  mkdir -p "$WORK/rounds"
  mv "$RESULTS/$1.json" "$WORK/rounds/$1.$(date +%s%N).json"
  python3 - "$RESULTS/$1.json" "$WORK/rounds/$1".*.json <<'P'
import json, sys
rounds = [json.load(open(name)) for name in sys.argv[2:]]
numbers = [{"answered_per_second": r["answered_per_second"], "cpu_us": r["cpu_us_per_request"]["all"],
            "latency_p95_ms": (r["latency_ms"] or {}).get("p95")} for r in rounds]
chosen = sorted(rounds, key=lambda r: r["cpu_us_per_request"]["all"])[(len(rounds) - 1) // 2]
if len(rounds) > 1:
    chosen["rounds"] = numbers
json.dump(chosen, open(sys.argv[1], "w"), indent=2)
open(sys.argv[1], "a").write("\n")
P
}
row() { # arm
  python3 - "$1" "$RESULTS/$1.json" <<'P'
import json, sys
r = json.load(open(sys.argv[2]))
ms = lambda what, at: "-" if not r[what] else f'{r[what][at]:.1f}'
cpu = r["cpu_us_per_request"]
print("| {} | {} | {} | {} | {} | {} | {} | {} / {} | {} / {} | {} | {} |".format(
    sys.argv[1], r["rate"], r["offered"], r["answered_per_second"], r["reserved"], sum(r["refused"].values()), r["failed"],
    ms("latency_ms", "p50"), ms("latency_ms", "p95"), ms("decision_ms", "p50"), ms("decision_ms", "p95"), cpu["all"],
    " ".join(f"{name} {us}" for name, us in sorted(cpu.items()) if name != "all")), flush=True)
P
}
arm() { # name
  local name=$1 half=$((RATE / 2)) n round=0 traced
  case $name in
    headline | half | unkeyed | flood | flood-unkeyed | post | burst | zipf | batch | batch-unkeyed)
      local rate=$RATE more=(--wait 10) skus=$name CONNECTIONS=$CONNECTIONS
      [ "$name" != half ] || rate=$half
      [[ $name != flood* ]] || rate=$FLOOD
      [[ $name != *unkeyed ]] || more+=(--unkeyed)
      [[ $name != batch* ]] || more+=(--batch "${LOAD_BATCH:-250}") CONNECTIONS=32
      [ "$name" != post ] || more=()
      [ "$name" != burst ] || more+=(--profile burst)
      sku "$name" 100000000
      if [ "$name" = zipf ]; then
        for n in {1..9}; do sku "zipf-$n" 100000000 && skus+=,zipf-$n; done
      fi
      crowd "$name" --sku "$skus" --rate "$rate" --seconds "$SECONDS_EACH" "${more[@]}"
      ;;
    sold-out | sold-out-unkeyed)
      sku "$name" 1
      "$FLASHSALE_BIN" load --url "$API" --sku "$name" --rate 20 --seconds 1 >/dev/null
      local keys=()
      [ "$name" = sold-out ] || keys=(--unkeyed)
      crowd "$name" --sku "$name" --rate "$RATE" --seconds "$SECONDS_EACH" "${keys[@]}"
      ;;
    million)
      sku "million-$ROUND" 10000
      crowd million --sku "million-$ROUND" --rate "$RATE" --seconds $((1000000 / RATE)) --wait 10
      ;;
    traces)
      sku traces 100000000
      for traced in off on on off on off off on; do # whatever drifts meets both alike
        round=$((round + 1))
        stop auditor relay consumer api
        if [ "$traced" = on ]; then
          start_service --otel-exporter-otlp-endpoint "http://127.0.0.1:$COLLECTOR" --otel-traces-sampler-arg "${LOAD_TRACE_SHARE:-0.01}"
        else
          start_service
        fi
        crowd "traces-$round-$traced" --sku traces --rate "$half" --seconds "$SECONDS_EACH" --wait 10
      done
      ;;
    *) die "$EX_USAGE" "there is no arm $name" ;;
  esac
}
# Takes spans and forgets them.
start_collector() {
  COLLECTOR=$(free_port 8080)
  python3 - "$COLLECTOR" >/dev/null 2>&1 <<'P' &
import http.server, sys
class Sink(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Sink).serve_forever()
P
  PIDS[collector]=$!
}

main() {
  local arms=("$@") name
  [ $# -gt 0 ] || arms=(headline half post sold-out)
  have python3 || die "$EX_UNAVAILABLE" "needs python3 for the table"
  "$ROOT/scripts/setup.sh"
  if [ -z "${FLASHSALE_BIN:-}" ]; then
    use_rust
    FLASHSALE_GIT_REVISION=${FLASHSALE_GIT_REVISION:-$(git -C "$ROOT" describe --always --dirty 2>/dev/null || true)} cargo build --profile dist --locked
    FLASHSALE_BIN=$ROOT/target/dist/flashsale
  fi
  export FLASHSALE_BIN
  WORK=$(mktemp -d "${TMPDIR:-/tmp}/flashsale-load.XXXXXX")
  trap cleanup EXIT
  trap 'exit 130' INT TERM
  chmod 711 "$WORK" # Postgres runs as a user of its own and must pass through
  mkdir -p "$WORK/services" "$RESULTS"
  # A sixth of the machine's memory, as its owner would: with the 256 MB of the tests a crowd of millions outgrows it, and inserts wait for pages.
  export POSTGRES_BUFFERS=${POSTGRES_BUFFERS:-$(awk '/^MemTotal/ {print int($2 / 6144) "MB"}' /proc/meminfo)}
  eval "$("$ROOT/scripts/services.sh" start "$WORK/services")"
  SETTINGS=(--set acks=all --set replication=1 --set "postgres_fsync=$(ask_postgres fsync)" --set "postgres_buffers=$(ask_postgres shared_buffers)"
    --set "postgres=$(ask_postgres server_version)" --set "kafka=$(basename "$KAFKA_HOME"/lib/kafka-clients-*.jar .jar)"
    --set "redis=$(redis-server --version | sed 's/.*v=\([^ ]*\).*/\1/')")
  "$FLASHSALE_BIN" migrate >"$WORK/migrate.log" 2>&1 || die 1 "$(tail -5 "$WORK/migrate.log")"
  case " ${arms[*]} " in *" traces "*) start_collector ;; esac
  start_service
  # The broker's JVM compiles what it runs often: not in the clock.
  sku warm-up 100000000
  "$FLASHSALE_BIN" load --url "$API" --sku warm-up --rate $((RATE / 2)) --seconds "$WARM_UP" --wait 10 --connections "$CONNECTIONS" >/dev/null
  echo "| arm | rate | offered | answered/s | reserved | refused | failed | answer p50 / p95 ms | decision p50 / p95 ms | CPU-us a request | of which |"
  echo "|---|---|---|---|---|---|---|---|---|---|---|"
  for ((ROUND = 1; ROUND <= ROUNDS; ROUND++)); do
    for name in "${arms[@]}"; do arm "$name"; done
  done
  if [ "$ROUNDS" -gt 1 ]; then
    echo "| the median of $ROUNDS rounds | | | | | | | | | | |"
    for name in "${arms[@]}"; do [ "$name" = traces ] || row "$name"; done
  fi
  "$ROOT/scripts/plot.py" >/dev/null
  return "$status"
}
ask_postgres() { # setting
  "$(postgres_bin "")/psql" "$DATABASE_URL" -Atc "SHOW $1" 2>/dev/null || psql "$DATABASE_URL" -Atc "SHOW $1"
}
main "$@"

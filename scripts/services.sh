#!/usr/bin/env bash
# Private Postgres, Redis and Kafka under one folder, on free ports of 127.0.0.1, without a container engine.
#
#   services.sh start  <dir> [postgres|redis|kafka ...]   starts what is not running, prints the addresses to export
#   services.sh stop   <dir> [...]                        ends them in good order; data stays
#   services.sh kill   <dir> postgres|redis|kafka ...     SIGKILL to the whole server, as a crash of its machine would
#   services.sh pause  <dir> postgres|redis|kafka ...     freezes it: connections stay open, nothing answers
#   services.sh resume <dir> postgres|redis|kafka ...
#   services.sh status <dir>                              exit 0 if all three run, else 3
#   services.sh clean  <dir>                              ends them at once and removes their data
#
# <dir>/env holds the addresses (`. <dir>/env`) and the ports: a restart takes the same ports again while they are free.
# <dir>/<service>/server.log is what the server says. Postgres is real (fsync on), Redis keeps nothing, Kafka is one broker.
# FLASHSALE_KAFKA_FAST=1 trades Kafka's top speed for a quicker start, as tests want it. KAFKA_HEAP is its memory (512m), POSTGRES_BUFFERS Postgres'
# shared_buffers (256MB).
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

ALL=(postgres redis kafka)
START_SECONDS=90 STOP_SECONDS=20

usage() {
  sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}" >&2
  exit "$EX_USAGE"
}

# ---- processes ----

pid_of() { recorded_pid "$DIR/$1/pid"; } # service: its pid, if it runs
# A server gets a session of its own, so that Ctrl-C in our terminal does not reach it, and none of our pipes or locks, so that
# whoever reads our output sees its end.
launch() { # service, command...
  local name=$1 log=$DIR/$1/server.log
  shift
  (cd / && exec setsid "$@" </dev/null >>"$log" 2>&1 8>&- 9>&-) &
  record_pid $! "$DIR/$name/pid"
}
family() { # pid: it and its children
  local children=''
  { read -r children <"/proc/$1/task/$1/children"; } 2>/dev/null || true
  echo "$1 $children"
}
crash() { # pid: SIGKILL to it and its children; stopped first, or a postmaster would begin to repair in between
  local pid pids
  kill -STOP "$1"
  read -ra pids <<<"$(family "$1")"
  kill -KILL "${pids[@]}" 2>/dev/null || true
  for pid in "${pids[@]}"; do gone "$pid" 5 || die 1 "process $pid outlived SIGKILL"; done
}

# ---- ports and addresses ----

read_env() {
  POSTGRES_PORT='' REDIS_PORT='' KAFKA_PORT='' KAFKA_CONTROLLER_PORT='' POSTGRES_DATA=''
  # shellcheck disable=SC1091
  [ ! -f "$DIR/env" ] || . "$DIR/env"
}
write_env() { # replaced in one step: someone may be reading it
  {
    echo "# Written by scripts/services.sh. The addresses:"
    [ -z "$POSTGRES_PORT" ] || echo "export DATABASE_URL=postgres://postgres@127.0.0.1:$POSTGRES_PORT/postgres"
    [ -z "$REDIS_PORT" ] || echo "export REDIS_URL=redis://127.0.0.1:$REDIS_PORT"
    [ -z "$KAFKA_PORT" ] || echo "export KAFKA_BROKERS=127.0.0.1:$KAFKA_PORT"
    echo "# For services.sh itself:"
    echo "POSTGRES_PORT=$POSTGRES_PORT REDIS_PORT=$REDIS_PORT KAFKA_PORT=$KAFKA_PORT KAFKA_CONTROLLER_PORT=$KAFKA_CONTROLLER_PORT"
    printf 'POSTGRES_DATA=%q\n' "$POSTGRES_DATA"
  } >"$DIR/env.new"
  mv "$DIR/env.new" "$DIR/env"
}
keep_or_pick() { # name of a variable that holds a port or nothing, attempt
  local -n port=$1
  if [ -z "$port" ] || [ "$2" -gt 1 ] || taken "$port"; then port=$(free_port "$POSTGRES_PORT" "$REDIS_PORT" "$KAFKA_PORT" "$KAFKA_CONTROLLER_PORT"); fi
}
# Settles ports and folders of a service that is about to start. The lock is for services that start side by side.
reserve() { # service, attempt
  exec 8>"$DIR/env.lock"
  flock 8
  read_env
  case $1 in
    postgres)
      keep_or_pick POSTGRES_PORT "$2"
      [ -n "$POSTGRES_DATA" ] || POSTGRES_DATA=$(postgres_folder)
      ;;
    redis) keep_or_pick REDIS_PORT "$2" ;;
    kafka)
      keep_or_pick KAFKA_PORT "$2"
      keep_or_pick KAFKA_CONTROLLER_PORT "$2"
      ;;
  esac
  write_env
  exec 8>&-
}

# ---- postgres ----

# It refuses to run as root. setpriv, unlike runuser, replaces itself by the command: the pid that we know is the postmaster's.
as_postgres() {
  if [ "$(id -u)" != 0 ]; then
    "$@"
  else
    (cd / && exec setpriv --reuid postgres --regid postgres --init-groups -- "$@")
  fi
}
# A data folder that the server's user can reach: below <dir>, or, where a parent is closed to it, a private one in /var/tmp.
postgres_folder() {
  local data=$DIR/postgres/data
  if [ "$(id -u)" = 0 ]; then
    id postgres >/dev/null 2>&1 || die "$EX_UNAVAILABLE" "no user postgres: run scripts/setup.sh"
    mkdir -p "$data"
    chown postgres: "$data"
    as_postgres test -w "$data" || {
      rmdir "$data"
      data=/var/tmp/flashsale-postgres-$(printf '%s' "$DIR" | sha256sum | cut -c1-16)
      [ -d "$data" ] || mkdir -m 700 "$data"
      [ "$(stat -c %u "$data")" != 0 ] || chown postgres: "$data"
      if [ -L "$data" ] || [ "$(stat -c %U "$data")" != postgres ]; then die 1 "$data belongs to someone else"; fi
    }
  fi
  echo "$data"
}
# Makes the cluster beside its place and moves it there when it is whole: an interrupted start leaves no half of one.
init_postgres() { # folder of the programs
  local new=$POSTGRES_DATA.new
  rm -rf "$new"
  mkdir -m 700 "$new"
  [ "$(id -u)" != 0 ] || chown postgres: "$new"
  as_postgres "$1/initdb" -D "$new" -U postgres -A trust -E UTF8 --locale=C --no-sync >"$DIR/postgres/initdb.log" 2>&1 ||
    die 1 "initdb failed: $(tail -3 "$DIR/postgres/initdb.log")"
  mkdir -p "$POSTGRES_DATA"
  mv -T "$new" "$POSTGRES_DATA" # over an empty folder
}
spawn_postgres() {
  local bin major='' options=() option
  [ ! -f "$POSTGRES_DATA/PG_VERSION" ] || major=$(<"$POSTGRES_DATA/PG_VERSION")
  bin=$(postgres_bin "$major") || die "$EX_UNAVAILABLE" "no PostgreSQL server ${major:+$major, which wrote $POSTGRES_DATA}: run scripts/setup.sh"
  if [ -z "$major" ]; then
    init_postgres "$bin"
  fi
  forget_dead_postmaster
  # No socket file: a killed server leaves its lock behind, which blocks the restart.
  for option in "port=$POSTGRES_PORT" listen_addresses=127.0.0.1 unix_socket_directories= max_connections=200 \
    "shared_buffers=${POSTGRES_BUFFERS:-256MB}" \
    max_wal_size=4GB fsync=on synchronous_commit=on; do
    options+=(-c "$option")
  done
  if as_postgres "$bin/postgres" -D "$POSTGRES_DATA" -c wal_compression=lz4 -C wal_compression >/dev/null 2>&1; then
    options+=(-c wal_compression=lz4)
  fi
  if [ "$(id -u)" = 0 ]; then
    launch postgres setpriv --reuid postgres --regid postgres --init-groups -- "$bin/postgres" -D "$POSTGRES_DATA" "${options[@]}"
  else
    launch postgres "$bin/postgres" -D "$POSTGRES_DATA" "${options[@]}"
  fi
}
# After a kill its pid file stays. Postgres clears that up on its own, but not while the pid exists: as a zombie that process 1 is slow
# to collect, or as another process by now. We know that the postmaster is dead; this looks whether a child of it still works on the
# data, by who is attached to its shared memory (line 7: key and id), and if none does, removes the file.
forget_dead_postmaster() {
  local file=$POSTGRES_DATA/postmaster.pid pid id
  pid=$(sed -n 1p "$file" 2>/dev/null) || return 0
  [ -d "/proc/$pid" ] || return 0
  id=$(sed -n 7p "$file")
  awk -v id="${id##* }" '$2 == id && $7 > 0 { attached = 1 } END { exit attached }' /proc/sysvipc/shm || return 0
  rm -f "$file"
}

# ---- redis, kafka ----

spawn_redis() {
  have redis-server || die "$EX_UNAVAILABLE" "no redis-server: run scripts/setup.sh"
  launch redis redis-server --port "$REDIS_PORT" --bind 127.0.0.1 --save "" --appendonly no --daemonize no --dir "$DIR/redis"
}
spawn_kafka() {
  local java=(java -Xms128m "-Xmx${KAFKA_HEAP:-512m}" -XX:+UseSerialGC -XX:-UsePerfData -XX:+ExitOnOutOfMemoryError) data=$DIR/kafka/data session=6000
  [ -d "$KAFKA_HOME/formatted" ] || die "$EX_UNAVAILABLE" "no Kafka in $KAFKA_HOME: run scripts/setup.sh"
  have java || die "$EX_UNAVAILABLE" "no java: run scripts/setup.sh"
  # Formatting takes a second of Java; a copy of a formatted folder does not. (Its ids need to be unique within a cluster only.)
  [ -f "$data/meta.properties" ] || { rm -rf "$data" && cp -R "$KAFKA_HOME/formatted" "$data"; }
  if [ "${FLASHSALE_KAFKA_FAST:-}" = 1 ]; then
    java+=(-XX:TieredStopAtLevel=1)
    session=2000
  fi
  {
    kafka_properties "$data" "$KAFKA_PORT" "$KAFKA_CONTROLLER_PORT"
    # After a kill the controller waits out the dead broker's session before it lets the new one in: 9 s by default.
    echo "broker.session.timeout.ms=$session"
    echo "broker.heartbeat.interval.ms=250"
  } >"$DIR/kafka/server.properties"
  [ ! -f "$KAFKA_HOME/classes.jsa" ] || java+=("-XX:SharedArchiveFile=$KAFKA_HOME/classes.jsa")
  # By a file, so that ninety jars do not fill every list of processes.
  printf -- '-cp "%s"\n' "$(kafka_classpath)" >"$DIR/kafka/java.args"
  launch kafka "${java[@]}" "@$DIR/kafka/java.args" "-Dlog4j2.configurationFile=$ROOT/scripts/kafka/log4j2.properties" \
    kafka.Kafka "$DIR/kafka/server.properties"
}

# ---- verbs ----

declare -A READY=(
  [postgres]='database system is ready to accept connections'
  [redis]='Ready to accept connections'
  [kafka]='Kafka Server started'
)
declare -A STOP_SIGNAL=([postgres]=INT [redis]=TERM [kafka]=TERM) # INT: Postgres does not wait for its clients

log_has() { # service, size of its log before the start, text (not by grep -q: leaving early fails the pipe)
  tail -c "+$(($2 + 1))" "$DIR/$1/server.log" | awk -v text="$3" 'index($0, text) { found = 1 } END { exit !found }'
}
wait_ready() { # service, size of its log before the start
  local tries=$((START_SECONDS * 25))
  until log_has "$1" "$2" "${READY[$1]}"; do
    pid_of "$1" >/dev/null || return 1
    [ $((tries -= 1)) -ge 0 ] || return 1
    sleep 0.04
  done
}
start_one() { # service
  local log=$DIR/$1/server.log size attempt
  if pid_of "$1" >/dev/null; then return; fi
  for attempt in 1 2 3; do
    reserve "$1" "$attempt"
    [ "$(stat -c %s "$log" 2>/dev/null || echo 0)" -lt 20000000 ] || mv "$log" "$log.1"
    touch "$log"
    size=$(stat -c %s "$log")
    "spawn_$1"
    if wait_ready "$1" "$size"; then return; fi
    stop_one "$1" KILL
    # Someone else may have taken the port after we looked.
    log_has "$1" "$size" 'Address already in use' || break
  done
  say "services.sh: $1 did not start; the end of $log:"
  tail -c "+$((size + 1))" "$log" | tail -20 >&2
  return 1
}
stop_one() { # service, [signal]
  local pid signal=${2:-${STOP_SIGNAL[$1]}}
  if pid=$(pid_of "$1"); then
    if [ "$signal" != KILL ]; then
      kill "-$signal" "$pid" || true # it may have ended this moment
      signal_family "$pid" CONT      # or be paused
    fi
    # A broker that lost its quorum never comes to the end of its shutdown.
    if [ "$signal" = KILL ] || ! gone "$pid" "$STOP_SECONDS"; then crash "$pid"; fi
  fi
  rm -f "$DIR/$1/pid"
}
signal_family() { # pid, signal
  local pids
  read -ra pids <<<"$(family "$1")"
  kill "-$2" "${pids[@]}" 2>/dev/null || true
}
freeze() { # service, STOP or CONT
  local pid
  pid=$(pid_of "$1") || die 1 "$1 is not running"
  signal_family "$pid" "$2"
}
# Runs one of the functions above for each service, side by side, each under the service's own lock.
for_each() { # function, services..., --, further arguments after the service
  local function=$1 services=() jobs=() job failed=0
  shift
  while [ $# -gt 0 ] && [ "$1" != -- ]; do services+=("$1") && shift; done
  [ $# = 0 ] || shift
  for service in "${services[@]}"; do
    mkdir -p "$DIR/$service"
    (
      exec 9>"$DIR/$service/lock"
      flock 9
      "$function" "$service" "$@"
    ) &
    jobs+=($!)
  done
  for job in "${jobs[@]}"; do wait "$job" || failed=$?; done
  return "$failed"
}
status() {
  local service pid code=0
  read_env
  local -A ports=([postgres]=$POSTGRES_PORT [redis]=$REDIS_PORT [kafka]=$KAFKA_PORT)
  for service in "${ALL[@]}"; do
    if pid=$(pid_of "$service"); then
      echo "$service runs on 127.0.0.1:${ports[$service]} (pid $pid)"
    else
      echo "$service is stopped" && code=3
    fi
  done
  return "$code"
}
clean() {
  for_each stop_one postgres -- QUIT # so that it gives its shared memory back
  for_each stop_one redis kafka -- KILL
  read_env
  [ -z "$POSTGRES_DATA" ] || rm -rf "$POSTGRES_DATA" "$POSTGRES_DATA.new"
  rm -rf "$DIR/postgres" "$DIR/redis" "$DIR/kafka" "$DIR/env" "$DIR/env.lock"
}

main() {
  local verb=${1:-} service
  [ $# -ge 2 ] || usage
  if [ "$verb" != start ] && [ ! -d "$2" ]; then
    [ "$verb" = stop ] || [ "$verb" = clean ] || die "$EX_USAGE" "no such folder: $2"
    return
  fi
  mkdir -p "$2"
  DIR=$(cd "$2" && pwd -P)
  shift 2
  for service in "$@"; do
    case $service in postgres | redis | kafka) ;; *) usage ;; esac
  done
  case $verb in
    start | stop) [ $# -gt 0 ] || set -- "${ALL[@]}" ;;
    kill | pause | resume) [ $# -gt 0 ] || usage ;;
    status | clean) [ $# = 0 ] || usage ;;
  esac
  case $verb in
    start)
      for_each start_one "$@"
      grep '^export ' "$DIR/env"
      ;;
    stop) for_each stop_one "$@" ;;
    kill) for_each stop_one "$@" -- KILL ;;
    pause) for_each freeze "$@" -- STOP ;;
    resume) for_each freeze "$@" -- CONT ;;
    status) status ;;
    clean) clean ;;
    *) usage ;;
  esac
}
main "$@"

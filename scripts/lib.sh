# shellcheck shell=bash disable=SC2034
# What the scripts share. To be sourced, never run.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
CACHE=${FLASHSALE_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/flashsale}
# One folder per content of the pom, so that a new version never meets the jars of an old one.
KAFKA_HOME=$CACHE/kafka-$(cksum <"$ROOT/scripts/kafka/pom.xml" | cut -d' ' -f1)
CARGO_DENY=0.20.2 CHECK_JSONSCHEMA=0.39.0
CARGO_DENY_HOME=$CACHE/cargo-deny-$CARGO_DENY
JSONSCHEMA_HOME=$CACHE/check-jsonschema-$CHECK_JSONSCHEMA
K8S_CHECK=(kubernetes-validate==1.37.0 cloudcoil-models-keda==2.16.1 cloudcoil-models-prometheus-operator==0.80.1)
K8S_CHECK_HOME=$CACHE/k8s-check-$(cksum <<<"${K8S_CHECK[*]}" | cut -d' ' -f1)
KUSTOMIZE=v5.8.0
# rustup and cargo install here; a shell that has not been opened again since does not know it yet.
PATH=$PATH:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin

EX_USAGE=64 EX_UNAVAILABLE=69 # as sysexits.h numbers them

say() { printf '%s\n' "$*" >&2 || true; } # a terminal that is gone is no reason to fail
die() { # exit code, message
  local code=$1
  shift
  say "${0##*/}: $*"
  exit "$code"
}
have() { command -v "$1" >/dev/null 2>&1; }

# Folder of the PostgreSQL server's programs: of one major version, or the newest. Debian keeps them outside PATH.
postgres_bin() { # major or nothing
  local dir dirs
  if [ -n "$1" ]; then
    dirs=("/usr/lib/postgresql/$1/bin" "/usr/pgsql-$1/bin")
  else
    mapfile -t dirs < <(printf '%s\n' /usr/lib/postgresql/*/bin /usr/pgsql-*/bin | sort -Vr)
    if have postgres; then dirs+=("$(dirname "$(command -v postgres)")"); fi
  fi
  for dir in "${dirs[@]}"; do
    if [ -x "$dir/postgres" ] && [ -x "$dir/initdb" ]; then
      echo "$dir"
      return
    fi
  done
  return 1
}

# Renders a kustomization: `kubectl kustomize`, or kustomize itself.
render() { # folder
  if have kubectl; then kubectl kustomize "$1"; else "$(kustomize_program)" build "$1"; fi
}
kustomize_program() {
  command -v kustomize || { [ -x "$CACHE/bin/kustomize" ] && echo "$CACHE/bin/kustomize"; }
}

# ---- processes ----

process_field() { # pid, number as in proc(5), 3 or more; fails when there is no such process
  local stat fields
  { read -r stat <"/proc/$1/stat"; } 2>/dev/null || return 1
  read -ra fields <<<"${stat##*) }" # the second field, a name in parentheses, may hold blanks
  echo "${fields[$2 - 3]}"
}
alive() { # pid; a zombie is dead (process 1 of a container may never collect it)
  local state
  state=$(process_field "$1" 3) && [ "$state" != Z ] && [ "$state" != X ]
}
gone() { # pid, seconds: waits for its end
  local tries=$(($2 * 50))
  while alive "$1"; do
    [ $((tries -= 1)) -ge 0 ] || return 1
    sleep 0.02
  done
}
# A process is ours only if pid and start time are those written down when it was started: pids are used again.
record_pid() { echo "$1 $(process_field "$1" 22)" >"$2"; } # pid, file
recorded_pid() {                                           # file: the pid, if that process still runs
  local pid at
  { read -r pid at <"$1"; } 2>/dev/null || return 1
  alive "$pid" && [ "$(process_field "$pid" 22)" = "$at" ] && echo "$pid"
}

# ---- ports ----

taken() { (: <"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
# Below the range that the system gives to outgoing connections: no stranger's connection takes the port of a stopped server, and a
# client that keeps trying can never be connected to itself.
free_port() { # ports not to take...
  local low=32768 first=20000 port
  { read -r low _ </proc/sys/net/ipv4/ip_local_port_range; } 2>/dev/null || true
  [ "$low" -gt 21000 ] || { first=10000 low=32768; }
  for _ in {1..200}; do
    port=$((first + (RANDOM * 32768 + RANDOM) % (low - first)))
    case " $* " in *" $port "*) continue ;; esac
    if ! taken "$port"; then
      echo "$port"
      return
    fi
  done
  die "$EX_UNAVAILABLE" "no free port between $first and $low"
}

# ---- kafka ----

# The class path in a fixed order: an archive of loaded classes (setup.sh) is valid only for exactly the list that it was made with.
kafka_classpath() { printf '%s\n' "$KAFKA_HOME"/lib/*.jar | LC_ALL=C sort | paste -sd: -; }

KAFKA_CLUSTER=4L6g3nShT-eMCtK--X86sw

# Properties of a broker that is its own controller, for development and tests.
kafka_properties() { # data folder, port, port of the controller
  cat <<P
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$3
listeners=PLAINTEXT://127.0.0.1:$2,CONTROLLER://127.0.0.1:$3
advertised.listeners=PLAINTEXT://127.0.0.1:$2
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
log.dirs=$1
auto.create.topics.enable=false
num.partitions=1
default.replication.factor=1
min.insync.replicas=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=3
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=3
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
# A lone consumer need not wait for others; tests use sessions of a second.
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
P
}

# ---- rust ----

rust_wanted() { sed -n 's/^rust-version *= *"\(.*\)"/\1/p' "$ROOT/Cargo.toml"; }
rust_is_new_enough() {
  have cargo && [ "$(printf '%s\n' "$(rust_wanted)" "$(cargo --version 2>/dev/null | cut -d' ' -f2)" | sort -V | head -1)" = "$(rust_wanted)" ]
}
# Takes the default toolchain if it is new enough, else the wanted one of rustup's; changes nobody's default. Fails if there is neither.
use_rust() {
  cd "$ROOT" || return # rustup's choice may depend on the folder
  rust_is_new_enough && return
  export RUSTUP_TOOLCHAIN
  RUSTUP_TOOLCHAIN=$(rust_wanted)
  rust_is_new_enough && return
  unset RUSTUP_TOOLCHAIN
  return 1
}

cargo_deny() { # path of the pinned version, here or in the cache
  local program
  for program in "$CARGO_DENY_HOME/bin/cargo-deny" "$(command -v cargo-deny)"; do
    [ "$("$program" --version 2>/dev/null)" = "cargo-deny $CARGO_DENY" ] || continue
    echo "$program"
    return
  done
  return 1
}

#!/usr/bin/env bash
# Sets up what is missing to build, run and test flashsale; takes a second when nothing is.
#
#   setup.sh          a C toolchain, Rust, and the servers for services.sh: Postgres, Redis, Kafka (jars, in the cache)
#   setup.sh test     also what tests start: Prometheus and Alertmanager
#   setup.sh check    and the tools of `make check`
#
# A server whose address is in the environment (DATABASE_URL, REDIS_URL, KAFKA_BROKERS) is not needed here and not demanded.
# Downloads go to ${FLASHSALE_CACHE:-~/.cache/flashsale}; Debian packages are installed as root or by sudo, if that asks nothing.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

quietly() { # what it is, command...: its output only if it fails
  local what=$1 log
  shift
  log=$(mktemp)
  say "setup: $what"
  if ! "$@" </dev/null >"$log" 2>&1; then
    tail -40 "$log" >&2
    rm -f "$log"
    die "$EX_UNAVAILABLE" "failed: $what"
  fi
  rm -f "$log"
}

# ---- Debian packages ----

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }
may_install() { have apt-get && { [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null; }; }

java_major() { java -version 2>&1 | sed -n 's/.* version "\([0-9]*\).*/\1/p'; }
java_is_new_enough() { have java && [ "$(java_major)" -ge 17 ]; }
java_package() { # a good one of those that this release of Debian or Ubuntu has; needs the package index
  local package
  for package in openjdk-21-jre-headless openjdk-17-jre-headless; do
    if apt-cache show "$package" >/dev/null 2>&1; then
      echo "$package"
      return
    fi
  done
  echo default-jre-headless
}
missing_packages() { # [test|check]: one a line
  have cc && have c++ && have make || echo build-essential
  have pkg-config || echo pkg-config
  have perl || echo perl
  have curl || have cargo || echo curl
  [ -n "${DATABASE_URL:-}" ] || postgres_bin "" >/dev/null || echo postgresql
  [ -n "${REDIS_URL:-}" ] || have redis-server || echo redis-server
  if [ -z "${KAFKA_BROKERS:-}" ]; then
    java_is_new_enough || echo openjdk-17-jre-headless
    [ -d "$KAFKA_HOME/lib" ] || have mvn || echo maven
  fi
  if [ -n "${1:-}" ]; then
    have prometheus && have promtool || echo prometheus
    { have prometheus-alertmanager || have alertmanager; } && have amtool || echo prometheus-alertmanager
  fi
  if [ "${1:-}" = check ]; then
    have shellcheck || echo shellcheck
    python3 -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv
  fi
  [ -e /etc/ssl/certs/ca-certificates.crt ] || [ ! -d /etc/apt ] || echo ca-certificates
}
# Units that begin with the machine: links that a package makes, whether systemd runs here or not.
enabled_units() { find /etc/systemd/system -path '*.wants/*.service' -printf '%f\n' 2>/dev/null | sort -u; }
# Debian enables a server besides, so that it would begin with the next boot, on a port that the service wants (Prometheus: 9090).
disable_new_units() { # units that were enabled before, one a line
  local unit
  have systemctl || return 0
  while read -r unit; do
    case $unit in
      postgresql* | redis* | prometheus* | alertmanager*) quietly "disabling $unit" as_root systemctl disable "$unit" ;;
    esac
  done < <(comm -13 <(printf '%s\n' "$1") <(enabled_units))
}
install_packages() { # packages...
  local policy=/usr/sbin/policy-rc.d enabled
  enabled=$(enabled_units)
  quietly "apt-get update" as_root apt-get update -q
  set -- "${@/#openjdk-17-jre-headless/$(java_package)}"
  # Debian starts a server as soon as it is installed. Ours are private ones; this file, while it is there, forbids that.
  if [ ! -e "$policy" ]; then
    trap 'as_root rm -f /usr/sbin/policy-rc.d' EXIT
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
    as_root chmod 755 "$policy"
  fi
  quietly "apt-get install $*" as_root env DEBIAN_FRONTEND=noninteractive \
    apt-get install -q -y --no-install-recommends -o DPkg::Lock::Timeout=300 "$@"
  disable_new_units "$enabled"
}
packages() { # [test|check]
  local missing
  mapfile -t missing < <(missing_packages "$@")
  [ "${#missing[@]}" -gt 0 ] || return 0
  may_install || die "$EX_UNAVAILABLE" "please install, by these Debian names: ${missing[*]}"
  (install_packages "${missing[@]}") # a subshell: its EXIT trap is its own
}

# ---- Rust ----

rust() {
  local wanted
  wanted=$(rust_wanted)
  if use_rust; then return; fi
  if ! have rustup; then
    quietly "rustup" bash -c 'curl --proto =https --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal --default-toolchain none --no-modify-path'
  fi
  quietly "Rust $wanted" rustup toolchain install "$wanted" --profile minimal --component clippy --component rustfmt --no-self-update
  use_rust || die "$EX_UNAVAILABLE" "needs Rust $wanted; found: $(cargo --version 2>&1)"
}

# ---- Kafka ----

fetch_jars() { # folder
  # Twice: a repository far away may fail once among a hundred files; the second attempt goes on where the first stopped.
  for _ in 1 2; do
    mvn -B -q -C -f "$ROOT/scripts/kafka/pom.xml" dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory="$1" && return
  done
  return 1
}
# An empty data folder, formatted: every new broker of services.sh gets a copy, which saves it a second.
format() {
  kafka_properties "$KAFKA_HOME/formatted" 1 2 >"$KAFKA_HOME/format.properties"
  rm -rf "$KAFKA_HOME/formatted"
  java -cp "$(kafka_classpath)" "-Dlog4j2.configurationFile=$ROOT/scripts/kafka/log4j2.properties" \
    kafka.tools.StorageTool format -t "$KAFKA_CLUSTER" -c "$KAFKA_HOME/format.properties"
}
# Lets one broker live for a moment and keeps the classes it loaded in an archive: the next one starts in half the time.
# Only speed depends on it, and java itself refuses an archive that does not fit.
archive_classes() {
  local work port log tries=1500 pid
  work=$(mktemp -d)
  log=$work/log
  port=$(free_port)
  cp -R "$KAFKA_HOME/formatted" "$work/data"
  kafka_properties "$work/data" "$port" "$(free_port "$port")" >"$work/server.properties"
  java -Xmx512m -XX:+UseSerialGC "-XX:ArchiveClassesAtExit=$work/classes.jsa" -cp "$(kafka_classpath)" \
    "-Dlog4j2.configurationFile=$ROOT/scripts/kafka/log4j2.properties" kafka.Kafka "$work/server.properties" >"$log" 2>&1 &
  pid=$!
  until grep -q 'Kafka Server started' "$log" || ! kill -0 "$pid" 2>/dev/null || [ $((tries -= 1)) -lt 0 ]; do sleep 0.04; done
  kill "$pid" 2>/dev/null || true
  wait "$pid" || true
  [ ! -f "$work/classes.jsa" ] || mv "$work/classes.jsa" "$KAFKA_HOME/classes.jsa"
  rm -rf "$work"
}
kafka() {
  local java
  mkdir -p "$KAFKA_HOME"
  if [ ! -d "$KAFKA_HOME/lib" ]; then
    rm -rf "$KAFKA_HOME/lib.part"
    quietly "Kafka's jars" fetch_jars "$KAFKA_HOME/lib.part"
    mv "$KAFKA_HOME/lib.part" "$KAFKA_HOME/lib"
  fi
  [ -f "$KAFKA_HOME/formatted/meta.properties" ] || quietly "a formatted Kafka folder" format
  java=$(readlink -f "$(command -v java)")
  if [ "$java" != "$(cat "$KAFKA_HOME/classes.java" 2>/dev/null)" ]; then
    quietly "Kafka's class archive" archive_classes
    echo "$java" >"$KAFKA_HOME/classes.java"
  fi
}

# ---- the tools of `make check` ----

install_cargo_deny() {
  local target
  target=$(mktemp -d)
  # Without optimisation it compiles in half the time and checks a graph of our size in four seconds.
  CARGO_TARGET_DIR=$target CARGO_PROFILE_DEV_DEBUG=0 nice cargo install --debug --locked --root "$CARGO_DENY_HOME" "cargo-deny@$CARGO_DENY"
  rm -rf "$target"
}
install_check_jsonschema() {
  python3 -m venv --clear "$JSONSCHEMA_HOME"
  "$JSONSCHEMA_HOME/bin/pip" install -q "check-jsonschema==$CHECK_JSONSCHEMA"
}
install_k8s_check() {
  python3 -m venv --clear "$K8S_CHECK_HOME.new"
  "$K8S_CHECK_HOME.new/bin/pip" install -q "${K8S_CHECK[@]}"
  mv "$K8S_CHECK_HOME.new" "$K8S_CHECK_HOME" # only when all of it is there
}
install_kustomize() {
  mkdir -p "$CACHE/bin"
  if have go; then
    GOBIN=$CACHE/bin GOFLAGS=-mod=mod go install "sigs.k8s.io/kustomize/kustomize/v5@$KUSTOMIZE"
  else
    curl --proto =https --tlsv1.2 -sSfL \
      "https://github.com/kubernetes-sigs/kustomize/releases/download/kustomize%2F$KUSTOMIZE/kustomize_${KUSTOMIZE}_linux_$(dpkg --print-architecture).tar.gz" |
      tar -xz -C "$CACHE/bin" kustomize
  fi
}
check_tools() {
  cargo_deny >/dev/null || quietly "cargo-deny $CARGO_DENY (two minutes, once)" install_cargo_deny
  [ -x "$JSONSCHEMA_HOME/bin/check-jsonschema" ] || quietly "check-jsonschema $CHECK_JSONSCHEMA" install_check_jsonschema
  [ -d "$K8S_CHECK_HOME" ] || quietly "the schemas of Kubernetes" install_k8s_check
  have kubectl || kustomize_program >/dev/null || quietly "kustomize $KUSTOMIZE" install_kustomize
}

main() {
  packages "$@"
  mkdir -p "$CACHE"
  exec 9>"$CACHE/lock" # two at once would install into the same places
  flock 9
  rust
  if [ -z "${KAFKA_BROKERS:-}" ]; then kafka; fi
  if [ "${1:-}" = check ]; then check_tools; fi
}
main "$@"

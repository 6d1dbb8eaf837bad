#!/usr/bin/env bash
# A sale in a real cluster, while its pods are deleted, restarted, scaled away and back: does anybody lose a request?
#
#   k8s-e2e.sh [step ...]    a cluster by KUBECONFIG with a default StorageClass, and the image flashsale:dev on its nodes
#
# Applies k8s/overlays/dev (namespace flashsale, restricted pod security), then for each step: a new SKU, a crowd twice as large as its
# stock (`flashsale load`, as a Job, through the Service), the step in the middle of it. Prints a table. Exit 0 if no request failed,
# every accepted one has its decision, nothing was oversold, and the auditor agrees. Leaves the namespace: `kubectl delete ns flashsale`.
# RATE (50) requests a second for EACH (30) seconds each; TIMEOUT (300s) for whatever must become ready.
# FLASHSALE_NEXT_IMAGE: another build, on the nodes too. Then the version changes under a crowd as docs/operations.md says, and back again;
# those crowds last CHANGE (180) seconds and get all they want, and it is a failure if the change takes longer.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

RATE=${RATE:-50} EACH=${EACH:-30} CHANGE=${CHANGE:-180} WAIT=${TIMEOUT:-300s}
IMAGE=flashsale:dev NEXT=${FLASHSALE_NEXT_IMAGE:-}
RUN=$(date +%s) # names the SKUs: a second run finds no units of the first one held
STEPS=(nothing delete-consumer delete-api restart-api restart-consumers scale-consumers drain-postgres)
[ -z "$NEXT" ] || STEPS+=(upgrade rollback)

k() { kubectl -n flashsale "$@"; }
flashsale() { k exec deploy/flashsale-api -c api -- /flashsale "$@"; }

set_up() {
  say "k8s: apply"
  k delete job flashsale-migrate --ignore-not-found >/dev/null
  kubectl apply --server-side --force-conflicts -k "$ROOT/k8s/overlays/dev" >/dev/null
  for set in postgres redis kafka; do k rollout status "statefulset/$set" --timeout "$WAIT" >/dev/null; done
  k wait --for=condition=complete job/flashsale-migrate --timeout "$WAIT" >/dev/null
  ready
  say "k8s: all ready"
}
ready() {
  local deployment
  for deployment in flashsale-api inventory-batch-consumer flashsale-relay flashsale-auditor; do
    k rollout status "deploy/$deployment" --timeout "$WAIT" >/dev/null
  done
}

seconds_of() { case $1 in upgrade | rollback) echo "$CHANGE" ;; *) echo "$EACH" ;; esac }
units_of() { # half of what the crowd wants; all of it where decisions must go on to the end
  case $1 in upgrade | rollback) echo "$((RATE * CHANGE))" ;; *) echo "$((RATE * EACH / 2))" ;; esac
}
crowd() { # step: a Job
  kubectl apply --server-side -f - >/dev/null <<YAML
apiVersion: batch/v1
kind: Job
metadata: {name: load-$1, namespace: flashsale}
spec:
  backoffLimit: 0
  template:
    metadata: {labels: {app.kubernetes.io/component: load}}
    spec:
      restartPolicy: Never
      automountServiceAccountToken: false
      securityContext: {runAsNonRoot: true, runAsUser: 65532, seccompProfile: {type: RuntimeDefault}}
      containers:
        - name: load
          image: $IMAGE
          args: [load, --url, "http://flashsale-api", --sku, "$1-$RUN", --rate, "$RATE", --seconds, "$(seconds_of "$1")"]
          securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
YAML
  k wait --for=jsonpath='{.status.active}'=1 "job/load-$1" --timeout "$WAIT" >/dev/null
}
crowd_ends() { # step: waits until it completed or failed
  local tries=$((600 + 2 * $(seconds_of "$1"))) state
  while [ $((tries -= 1)) -ge 0 ]; do
    state=$(k get "job/load-$1" -o 'jsonpath={.status.conditions[?(@.status=="True")].type}')
    case $state in *Complete* | *Failed*) return ;; esac
    sleep 0.5
  done
  die 1 "the crowd of $1 has no end"
}

migrate() { # image
  k delete job flashsale-migrate --ignore-not-found >/dev/null
  kubectl kustomize "$ROOT/k8s/overlays/dev" | awk 'BEGIN { RS = "---\n" } /kind: Job/' | sed "s|image: .*|image: $1|" |
    kubectl apply --server-side -f - >/dev/null
  k wait --for=condition=complete job/flashsale-migrate --timeout "$WAIT" >/dev/null
}
run_image() { # image, component=deployment...
  local image=$1 pair
  for pair in "${@:2}"; do
    k set image "deploy/${pair#*=}" "${pair%=*}=$image" >/dev/null
    k rollout status "deploy/${pair#*=}" --timeout "$WAIT" >/dev/null
  done
}
# In this order (docs/operations.md): whoever reads comes before whoever writes. In between, pods of the build before start once more.
upgrade() {
  local component
  migrate "$NEXT"
  for component in api consumer relay auditor; do k delete pod "$(first_pod "$component")" --wait=false >/dev/null; done
  ready
  run_image "$NEXT" auditor=flashsale-auditor relay=flashsale-relay consumer=inventory-batch-consumer api=flashsale-api
}
rollback() {
  migrate "$IMAGE" # whoever applies all manifests of the build before runs it too: it leaves the tables as they are
  run_image "$IMAGE" api=flashsale-api consumer=inventory-batch-consumer relay=flashsale-relay auditor=flashsale-auditor
}
has_crowd() { # step
  [ -n "$(k get "job/load-$1" -o 'jsonpath={.status.active}')" ] || die 1 "the crowd went before $1 was done: CHANGE=$CHANGE is too short"
}

first_pod() { k get pod -l "app.kubernetes.io/component=$1" -o 'jsonpath={.items[0].metadata.name}'; }
run_step() {
  case $1 in
    nothing) ;;
    delete-consumer) k delete pod "$(first_pod consumer)" --wait=false >/dev/null ;;
    delete-api) k delete pod "$(first_pod api)" --wait=false >/dev/null ;;
    restart-api) k rollout restart deploy/flashsale-api >/dev/null ;;
    restart-consumers) k rollout restart deploy/inventory-batch-consumer >/dev/null ;;
    scale-consumers)
      k scale deploy/inventory-batch-consumer --replicas=0 >/dev/null
      k wait --for=delete pod -l app.kubernetes.io/component=consumer --timeout "$WAIT" >/dev/null
      k scale deploy/inventory-batch-consumer --replicas=2 >/dev/null
      ;;
    upgrade | rollback)
      [ -n "$NEXT" ] || die "$EX_USAGE" "$1 needs FLASHSALE_NEXT_IMAGE"
      local began=$SECONDS
      "$1"
      has_crowd "$1"
      say "k8s: $1 took $((SECONDS - began)) s"
      ;;
    drain-postgres) k delete pod postgres-0 --wait=false >/dev/null ;;
    *) die "$EX_USAGE" "no such step: $1; there are: ${STEPS[*]}" ;;
  esac
}

# The members of the report, one a line, that the table shows.
row() { # step, report
  python3 -c '
import json, sys
r = json.load(open(sys.argv[2]))
print("| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |".format(
    sys.argv[1], r["offered"], r["accepted"], sum(r["refused"].values()), r["failed"], r["reserved"], r["sent_again"],
    r["connections_broken"], r["latency_ms"]["p50"], r["latency_ms"]["p99"]))
sys.exit(bool(r["violations"] or r["failed"]))' "$1" "$2"
}

main() {
  local steps=("$@") step report failed=0
  [ "${#steps[@]}" -gt 0 ] || steps=("${STEPS[@]}")
  have python3 || die "$EX_UNAVAILABLE" "needs python3 for the table"
  report=$(mktemp)
  set_up
  echo "| step | offered | accepted | refused | failed | reserved | sent again | connections broken | p50 ms | p99 ms |"
  echo "|---|---|---|---|---|---|---|---|---|---|"
  for step in "${steps[@]}"; do
    k delete job "load-$step" --ignore-not-found >/dev/null
    flashsale sku put "$step-$RUN" --on-hand "$(units_of "$step")" --user-limit 1 --hold 4h >/dev/null
    crowd "$step"
    sleep 5 # into the crowd
    run_step "$step"
    crowd_ends "$step"
    k logs "job/load-$step" >"$report"
    row "$step" "$report" || { failed=1 && cat "$report" >&2; }
    ready
    k rollout status statefulset/postgres --timeout "$WAIT" >/dev/null
  done
  rm -f "$report"
  k exec deploy/flashsale-auditor -c auditor -- /flashsale audit || failed=1
  [ "$failed" = 0 ] || die 1 "something failed, see above"
  say "k8s: no request failed, and the books add up"
}
main "$@"

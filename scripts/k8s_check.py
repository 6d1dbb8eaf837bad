"""Checks rendered manifests without a cluster: Kubernetes' own schemas, those of the operators' kinds where a package has them, and that
names, ports and numbers are the program's: k8s_check.py ROOT OVERLAY=rendered.yaml ...

Python packages: kubernetes-validate (schemas), cloudcoil-models-keda, cloudcoil-models-prometheus-operator. No package has those of Strimzi and
CloudNativePG: what the program relies on there is asserted here. A real API server finds more: scripts/k8s-e2e.sh.
"""

import importlib
import re
import sys
from pathlib import Path

import kubernetes_validate
import yaml

VERSION = "1.37"
MODELS = {"keda.sh/v1alpha1": "cloudcoil.models.keda.v1alpha1", "monitoring.coreos.com/v1": "cloudcoil.models.prometheus_operator.v1"}
HAND_CHECKED = {"kafka.strimzi.io/v1", "postgresql.cnpg.io/v1"}
ROLES = {
    "flashsale-api": ("api", ["api"]),
    "inventory-batch-consumer": ("consumer", ["consumer"]),
    "flashsale-relay": ("relay", ["relay"]),
    "flashsale-auditor": ("auditor", ["audit", "--watch"]),
}
problems: list[str] = []


def check(is_so: bool, what: str) -> None:
    if not is_so:
        problems.append(what)


class Program:
    """What the sources say."""

    def __init__(self, root: Path):
        limits = (root / "src/limits.rs").read_text()
        config = (root / "src/config.rs").read_text()
        migrate = (root / "src/cli/migrate.rs").read_text()
        self.shutdown = self.number(limits, r"SHUTDOWN_DEADLINE: Duration = Duration::from_secs\((\d+)\)")
        check("default_value_t = limits::PARTITIONS_DEFAULT" in migrate, "PARTITIONS has another default")
        self.partitions = self.number(limits, r"PARTITIONS_DEFAULT: i32 = (\d+)")
        self.retention_ms = 7 * 24 * 3600 * 1000
        check("LOG_RETENTION: Duration = Duration::from_secs(7 * 24 * 3600)" in limits, "LOG_RETENTION is not 7 days any more")
        self.defaults = dict(re.findall(r'env = "([A-Z_]+)"[^\n]*default_value = "([^"]*)"', config))
        self.variables = set(re.findall(r'env = "([A-Z_]+)"', config + migrate))

    @staticmethod
    def number(text: str, pattern: str) -> int:
        found = re.search(pattern, text)
        if not found:
            sys.exit(f"k8s_check.py: the sources have changed: no match for {pattern}")
        return int(found[1])


def schemas(doc: dict, name: str) -> None:
    api = doc["apiVersion"]
    if api in MODELS:
        try:
            getattr(importlib.import_module(MODELS[api]), doc["kind"]).model_validate(doc)
        except Exception as error:  # noqa: BLE001 whatever the model says
            check(False, f"{name}: {str(error)[:300]}")
    elif api not in HAND_CHECKED:
        try:
            kubernetes_validate.validate(doc, VERSION, strict=True)
        except Exception as error:  # noqa: BLE001
            check(False, f"{name}: {str(error)[:300]}")


def pod(spec: dict, name: str) -> None:
    context = spec.get("securityContext", {})
    check(spec.get("automountServiceAccountToken") is False, f"{name}: mounts a token")
    check(context.get("runAsNonRoot") is True and context.get("runAsUser"), f"{name}: may run as root")
    check(context.get("seccompProfile", {}).get("type") == "RuntimeDefault", f"{name}: no seccomp profile")
    for container in spec["containers"]:
        own = container.get("securityContext", {})
        limits = container.get("resources", {}).get("limits", {})
        check(own.get("allowPrivilegeEscalation") is False, f"{name}: may gain privileges")
        check(own.get("capabilities") == {"drop": ["ALL"]}, f"{name}: keeps capabilities")
        check("memory" in limits and "cpu" not in limits, f"{name}: wants a memory limit and no CPU limit")
        check({"cpu", "memory"} <= set(container["resources"].get("requests", {})), f"{name}: requests nothing")
        if container["image"].split(":")[0].endswith("flashsale"):
            check(own.get("readOnlyRootFilesystem") is True, f"{name}: may write to its root")
            check(not container["image"].endswith(":latest") and ":" in container["image"], f"{name}: {container['image']}")


def deployment(doc: dict, name: str, program: Program) -> None:
    component, args = ROLES[doc["metadata"]["name"]]
    spec = doc["spec"]["template"]["spec"]
    container = spec["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    pause = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    check(container["args"] == args, f"{name}: args {container['args']}")
    check(spec["terminationGracePeriodSeconds"] > program.shutdown + pause, f"{name}: is killed before it may end")
    check(ports.get("admin") == 9090 and (component != "api" or ports.get("http") == 8080), f"{name}: ports {ports}")
    for probe, path in (("startupProbe", "/startupz"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")):
        check(container[probe]["httpGet"] == {"path": path, "port": "admin"}, f"{name}: {probe}")
    labels = doc["spec"]["template"]["metadata"]["labels"]
    check(labels.get("app.kubernetes.io/component") == component, f"{name}: component {labels}")
    check(spec.get("topologySpreadConstraints"), f"{name}: may all be on one node")
    if component == "api":
        check(pause > 0, f"{name}: stops while it still gets connections")


def settings(doc: dict, name: str, program: Program) -> None:
    data = doc["data"]
    check(set(data) <= program.variables, f"{name}: unknown {set(data) - program.variables}")
    for variable in ("TOPIC", "EVENTS_TOPIC", "GROUP"):
        check(data.get(variable) == program.defaults[variable], f"{name}: {variable} is not the program's default")
    check(data.get("PARTITIONS") == str(program.partitions), f"{name}: PARTITIONS")
    check(data["HTTP_ADDR"].endswith(":8080") and data["ADMIN_ADDR"].endswith(":9090"), f"{name}: addresses")


def scaled(doc: dict, name: str, program: Program) -> None:
    spec = doc["spec"]
    check(spec["scaleTargetRef"]["name"] == "inventory-batch-consumer", f"{name}: target")
    check(spec["maxReplicaCount"] == program.partitions, f"{name}: more or fewer than partitions")
    check(spec["minReplicaCount"] >= 2, f"{name}: one consumer is none while it is replaced")
    (kafka,) = [t["metadata"] for t in spec["triggers"] if t["type"] == "kafka"]
    check(kafka["topic"] == program.defaults["TOPIC"], f"{name}: topic")
    check(kafka["consumerGroup"] == program.defaults["GROUP"], f"{name}: group")
    cron = [t["metadata"]["desiredReplicas"] for t in spec["triggers"] if t["type"] == "cron"]
    check(all(int(n) <= program.partitions for n in cron) and cron, f"{name}: pre-scale")


def topics(docs: list[dict], overlay: str, program: Program) -> None:
    of = {d["metadata"]["name"]: d["spec"] for d in docs if d["kind"] == "KafkaTopic"}
    if not of:
        return
    topic = program.defaults["TOPIC"]
    check(set(of) == {topic, f"{topic}-dlq", program.defaults["EVENTS_TOPIC"]}, f"{overlay}: topics {sorted(of)}")
    for name, spec in of.items():
        config = spec["config"]
        check(config["message.timestamp.type"] == "LogAppendTime", f"{overlay}: {name}: decisions take their time from the log")
        check(config["cleanup.policy"] == "delete" and config["retention.ms"] == program.retention_ms, f"{overlay}: {name}: retention")
        check(spec["replicas"] == 3 and config["min.insync.replicas"] == 2, f"{overlay}: {name}: copies")
    check(of[topic]["partitions"] == program.partitions, f"{overlay}: partitions of {topic}")


def overlay(name: str, path: str, program: Program) -> None:
    docs = [doc for doc in yaml.safe_load_all(Path(path).read_text()) if doc]
    names = {doc["metadata"]["name"] for doc in docs if doc["kind"] == "Deployment"}
    check(names == set(ROLES), f"{name}: deployments {sorted(names)}")
    check({d["metadata"]["name"] for d in docs if d["kind"] == "PodDisruptionBudget"} == set(ROLES), f"{name}: budgets")
    check(any(d["kind"] == "Job" for d in docs), f"{name}: nobody migrates")
    for doc in docs:
        what = f"{name}: {doc['kind']} {doc['metadata']['name']}"
        schemas(doc, what)
        check(doc["kind"] in {"Namespace"} or "namespace" in doc["metadata"], f"{what}: no namespace")
        if doc["kind"] == "Namespace":
            check(doc["metadata"]["labels"].get("pod-security.kubernetes.io/enforce") == "restricted", f"{what}: not restricted")
        if doc["kind"] in {"Deployment", "StatefulSet", "Job"}:
            pod(doc["spec"]["template"]["spec"], what)
        if doc["kind"] == "Deployment" and doc["metadata"]["name"] in ROLES:
            deployment(doc, what, program)
        if doc["kind"] == "ConfigMap" and doc["metadata"]["name"].startswith("flashsale-config"):
            settings(doc, what, program)
        if doc["kind"] == "ScaledObject":
            scaled(doc, what, program)
        if doc["kind"] == "HorizontalPodAutoscaler":
            check(doc["spec"]["scaleTargetRef"]["name"] == "flashsale-api", f"{what}: target")
        if doc["kind"] == "Kafka":
            check(doc["spec"]["kafka"]["config"].get("unclean.leader.election.enable") is False, f"{what}: may cut the log")
        if doc["kind"] == "Cluster":
            check(doc["spec"]["instances"] >= 3 and doc["spec"]["postgresql"].get("synchronous"), f"{what}: a failover may go back")
    topics(docs, name, program)
    print(f"{name}: {len(docs)} objects", file=sys.stderr)


def main() -> None:
    program = Program(Path(sys.argv[1]))
    for argument in sys.argv[2:]:
        overlay(*argument.split("=", 1), program)
    for problem in problems:
        print(f"k8s_check.py: {problem}", file=sys.stderr)
    sys.exit(bool(problems) or len(sys.argv) < 3)


main()

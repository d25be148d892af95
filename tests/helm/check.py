"""Renders the chart for every values file and three Kubernetes versions; validates strictly, compares with golden renderings, demands clear refusals."""

import argparse
import hashlib
import json
import pathlib
import subprocess
import sys

import jsonschema
import kubernetes_validate
import yaml
from cloudcoil.models.prometheus_operator import v1 as operator

ROOT = pathlib.Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy/helm/quorum"
GOLDEN = ROOT / "tests/golden/helm"
VERSIONS = ["1.31", "1.34", "1.36"]
GOLDEN_VERSION = "1.34"
OPERATOR = ["monitoring.coreos.com/v1/PodMonitor", "monitoring.coreos.com/v1/PrometheusRule"]
SCHEMAS = {kind: json.loads((ROOT / f"tests/helm/schemas/{kind.lower()}.json").read_text()) for kind in ["JobSet", "ScaledObject", "Certificate"]}
# --set arguments that must be refused, and a word of the message.
REFUSED = [
    (["workers.replica=3"], "replica"),
    (["workers.replicas=-1"], "minimum"),
    (["autoscaling.kind=vpa"], "autoscaling"),
    (["learner.ranks=2"], "NCCL"),
    (["autoscaling.kind=keda"], "autoscaling.prometheus"),
    (["autoscaling.kind=hpa", "autoscaling.minReplicas=0"], "minReplicas"),
    (["autoscaling.minReplicas=20"], "above autoscaling.maxReplicas"),
    (["tls.source=certManager"], "issuerRef.name"),
    (["storage.size=lots"], "size"),
    (["run.name=../other"], "name"),
    (["run.settings.cluster\\.listen=0.0.0.0:1"], "set by the chart"),
    (["run.settings.steps=3"], "steps"),
]


class Faults(list):
    def say(self, where, what):
        self.append(f"{where}: {what}")


def values_files():
    return sorted(CHART.glob("ci/*-values.yaml"))


def template(helm, values, version, operator_there=True, sets=()):
    command = [helm, "template", "quorum", str(CHART), "--namespace", "training", "--kube-version", version]
    if values:
        command += ["--values", str(values)]
    if operator_there:
        command += [word for api in OPERATOR for word in ("--api-versions", api)]
    command += [word for s in sets for word in ("--set", s)]
    return subprocess.run(command, capture_output=True, text=True)


def validate(document, version):
    """Raises what is wrong with a document."""
    kind = document["kind"]
    if kind in SCHEMAS:
        jsonschema.validate(document, SCHEMAS[kind])
        for job in document["spec"].get("replicatedJobs", []):
            job_document = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": job["name"]}, "spec": job["template"]["spec"]}
            kubernetes_validate.validate(job_document, version, strict=True)
    elif document["apiVersion"] == "monitoring.coreos.com/v1":
        model = getattr(operator, kind).model_validate(document)
        lost(document, json.loads(model.model_dump_json(by_alias=True, exclude_none=True)), kind)
    else:
        kubernetes_validate.validate(document, version, strict=True)


def lost(given, kept, path):
    """A key the model does not know is a spelling mistake."""
    if isinstance(given, dict):
        for key, value in given.items():
            if not isinstance(kept, dict) or key not in kept:
                raise ValueError(f"{path}.{key} is not known")
            lost(value, kept[key], f"{path}.{key}")
    elif isinstance(given, list):
        for i, value in enumerate(given):
            lost(value, kept[i], f"{path}[{i}]")


def pods(documents):
    """(name, pod spec) of everything that makes pods."""
    for document in documents:
        if document["kind"] in ("StatefulSet", "Deployment"):
            yield document["metadata"]["name"], document["spec"]["template"]["spec"]
        for job in document["spec"].get("replicatedJobs", []) if document["kind"] == "JobSet" else []:
            yield job["name"], job["template"]["spec"]["template"]["spec"]


def check_safety(where, documents, faults):
    found = list(pods(documents))
    if len(found) != 3:
        faults.say(where, f"{len(found)} kinds of pods, not coordinator, learner and worker")
    for name, pod in found:
        wanted = [
            (pod.get("automountServiceAccountToken") is False, "mounts a service account's token"),
            (pod["securityContext"].get("runAsNonRoot") is True, "may run as root"),
            (pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault", "has no seccomp profile"),
        ]
        for container in pod["containers"]:
            security = container["securityContext"]
            wanted += [
                (security.get("readOnlyRootFilesystem") is True, "may write its root file system"),
                (security.get("allowPrivilegeEscalation") is False, "may gain privileges"),
                (security.get("capabilities") == {"drop": ["ALL"]}, "keeps capabilities"),
                ({"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys(), "lacks a probe"),
                ("memory" in container["resources"].get("limits", {}), "has no memory limit"),
            ]
        for good, what in wanted:
            if not good:
                faults.say(f"{where}, {name}", what)


def normal(documents):
    """Text to compare: sorted keys, long files of dashboards and rules by their digest (they are copies, checked by xtask)."""
    for document in documents:
        if document["kind"] == "ConfigMap" and "-dashboard-" in document["metadata"]["name"]:
            document["data"] = {k: digest(v) for k, v in document["data"].items()}
        if document["kind"] == "PrometheusRule":
            document["spec"] = {"groups": digest(json.dumps(document["spec"], sort_keys=True))}
    return yaml.safe_dump_all(documents, sort_keys=True, width=140)


def digest(text):
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def check_rendering(helm, values, faults, update):
    name = values.name.removesuffix("-values.yaml")
    lint = subprocess.run([helm, "lint", "--strict", str(CHART), "--values", str(values)], capture_output=True, text=True)
    if lint.returncode != 0:
        faults.say(name, f"helm lint --strict: {lint.stdout}{lint.stderr}")
    for version in VERSIONS:
        where = f"{name} on {version}"
        rendered = template(helm, values, version)
        if rendered.returncode != 0:
            faults.say(where, rendered.stderr.strip())
            continue
        documents = [d for d in yaml.safe_load_all(rendered.stdout) if d]
        for document in documents:
            try:
                validate(document, version)
            except Exception as error:
                faults.say(f"{where}, {document['kind']} {document['metadata']['name']}", str(error).splitlines()[0])
        check_safety(where, documents, faults)
        if version == GOLDEN_VERSION:
            check_golden(name, normal(documents), faults, update)
    bare = template(helm, values, GOLDEN_VERSION, operator_there=False)
    if "monitoring.coreos.com" in bare.stdout or bare.returncode != 0:
        faults.say(name, "without the Prometheus operator its kinds must not be rendered")


def check_golden(name, text, faults, update):
    path = GOLDEN / f"{name}.yaml"
    if update:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    elif not path.is_file() or path.read_text() != text:
        faults.say(name, f"differs from {path.relative_to(ROOT)}; look at it, then run tests/helm.sh --update")


def check_validators(faults):
    """The validators themselves must be able to fail."""
    bad_service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "spec": {"portz": []}}
    bad_monitor = {"apiVersion": "monitoring.coreos.com/v1", "kind": "PodMonitor", "metadata": {"name": "x"}, "spec": {"selector": {}, "endpoints": []}}
    bad_set = {"apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet", "metadata": {"name": "x"}, "spec": {"jobs": []}}
    for document in (bad_service, bad_monitor, bad_set):
        try:
            validate(document, GOLDEN_VERSION)
        except Exception:
            continue
        faults.say(document["kind"], "a wrong key passes the validator")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--helm", required=True)
    parser.add_argument("--update", action="store_true", help="write the golden renderings anew")
    args = parser.parse_args()
    faults = Faults()
    check_validators(faults)
    for values in values_files():
        check_rendering(args.helm, values, faults, args.update)
    for sets, word in REFUSED:
        refused = template(args.helm, None, GOLDEN_VERSION, sets=sets)
        if refused.returncode == 0:
            faults.say(str(sets), "was not refused")
        elif word not in refused.stderr:
            faults.say(str(sets), f"was refused without naming {word!r}: {refused.stderr.strip()}")
    if faults:
        print(*faults, sep="\n")
        sys.exit(1)
    print(f"helm: {len(values_files())} values files × {len(VERSIONS)} Kubernetes versions, {len(REFUSED)} refusals: ok")


main()

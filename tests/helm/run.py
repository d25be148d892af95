"""Starts coordinator, learner and worker on loopback from the command, environment, ports and probes that the chart renders, until a tiny run is complete."""

import argparse
import json
import os
import pathlib
import re
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
PATIENCE = 60.0
# Nobody verifies names here: probes of a kubelet do not either.
UNVERIFIED = ssl._create_unverified_context()


def rendered(helm, values, scratch):
    """The chart's pods with a run of seconds as configuration: (component, pod name, container)."""
    # Data are named from the repository's root, in which the processes run; listening is the chart's business.
    config = (ROOT / "tests/configs/small.toml").read_text()
    config = "\n".join(line for line in config.splitlines() if not line.startswith(("listen", "http")))
    own = scratch / "values.yaml"
    own.write_text(yaml.safe_dump({"run": {"config": config}}))
    command = [helm, "template", "quorum", str(ROOT / "deploy/helm/quorum"), "--values", str(values), "--values", str(own)]
    documents = [d for d in yaml.safe_load_all(subprocess.run(command, capture_output=True, text=True, check=True).stdout) if d]
    (scratch / "run.toml").write_text(next(d["data"]["run.toml"] for d in documents if d["metadata"]["name"] == "quorum-run" and d["kind"] == "ConfigMap"))
    services = {d["metadata"]["name"] for d in documents if d["kind"] == "Service"}
    templates = []
    for document in documents:
        if document["kind"] in ("StatefulSet", "Deployment"):
            templates.append((document["metadata"]["name"] + "-0", document["spec"]["template"]))
        for job in document["spec"].get("replicatedJobs", []) if document["kind"] == "JobSet" else []:
            templates.append((f"quorum-{job['name']}-0-0", job["template"]["spec"]["template"]))
    return services, {t["metadata"]["labels"]["app.kubernetes.io/component"]: (name, t["spec"]["containers"][0]) for name, t in templates}


class Loopback:
    """Names, ports and paths of a pod as they are on this machine."""

    def __init__(self, scratch, services):
        self.scratch, self.services, self.ports = scratch, services, {}

    def port(self, component, number):
        if (component, number) not in self.ports:
            with socket.socket() as s:
                s.bind(("127.0.0.1", 0))
                self.ports[component, number] = s.getsockname()[1]
        return self.ports[component, number]

    def text(self, component, text):
        for path, here in [("/var/lib/quorum", "state"), ("/etc/quorum/coordinator", "certs/coordinator"), ("/etc/quorum/member", "certs/member")]:
            text = text.replace(path, str(self.scratch / here))
        text = text.replace("/etc/quorum/run/run.toml", str(self.scratch / "run.toml"))
        text = re.sub(r"(0\.0\.0\.0|\$\(POD_IP\)):(\d+)", lambda m: f"{m[1]}:{self.port(component, int(m[2]))}", text)
        dialled = re.search(r"://([a-z0-9-]+):(\d+)", text)
        if dialled:
            if dialled[1] not in self.services:
                sys.exit(f"{component} dials {dialled[1]}, which is no service of the chart: {sorted(self.services)}")
            target = dialled[1].rsplit("-", 1)[1]
            text = text.replace(f"{dialled[1]}:{dialled[2]}", f"localhost:{self.port(target, int(dialled[2]))}")
        return text


def environment(container, name, loopback, component):
    fields = {"metadata.name": name, "status.podIP": "127.0.0.1", "metadata.labels['apps.kubernetes.io/pod-index']": "0", "metadata.labels['batch.kubernetes.io/job-completion-index']": "0"}
    given = {}
    for entry in container.get("env", []):
        value = entry.get("value") if "value" in entry else fields[entry["valueFrom"]["fieldRef"]["fieldPath"]]
        given[entry["name"]] = loopback.text(component, value)
    return given


def start(component, name, container, executables, loopback):
    given = environment(container, name, loopback, component)
    words = [*container["command"], *container["args"]]
    words = [re.sub(r"\$\((\w+)\)", lambda m: given[m[1]], loopback.text(component, word)) for word in words]
    log = open(loopback.scratch / f"{component}.log", "a")
    # A pod's environment and nothing else, in the image's working directory.
    return subprocess.Popen([executables / words[0], *words[1:]], env={"PATH": os.environ["PATH"], **given}, cwd=ROOT, stdout=log, stderr=log)


def probe(component, container, kind, loopback):
    get = container[kind]["httpGet"]
    number = next(p["containerPort"] for p in container["ports"] if p["name"] == get["port"])
    return status(f"{get['scheme'].lower()}://127.0.0.1:{loopback.port(component, number)}{get['path']}")


def status(url, token=None):
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(request, timeout=5, context=UNVERIFIED) as reply:
            return reply.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def wait_for(what, look, started, scratch, ends=()):
    end = time.time() + PATIENCE
    while time.time() < end:
        if look():
            return
        dead = [c for c, p in started.items() if p.poll() is not None and (p.returncode != 0 or c not in ends)]
        if dead:
            break
        time.sleep(0.1)
    logs = "\n".join(f"-- {path.name}\n{path.read_text()[-3000:]}" for path in sorted(scratch.glob("*.log")))
    sys.exit(f"waited for {what}; ended: {[(c, p.returncode) for c, p in started.items() if p.poll() is not None]}\n{logs}")


def check(helm, values, executables, scratch):
    services, containers = rendered(helm, values, scratch)
    tls = any(e["name"] == "QUORUM_TLS_CA" for e in containers["worker"][1]["env"])
    stays = "--stay" in containers["coordinator"][1]["args"]
    subprocess.run([executables / "coordinator", "certs", scratch / "certs"], check=True, stdout=subprocess.DEVNULL)
    (scratch / "state").mkdir()
    loopback = Loopback(scratch, services)
    started = {}
    # Members first: in a cluster nobody comes in order.
    for component in ("worker", "learner", "coordinator"):
        name, container = containers[component]
        started[component] = start(component, name, container, executables, loopback)
    try:
        for component, (_, container) in containers.items():
            wait_for(f"the readiness of {component}", lambda: probe(component, container, "readinessProbe", loopback) == 200, started, scratch, containers)
        metrics = f"{'https' if tls else 'http'}://127.0.0.1:{loopback.port('worker', 7072)}/metrics"
        token = (scratch / "certs/member/token").read_text().strip()
        found = status(metrics), status(metrics, token)
        if found != ((401, 200) if tls else (200, 200)):
            sys.exit(f"/metrics of the worker answers {found} without and with the token")
        # A pod that is killed starts again by the same command, and goes on.
        committed = scratch / "state/run/metrics.jsonl"
        wait_for("a committed step", lambda: committed.is_file() and committed.read_text().count("\n") > 0, started, scratch, containers)
        started["coordinator"].kill()
        started["coordinator"].wait()
        started["coordinator"] = start("coordinator", *containers["coordinator"], executables, loopback)
        report = scratch / "state/run/report.json"
        ends = () if stays else ("coordinator", "learner", "worker")
        wait_for("the end of the run", report.is_file, started, scratch, ends)
        if json.loads(report.read_text())["steps"] != 4:
            sys.exit("the run did not take its 4 steps")
        if stays:
            time.sleep(1)
            alive = {c: (p.poll() is None, probe(c, containers[c][1], "livenessProbe", loopback)) for c, p in started.items()}
            if any(state != (True, 200) for state in alive.values()):
                sys.exit(f"after the run, everything must stay and live: {alive}")
        else:
            for component in ("coordinator", "learner"):
                wait_for(f"the end of {component}", lambda: started[component].poll() == 0, started, scratch, ends)
    finally:
        for process in started.values():
            process.send_signal(signal.SIGTERM)
    codes = {component: process.wait(timeout=20) for component, process in started.items()}
    if any(codes.values()):
        sys.exit(f"SIGTERM must end every process cleanly: {codes}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--helm", required=True)
    parser.add_argument("--executables", required=True, type=pathlib.Path)
    args = parser.parse_args()
    for name in ("minimal", "jobset"):
        began = time.time()
        with tempfile.TemporaryDirectory() as scratch:
            values = ROOT / f"deploy/helm/quorum/ci/{name}-values.yaml"
            check(args.helm, values, args.executables.resolve(), pathlib.Path(scratch))
        print(f"helm: a run from the rendering of {name}-values.yaml: ok ({time.time() - began:.0f} s)")


main()

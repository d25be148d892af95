"""Starts Prometheus and a small real run that it scrapes, and demands data for every expression of every dashboard, clean pages and loaded rules."""

import argparse
import json
import math
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request

import promql_parser

ROOT = pathlib.Path(__file__).resolve().parents[2]
PATIENCE = 100.0
# Metrics that a run on processors cannot have, and why.
WITHOUT_DATA = {
    "quorum_learner_mfu_ratio": "accelerators only: a processor has no published peak",
    "quorum_learner_gpu_memory_bytes": "there is no GPU",
}
SETTINGS = ["run.steps=400", "eval.every=10", "checkpoint.every=2", "rollout.prompts_per_step=8"]


def panels():
    for path in sorted((ROOT / "deploy/grafana/dashboards").glob("*.json")):
        dashboard = json.loads(path.read_text())
        for panel in dashboard["panels"]:
            for target in panel.get("targets", []):
                yield dashboard["title"], panel["title"], target["expr"]


def concrete(expression):
    """Grafana's variables replaced: the whole run as interval, every job."""
    return re.sub(r"\$__(rate_interval|interval|range)", "5m", expression).replace("$job", ".*")


def get(url):
    with urllib.request.urlopen(url, timeout=10) as reply:
        return reply.read().decode()


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def has_data(prometheus, expression):
    now = time.time()
    query = urllib.parse.urlencode({"query": concrete(expression), "start": now - 60, "end": now, "step": 1})
    result = json.loads(get(f"{prometheus}/api/v1/query_range?{query}"))["data"]["result"]
    return any(math.isfinite(float(value)) for series in result for _, value in series["values"])


def wait_for(what, look, patience=60.0):
    end = time.time() + patience
    while time.time() < end:
        try:
            found = look()
            if found:
                return found
        except (OSError, ValueError, KeyError):
            pass
        time.sleep(0.3)
    sys.exit(f"waited {patience:.0f} s for {what}")


def start_prometheus(scratch, http):
    port = free_port()
    config = (ROOT / "deploy/prometheus/prometheus.yml").read_text().replace("127.0.0.1:7071", http)
    config = config.replace("scrape_interval: 5s", "scrape_interval: 1s").replace("refresh_interval: 5s", "refresh_interval: 1s")
    (scratch / "prometheus.yml").write_text(config)
    log = open(scratch / "prometheus.log", "w")
    flags = [f"--config.file={scratch}/prometheus.yml", f"--storage.tsdb.path={scratch}/tsdb", f"--web.listen-address=127.0.0.1:{port}"]
    process = subprocess.Popen(["prometheus", *flags], stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    wait_for("Prometheus", lambda: "Ready" in get(f"{url}/-/ready"))
    return process, url


def check_pages(http):
    """Pages of all processes: what promtool says, and who is there."""
    targets = json.loads(get(f"http://{http}/sd"))
    roles = sorted(t["labels"]["role"] for t in targets)
    addresses = [http] + [t["targets"][0] for t in targets]
    faults = [] if roles == ["learner", "rollout_worker", "rollout_worker"] else [f"/sd lists {roles}"]
    for address in addresses:
        page = get(f"http://{address}/metrics")
        found = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True, text=True)
        if found.returncode != 0 or found.stdout.strip() or found.stderr.strip():
            faults.append(f"promtool check metrics {address}: {found.stdout}{found.stderr}")
        if "quorum_build_info{" not in page:
            faults.append(f"{address} has no quorum_build_info")
    return faults


def check_panels(prometheus, run):
    wanted = [p for p in panels() if not any(name in p[2] for name in WITHOUT_DATA)]
    missing, end = wanted, time.time() + PATIENCE
    while missing and time.time() < end and run.poll() is None:
        time.sleep(1)
        missing = [p for p in missing if not has_data(prometheus, p[2])]
    print(f"{len(wanted) - len(missing)} of {len(wanted)} expressions have data; exempt: {', '.join(WITHOUT_DATA)}")
    return [f"no data: {dashboard} / {panel}: {expression}" for dashboard, panel, expression in missing]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--executables", required=True, type=pathlib.Path)
    parser.add_argument("--scratch", required=True, type=pathlib.Path)
    args = parser.parse_args()
    for dashboard, panel, expression in panels():
        promql_parser.parse(concrete(expression))
    run_dir = args.scratch / "run"
    command = [args.executables.resolve() / "coordinator", "--workers", "2", "--config", "tests/configs/small.toml", "--progress", "plain"]
    for setting in [*SETTINGS, f"run.dir={run_dir}"]:
        command += ["--set", setting]
    log = open(args.scratch / "run.log", "w")
    started = [subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)]
    try:
        http = wait_for("the coordinator", lambda: json.loads((run_dir / "endpoints.json").read_text())["http"])
        process, prometheus = start_prometheus(args.scratch, http)
        started.append(process)
        wait_for("learner and workers", lambda: len(json.loads(get(f"http://{http}/sd"))) == 3)
        faults = check_panels(prometheus, started[0])
        faults += check_pages(http) if started[0].poll() is None else ["the run ended too early"]
        rules = [r for g in json.loads(get(f"{prometheus}/api/v1/rules"))["data"]["groups"] for r in g["rules"]]
        faults += [f"rule {r['name']}: {r.get('lastError')}" for r in rules if r["health"] == "err"]
        wanted = (ROOT / "deploy/prometheus/alerts.yml").read_text().count("- alert:")
        faults += [] if len(rules) == wanted else [f"{len(rules)} rules are loaded, not {wanted}"]
    finally:
        for process in started:
            process.send_signal(signal.SIGTERM)
        for process in started:
            process.wait(timeout=30)
    if faults:
        print(*faults, (args.scratch / "run.log").read_text()[-2000:], sep="\n")
        sys.exit(1)
    print("dashboards: ok")


main()

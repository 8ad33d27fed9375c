"""deploy/ is held to what can be held without a container engine: parsing, security properties, commands, metrics."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway import settings
from gateway.cli.serve import serve
from gateway.cli.worker import worker as worker_command
from tests.fake_vllm import FakeVLLM

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
DOCKERFILES = sorted(DEPLOY.glob("*.Dockerfile"))
NOBODY = 65534
COMMAND = ["serve", "--config", "/etc/loragate/gateway.yaml", "--host", "0.0.0.0"]
COMMAND += ["--admin-host", "0.0.0.0", "--admin-allow-remote", "--data-dir", "/data"]
# The product's metrics (the contract that outside dashboards and these alerts rely on).
METRICS = {
    f"loragate_{name}"
    for name in [
        "requests_total",
        "request_seconds",
        "time_to_first_token_seconds",
        "inter_token_seconds",
        "tokens_total",
        "in_flight",
        "queue_seconds",
        "overhead_seconds",
        "limited_total",
        "shed_total",
        "stream_terminated_total",
        "client_closed_total",
        "upstream_errors_total",
        "replica_up",
        "adapters",
        "adapter_load_seconds",
        "adapter_slots",
        "adapter_working_set",
        "adapter_window_requests",
        "adapter_window_misses",
        "canary_ended_total",
        "training_jobs",
    ]
}


def document(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text())


def objects(kind: str) -> dict[str, Any]:
    found = [one for one in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()) if one["kind"] == kind]
    return {one["metadata"]["name"]: one for one in found}


def instructions(path: Path) -> list[tuple[str, str]]:
    """(instruction, its text) in order, comments and line continuations gone."""
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines()
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined)]


def last(path: Path, instruction: str) -> str:
    return [rest for word, rest in instructions(path) if word == instruction][-1]


# containers


def test_every_yaml_file_parses() -> None:
    files = sorted(DEPLOY.glob("*.y*ml"))
    assert len(files) >= 7
    for path in files:
        assert all(one is not None for one in yaml.safe_load_all(path.read_text())), path.name


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_images_are_unprivileged_pinned_and_watched(path: Path) -> None:
    assert last(path, "USER") == f"{NOBODY}:{NOBODY}"
    stages = [rest for word, rest in instructions(path) if word == "FROM"]
    assert all(re.fullmatch(r"[a-z/-]+:v?\d[\w.-]*( AS build)?", stage) for stage in stages), stages
    assert last(path, "HEALTHCHECK")
    assert not [rest for word, rest in instructions(path) if word == "ADD"]
    copied = [rest.split()[:-1] for word, rest in instructions(path) if word == "COPY" and "--from" not in rest]
    missing = [name for names in copied for name in names if not (ROOT / name).exists()]
    assert not missing


def test_gateway_image_starts_the_documented_command() -> None:
    path = DEPLOY / "gateway.Dockerfile"
    assert json.loads(last(path, "ENTRYPOINT")) == ["loragate"]
    assert json.loads(last(path, "CMD")) == COMMAND
    assert any("--require-hashes" in rest for word, rest in instructions(path) if word == "RUN")


@pytest.mark.parametrize("path", [path for path in DOCKERFILES if path.stem != "worker"], ids=lambda path: path.name)
async def test_health_check_tells_alive_from_dead(path: Path, engine: FakeVLLM) -> None:
    code = json.loads(last(path, "HEALTHCHECK").partition("CMD ")[2])[2].replace("/livez", "/health")

    async def run() -> int | None:
        here = code.replace("8000", engine.url.rsplit(":", 1)[1])
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", here, stderr=subprocess.DEVNULL)
        return await process.wait()

    assert await run() == 0
    await engine.stop()
    assert await run() == 1


# compose


@pytest.mark.parametrize("name", ["gateway", "engine", "worker", "prometheus"])
def test_compose_services_are_restricted(name: str) -> None:
    service = document("compose.yaml")["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["user"] == f"{NOBODY}:{NOBODY}"
    assert service["init"] is True
    assert "privileged" not in service
    assert service["mem_limit"]


def test_the_worker_has_the_gateways_data_and_nothing_published() -> None:
    services = document("compose.yaml")["services"]
    worker, gateway = services["worker"], services["gateway"]
    assert {"data:/data", "adapters:/data/adapters"} <= set(worker["volumes"]) & set(gateway["volumes"])
    assert ("ports" in worker, set(worker["networks"]) <= set(gateway["networks"])) == (False, True)
    assert json.loads(last(DEPLOY / "worker.Dockerfile", "CMD")) == worker["command"]
    assert worker_command.make_context("worker", worker["command"][1:]).params["stop_runs"]
    base = services["engine"]["volumes"][1]
    assert base in worker["volumes"], "the trainer reads the base where the engine says that it is"


def test_compose_hides_the_engine() -> None:
    compose = document("compose.yaml")
    engine = compose["services"]["engine"]
    assert "ports" not in engine
    assert engine["networks"] == ["engines"]
    assert compose["networks"]["engines"] == {"internal": True}
    assert all(volume.endswith(":ro") for volume in engine["volumes"])
    assert "adapters:/adapters:ro" in engine["volumes"]
    assert "adapters:/data/adapters" in compose["services"]["gateway"]["volumes"]
    published = [p for name in ("gateway", "prometheus") for p in compose["services"][name]["ports"]]
    assert published == ["${PUBLIC_ADDRESS:-127.0.0.1}:8000:8000", "127.0.0.1:8001:8001", "127.0.0.1:9090:9090"]


def test_both_examples_load_as_settings(tmp_path: Path) -> None:
    compose = document("compose.yaml")["services"]["gateway"]
    pod = objects("Deployment")["gateway"]["spec"]["template"]["spec"]["containers"][0]
    in_cluster = next(one["value"] for one in pod["env"] if one["name"] == "LORAGATE__ENGINES")
    config = tmp_path / "gateway.yaml"
    config.write_text(objects("ConfigMap")["gateway"]["data"]["gateway.yaml"])
    for command, engines, file in (
        (compose["command"], compose["environment"]["LORAGATE__ENGINES"], DEPLOY / "gateway.yaml"),
        (pod["args"], in_cluster, config),
    ):
        assert command == COMMAND
        serve.make_context("serve", command[1:])  # click refuses unknown flags
        secret = re.sub(r"\$[{(][^})]*[})]", "the-key", engines)
        loaded = settings.load({"LORAGATE__ENGINES": secret}, file=file, flags={"data_dir": str(tmp_path)})
        [engine] = loaded.engines
        assert (engine.url, str(engine.adapter_dir)) == ("http://engine:8000", "/adapters")
        assert engine.api_key is not None
        assert engine.api_key.get_secret_value() == "the-key"
        assert (loaded.metrics.host, loaded.metrics.port) == ("0.0.0.0", 9100)
        assert loaded.drain.delay_s + loaded.drain.timeout_s < 60


def rank(command: list[str]) -> int:
    return int(command[command.index("--max-lora-rank") + 1])


def test_the_gateway_takes_the_ranks_that_the_engine_takes(tmp_path: Path) -> None:
    """The engine's API does not tell its limit: where the two disagree, good adapters are refused."""

    def ours(environ: dict[str, str], text: str) -> int:
        file = tmp_path / "gateway.yaml"
        file.write_text(text)
        return settings.load(environ, file=file, flags={"data_dir": str(tmp_path)}).adapters.max_lora_rank

    cpu, cuda = document("compose.yaml")["services"], document("compose.cuda.yaml")["services"]
    shipped = (DEPLOY / "gateway.yaml").read_text()
    assert ours({}, shipped) == rank(cpu["engine"]["command"])
    assert ours(cuda["gateway"]["environment"], shipped) == rank(cuda["engine"]["command"])
    pod = objects("Deployment")["engine"]["spec"]["template"]["spec"]["containers"][0]
    assert ours({}, objects("ConfigMap")["gateway"]["data"]["gateway.yaml"]) == rank(pod["args"])


# Kubernetes


@pytest.mark.parametrize("name", ["gateway", "engine"])
def test_pods_are_restricted(name: str) -> None:
    pod = objects("Deployment")[name]["spec"]["template"]["spec"]
    assert pod["enableServiceLinks"] is False
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == NOBODY
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["terminationGracePeriodSeconds"] >= 60
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"]["memory"]
        assert {"startupProbe", "livenessProbe", "readinessProbe"} <= set(container)


def test_gateway_probes_ask_the_right_doors() -> None:
    container = objects("Deployment")["gateway"]["spec"]["template"]["spec"]["containers"][0]
    assert container["livenessProbe"]["httpGet"] == {"path": "/livez", "port": "public"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "public"}


def test_the_engine_only_reads() -> None:
    container = objects("Deployment")["engine"]["spec"]["template"]["spec"]["containers"][0]
    mounts = {mount["mountPath"]: mount.get("readOnly", False) for mount in container["volumeMounts"]}
    assert mounts == {"/models": True, "/adapters": True, "/tmp": False, "/dev/shm": False}


def test_only_the_gateway_reaches_the_engine() -> None:
    policies = objects("NetworkPolicy")
    assert policies["nothing"]["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    engine = policies["engine"]["spec"]
    assert engine["podSelector"] == {"matchLabels": {"app": "engine"}}
    assert engine["egress"] == []
    assert [rule["from"] for rule in engine["ingress"]] == [[{"podSelector": {"matchLabels": {"app": "gateway"}}}]]
    doors = {port["port"] for rule in policies["gateway"]["spec"]["ingress"] for port in rule["ports"]}
    assert doors == {"public", "metrics"}  # the admin port is nobody's
    assert all(service["spec"].get("type", "ClusterIP") == "ClusterIP" for service in objects("Service").values())


def test_drains_and_names() -> None:
    assert set(objects("PodDisruptionBudget")) == {"gateway", "engine"}
    services, deployments = objects("Service"), objects("Deployment")
    for service in services.values():
        assert service["spec"]["selector"]["app"] in deployments
    assert services["engine"]["spec"]["ports"][0]["port"] == 8000


def test_the_gateway_finds_each_engine_pod_by_itself() -> None:
    """Behind one address nobody could say into which pod an adapter is loaded."""
    pod = objects("Deployment")["gateway"]["spec"]["template"]["spec"]["containers"][0]
    [engine] = yaml.safe_load(next(one["value"] for one in pod["env"] if one["name"] == "LORAGATE__ENGINES"))
    service = objects("Service")["engine"]["spec"]
    assert (engine["discover"], service["clusterIP"], service["ipFamilyPolicy"]) == ("dns", "None", "SingleStack")
    container = objects("Deployment")["engine"]["spec"]["template"]["spec"]["containers"][0]
    assert engine["url"] == f"http://engine:{container['ports'][0]['containerPort']}"


def test_no_secret_lies_in_a_file() -> None:
    assert not objects("Secret")
    for path in (one for one in DEPLOY.iterdir() if one.is_file()):
        assert not re.search(r"lg-[\w-]{20}|BEGIN [A-Z ]*PRIVATE|password:\s*\S", path.read_text()), path.name


# Prometheus


def test_alerts_use_the_product_s_metrics_and_say_what_to_do() -> None:
    rules = [rule for group in document("alerts.yml")["groups"] for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules) > 10
    for rule in rules:
        used = {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"loragate_[a-z_]+", rule["expr"])}
        assert used, rule["alert"]
        assert used <= METRICS, rule["alert"]
        assert set(rule["annotations"]) == {"summary", "runbook"}
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["for"]


def test_prometheus_scrapes_the_port_that_the_gateway_opens() -> None:
    [scrape] = document("prometheus.yml")["scrape_configs"]
    port = document("gateway.yaml")["metrics"]["port"]
    assert scrape["static_configs"] == [{"targets": [f"gateway:{port}"]}]


def test_promtool_accepts_configuration_and_rules() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not on PATH (Debian: apt-get install prometheus)")
    for words in (["check", "config", "prometheus.yml"], ["test", "rules", "alerts_test.yml"]):
        done = subprocess.run([promtool, *words], cwd=DEPLOY, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

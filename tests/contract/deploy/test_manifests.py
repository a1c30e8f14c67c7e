"""The manifests: they build, are valid, keep what the platform demands, and name what the code knows."""

from __future__ import annotations

import configparser
import copy
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from telemetry.metrics import METRICS
from tests.helpers.kustomize import (
    BIN,
    COMPONENTS,
    INSTALLATIONS,
    KUSTOMIZE,
    OVERLAYS,
    ROOT,
    help_of,
    installation,
    our_containers,
    overlay,
    pods,
    variables_of,
    with_component,
)

CRDS = {path.stem: json.loads(path.read_text()) for path in (Path(__file__).parent / "crds").glob("*.json")}
SHARED = {"LOG_LEVEL", "LOG_FORMAT", "ZMQBROKER_URL", "ZMQBROKER_ADMIN_URL", "ZMQBROKER_HTTP_URL", "CLICKHOUSE_URL",
          "CLICKHOUSE_USER", "CLICKHOUSE_DATABASE", "CLICKHOUSE_CA_FILE", "ZMQBROKER_CLIENT_KEY",
          "ZMQBROKER_SERVER_KEY"}  # fmt: skip


def validate(documents: list[dict[str, Any]]) -> None:
    """Against the schemas of Kubernetes, and for custom resources against those of their controllers."""
    for document in documents:
        if document["kind"] in CRDS:
            jsonschema.validate(document, CRDS[document["kind"]])
        else:
            kubernetes_validate.validate(document, "1.37", strict=True)


@pytest.mark.parametrize("kind", sorted(CRDS))
def test_a_field_that_a_custom_resource_does_not_have_is_found(kind: str) -> None:
    component = "keda" if kind == "ScaledObject" else "monitoring"
    documents = overlay("prod") if kind == "PodMonitor" else with_component(component)
    document = copy.deepcopy(next(d for d in documents if d["kind"] == kind))
    validate([document])
    document["spec"]["intervall"] = "15s"
    with pytest.raises(jsonschema.ValidationError):
        validate([document])


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_overlay_builds_and_is_valid(name: str) -> None:
    documents = overlay(name)
    validate(documents)
    assert {"StatefulSet", "Deployment", "Job", "Service", "Namespace"} <= {d["kind"] for d in documents}


@pytest.mark.parametrize("component", COMPONENTS)
def test_every_component_builds_on_the_base_and_is_valid(component: str) -> None:
    validate(with_component(component))


@pytest.mark.parametrize("name", INSTALLATIONS)
def test_every_pod_keeps_the_restricted_profile(name: str) -> None:
    for workload, pod in pods(installation(name)):
        assert pod["automountServiceAccountToken"] is False, workload
        assert pod["enableServiceLinks"] is False, workload
        assert pod["securityContext"]["runAsNonRoot"] is True, workload
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, workload
        for container in pod["containers"]:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False, workload
            assert security["readOnlyRootFilesystem"] is True, workload
            assert security["capabilities"] == {"drop": ["ALL"]}, workload
            assert container["resources"]["requests"], workload
            assert "memory" in container["resources"]["limits"], workload
        if not workload.startswith("DaemonSet"):
            assert not any("hostPath" in volume for volume in pod.get("volumes", [])), workload


@pytest.mark.parametrize("name", INSTALLATIONS)
def test_commands_options_and_variables_are_those_of_the_code(name: str) -> None:
    """A renamed flag or variable fails here, not in a cluster."""
    for workload, container, environment in our_containers(installation(name)):
        command = [*container["command"]]
        text = help_of(*command)
        for argument in container.get("args", []):
            if argument.startswith("--"):
                assert re.search(rf"{re.escape(argument)}\b", text), f"{workload}: {argument} is no option of {command}"
        known = variables_of(*command)
        prefix = {"zmqbroker": "BROKER_", "telemetry-streamer": "STREAMER_", "telemetry-collector": "COLLECTOR_",
                  "telemetry-clickhouse": "STORE_", "telemetry-api": "API_"}[command[0]]  # fmt: skip
        for variable in environment:
            if variable.startswith(prefix):
                assert variable in known, f"{workload}: {variable} is no variable of {' '.join(command)}"
            else:
                assert variable in SHARED or variable == "NODE_IP", f"{workload}: {variable} is nobody's"


@pytest.mark.parametrize("name", INSTALLATIONS)
def test_ports_and_probes_are_those_that_the_process_serves(name: str) -> None:
    for workload, container, environment in our_containers(installation(name)):
        if workload.startswith("Job/"):
            continue
        [http] = [value for variable, value in environment.items() if variable.endswith("_HTTP")]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert ports["http"] == int(http.rpartition(":")[2]), workload
        assert container["livenessProbe"]["httpGet"]["path"] == "/healthz", workload
        assert container["readinessProbe"]["httpGet"]["path"] == "/readyz", workload
        for variable in ("BROKER_BIND", "BROKER_ADMIN_BIND"):
            if variable in environment:
                assert int(environment[variable].rpartition(":")[2]) in ports.values(), workload


@pytest.mark.parametrize("name", INSTALLATIONS)
def test_a_pod_may_drain_longer_than_its_process_takes(name: str) -> None:
    for workload, pod in pods(installation(name)):
        for container in pod["containers"]:
            for variable in container.get("env", []):
                if variable["name"].endswith("_DRAIN_TIMEOUT"):
                    assert pod["terminationGracePeriodSeconds"] > int(variable["value"].removesuffix("s")), workload


def test_every_service_finds_pods_with_the_port_that_it_names() -> None:
    for name in OVERLAYS:
        documents = overlay(name)
        workloads = [
            (d["metadata"].get("namespace"), d["spec"]["template"]["metadata"]["labels"], d["spec"]["template"]["spec"])
            for d in documents
            if d["kind"] in ("Deployment", "StatefulSet")
        ]
        for service in (d for d in documents if d["kind"] == "Service"):
            wanted = service["spec"]["selector"].items()
            matching = [
                pod for space, labels, pod in workloads
                if space == service["metadata"].get("namespace") and wanted <= labels.items()
            ]  # fmt: skip
            assert matching, f"{name}: service {service['metadata']['name']} selects nothing"
            for port in service["spec"]["ports"]:
                for pod in matching:
                    names = {p["name"] for c in pod["containers"] for p in c["ports"]}
                    assert port["targetPort"] in names


def test_the_policies_let_through_what_the_configuration_names() -> None:
    """The staging overlay denies by default: each address in the config map must have its rule."""
    documents = overlay("staging")
    policies = {d["metadata"]["name"]: d["spec"] for d in documents if d["kind"] == "NetworkPolicy"}
    for client, server, port in (
        ("collector", "broker", 5555), ("api", "broker", 5555), ("api", "broker", 9090), ("streamer", "broker", 5555),
        ("collector", "store", 8123), ("rollup", "store", 8123), ("api", "store", 8123), ("migrations", "store", 8123),
    ):  # fmt: skip
        out = [p["port"] for rule in policies[client]["egress"] for p in rule["ports"]]
        into = [p["port"] for rule in policies[server]["ingress"] for p in rule["ports"]]
        assert port in out, f"{client} may not reach {server}:{port}"
        assert port in into, f"{server} may not be reached by {client} on {port}"


def scale_targets(documents: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """(kind, name) of what each autoscaler of either sort sets the number of pods of."""
    targets = [
        d["spec"]["scaleTargetRef"] for d in documents if d["kind"] in ("HorizontalPodAutoscaler", "ScaledObject")
    ]
    return [(target.get("kind", "Deployment"), target["name"]) for target in targets]


@pytest.mark.parametrize("name", INSTALLATIONS)
def test_what_an_autoscaler_owns_says_no_number_of_pods_itself(name: str) -> None:
    documents = installation(name)
    workloads = {(d["kind"], d["metadata"]["name"]): d for d in documents}
    targets = scale_targets(documents)
    assert len(targets) == len(set(targets)), "two scalers on one target"
    for target in targets:
        assert "replicas" not in workloads[target]["spec"], target


def test_autoscalers_ask_for_metrics_that_exist_by_the_names_that_the_adapter_gives() -> None:
    known = {definition.name for definition in METRICS}
    adapter = yaml.safe_load((KUSTOMIZE / "components" / "hpa" / "prometheus-adapter-rules.yaml").read_text())
    given = {}
    for rule in (*adapter["externalRules"], *adapter["rules"]):
        given[rule["name"]["as"]] = rule["seriesQuery"].partition("{")[0]
    assert set(given.values()) <= known
    asked = set()
    for document in with_component("hpa"):
        for metric in document["spec"].get("metrics", []) if document["kind"] == "HorizontalPodAutoscaler" else []:
            if metric["type"] != "Resource":
                asked.add(metric[metric["type"].lower()]["metric"]["name"])
    assert asked == set(given)
    [scaled] = [d for d in with_component("keda") if d["kind"] == "ScaledObject"]
    for trigger in scaled["spec"]["triggers"]:
        assert set(re.findall(r"(\w+)\{", trigger["metadata"]["query"])) <= known


@pytest.mark.parametrize("name", OVERLAYS)
def test_a_value_that_changes_rolls_the_pods_that_read_it(name: str) -> None:
    for workload, container, _ in our_containers(overlay(name)):
        for source in container.get("envFrom", []):
            assert re.fullmatch(r"telemetry-[a-z0-9]{10}", source["configMapRef"]["name"]), workload


@pytest.mark.parametrize("name", INSTALLATIONS)
def test_every_image_of_ours_is_of_this_version_or_named_by_digest(name: str) -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    version = config["metadata"]["version"]
    for workload, pod in pods(installation(name)):
        for container in (*pod.get("initContainers", []), *pod["containers"]):
            image = container["image"]
            if "gpu-telemetry" in image:
                assert image in (f"gpu-telemetry:{version}", f"gpu-telemetry:{version}-embedded") or "@" in image, (
                    workload
                )


def test_prod_runs_no_image_by_a_tag_and_no_password_from_the_repository() -> None:
    documents = overlay("prod")
    for workload, pod in pods(documents):
        for container in pod["containers"]:
            assert "@sha256:" in container["image"], workload
    assert not [d for d in documents if d["kind"] == "Secret"]


def test_yaml_is_tidy() -> None:
    done = subprocess.run(
        [BIN / "yamllint", "--strict", "-c", ROOT / "deploy" / "yamllint.yaml", ROOT / "deploy"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout

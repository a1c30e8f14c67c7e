"""The Grafana dashboards: every query is run, against the real engine or the list of metrics."""

from __future__ import annotations

import importlib.util
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import promql_parser
import pytest
import yaml
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as grafana
from grafana_foundation_sdk.models.prometheus import Dataquery

from clickhouse.client import StoreAddress, StorePool
from clickhouse.insert import SampleColumns, insert_devices, insert_samples
from telemetry.batch import Device
from telemetry.metrics import METRICS
from tests.conftest import ROOT
from tests.helpers.store import running_store

GRAFANA = ROOT / "deploy" / "grafana"
FILES = sorted((GRAFANA / "dashboards").glob("*.json"))
PIPELINE, FLEET = GRAFANA / "dashboards" / "pipeline.json", GRAFANA / "dashboards" / "fleet.json"
SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("",), "gauge": ("",)}
EXPORTED = {definition.name + suffix: definition for definition in METRICS for suffix in SUFFIXES[definition.kind]}
PROMQL_WORDS = {
    "sum", "max", "min", "avg", "count", "rate", "increase", "by", "or", "vector", "histogram_quantile", "label_values", "on", "without",
}  # fmt: skip


def load(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def make_dashboards() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_dashboards", GRAFANA / "make_dashboards.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def panels(path: Path) -> list[dict[str, Any]]:
    return [panel for panel in load(path)["panels"] if panel["type"] != "row"]


def lost(before: Any, after: Any, place: str = "") -> Iterator[str]:
    """Where ``after`` lacks what ``before`` says; it may say more."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name, value in before.items():
            yield from lost(value, after.get(name), f"{place}/{name}")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for i, pair in enumerate(zip(before, after, strict=True)):
            yield from lost(*pair, f"{place}/{i}")
    elif before != after:
        yield f"{place}: {before!r} became {after!r}"


def queries(path: Path, name: str) -> list[tuple[str, str]]:
    """(panel, query) of every target, and of every variable that asks."""
    found = [(panel["title"], target[name]) for panel in panels(path) for target in panel["targets"]]
    for variable in load(path)["templating"]["list"]:
        if variable["type"] == "query":
            query = variable["query"]
            found.append((f"variable {variable['name']}", query["query"] if isinstance(query, dict) else query))
    return found


def test_the_json_is_what_the_generator_makes() -> None:
    made = make_dashboards()
    for name, found in made.dashboards().items():
        assert (GRAFANA / "dashboards" / name).read_text() == made.text(found), (
            f"{name}: run deploy/grafana/make_dashboards.py"
        )


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_grafanas_own_types_know_every_field(path: Path) -> None:
    """Read into the types that are generated from Grafana's schema and written again, nothing is lost or changed."""
    plugins.register_default_plugins()
    ours = load(path)
    read = grafana.Dashboard.from_json(ours)
    assert list(lost(ours, json.loads(JSONEncoder().encode(read)))) == []
    for panel in read.panels or []:
        if isinstance(panel, grafana.Panel):
            assert not isinstance(panel.options, dict), f"{panel.title}: no such panel as {panel.type_val}"
            if path == PIPELINE:
                assert all(isinstance(target, Dataquery) for target in panel.targets or []), panel.title
    ours["panels"][0]["gridPos"]["hight"] = 4
    read = grafana.Dashboard.from_json(ours)
    assert list(lost(ours, json.loads(JSONEncoder().encode(read)))) == ["/panels/0/gridPos/hight: 4 became None"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_panels_lie_side_by_side_with_ids_of_their_own(path: Path) -> None:
    found = load(path)["panels"]
    assert len({panel["id"] for panel in found}) == len(found)
    taken: set[tuple[int, int]] = set()
    for panel in found:
        grid = panel["gridPos"]
        cells = {
            (x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert grid["x"] + grid["w"] <= 24
        assert not cells & taken, f"{panel['title']} lies over another panel"
        taken |= cells


@pytest.mark.parametrize(("panel", "expression"), queries(PIPELINE, "expr"))
def test_the_pipeline_asks_only_for_metrics_and_labels_that_are_exported(panel: str, expression: str) -> None:
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\"[^\"]*\"", "", expression)
    names = set(re.findall(r"[a-z_][a-z0-9_:]*", bare)) - PROMQL_WORDS
    metrics = {name for name in names if name in EXPORTED}
    assert metrics, expression
    # A bucket's own label, and those that Prometheus adds to what it scrapes.
    labels = {label for name in metrics for label in EXPORTED[name].labels} | {"le", "instance", "job"}
    assert names - metrics <= labels, f"{panel}: {names - metrics - labels} is neither a metric nor a label of one"
    for label in re.findall(r"([a-z_]+)\s*=~?", " ".join(re.findall(r"\{[^}]*\}", expression))):
        assert label in labels, f"{panel}: {label}"


def test_prometheus_can_parse_every_expression() -> None:
    for panel, expression in queries(PIPELINE, "expr"):
        if panel.startswith("variable"):
            continue
        text = expression.replace("$__rate_interval", "1m").replace("$topic", ".*")
        promql_parser.parse(text)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StorePool]:
    """The real engine with two hosts of two GPUs, an XID among their samples."""
    devices = [
        Device(uuid=f"GPU-{host}-{gpu}", hostname=f"host-{host}", gpu_index=str(gpu), device=f"nvidia{gpu}", model="Test", pod="train-0" if gpu else "", namespace="team")
        for host in range(2)
        for gpu in range(2)
    ]  # fmt: skip
    metrics = [
        "DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_DEV_GPU_TEMP", "DCGM_FI_DEV_POWER_USAGE", "DCGM_FI_DEV_FB_USED", "DCGM_FI_DEV_SM_CLOCK",
        "DCGM_FI_DEV_XID_ERRORS", "DCGM_FI_DEV_CLOCK_THROTTLE_REASONS",
    ]  # fmt: skip
    seconds = 60
    with running_store(tmp_path_factory.mktemp("grafana"), "--memory", "1GB") as running, running.connect() as conn:
        now_ms = time.time_ns() // 1_000_000
        second, device, metric = (part.ravel() for part in np.indices((seconds, len(devices), len(metrics))))
        value = np.where(metric == 5, np.where(second > 30, 79.0, 0.0), 0.0 + metric)
        rows = len(value)
        columns = SampleColumns(
            gpu=np.array([d.gpu_key for d in devices], dtype=np.uint64)[device],
            labels=np.array([d.labels_key for d in devices], dtype=np.uint64)[device],
            metric_code=metric.astype(np.uint16), metric_names=metrics, ts_ms=(now_ms - (seconds - second) * 900).astype(np.int64), value=value,
            session=np.full(rows, 1, dtype=np.uint64), seq=np.zeros(rows, dtype=np.uint64),
        )  # fmt: skip
        insert_devices(conn, devices)
        for day, part in columns.by_day():
            insert_samples(conn, part, token=f"grafana/{day}")
        with StorePool(StoreAddress(url=running.url)) as pool:
            yield pool


def expand(text: str) -> str:
    """What the data source's macros and Grafana's variables become before the query is sent."""
    text = re.sub(r"\$__timeFilter\((\w+)\)", r"\1 >= toDateTime(now() - 3600) AND \1 <= toDateTime(now() + 1)", text)
    text = re.sub(r"\$__timeInterval\((\w+)\)", r"toStartOfInterval(toDateTime(\1), INTERVAL 10 second)", text)
    text = text.replace("${host:singlequote}", "'host-0','host-1'").replace("${metric}", "DCGM_FI_DEV_GPU_UTIL")
    assert "$" not in text, f"a variable or macro that this test does not know: {text}"
    return text


EMPTY = {"Rejected rows", "GPUs that fell silent", "Mean utilisation by the hour (rollup)", "Active"}
"""Panels that rightly have nothing to show, or a zero, with this data."""


@pytest.mark.parametrize(("panel", "query"), queries(FLEET, "rawSql"))
def test_the_fleets_queries_run_on_the_real_engine(store: StorePool, panel: str, query: str) -> None:
    rows = store.query(expand(query))
    if panel not in EMPTY:
        assert rows, f"{panel} shows nothing"


def test_the_fleets_numbers_are_right(store: StorePool) -> None:
    found = {panel: store.query(expand(query)) for panel, query in queries(FLEET, "rawSql")}
    assert found["GPUs ever seen"][0][0] == 4
    assert found["Reporting"][0][0] == 4
    assert found["Allocated"][0][0] == 2
    assert found["Power"][0][0] == pytest.approx(8.0)
    assert [row[3] for row in found["XIDs in this range"]] == [79] * 4
    assert len(found["Held and idle for 30 minutes"]) == 2


def test_provisioning_names_the_sources_and_the_folder_that_the_deployment_mounts() -> None:
    sources = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "gpu-telemetry.yaml").read_text())[
        "datasources"
    ]
    assert {source["type"] for source in sources} == {"prometheus", "grafana-clickhouse-datasource"}
    provider = yaml.safe_load((GRAFANA / "provisioning" / "dashboards" / "gpu-telemetry.yaml").read_text())[
        "providers"
    ][0]
    compose = yaml.safe_load((ROOT / "deploy" / "docker" / "compose.yaml").read_text())
    mounted = {volume.split(":")[1] for volume in compose["services"]["grafana"]["volumes"]}
    assert provider["options"]["path"] in mounted
    named = yaml.safe_load((GRAFANA / "kustomization.yaml").read_text())["configMapGenerator"]
    assert {file for entry in named for file in entry["files"]} == {f"dashboards/{path.name}" for path in FILES}

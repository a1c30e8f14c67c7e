"""The one list of metrics, and what builds from it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from telemetry import metrics, metrics_page
from telemetry.metrics import METRICS, definitions

PREFIXES = ("telemetry_", "zmqbroker_", "streamer_", "collector_", "store_", "api_")
UNBOUNDED_LABELS = {"gpu", "gpu_id", "uuid", "session", "seq", "hostname", "pod", "path", "client", "offset"}


def test_names_are_unique_prefixed_and_follow_the_conventions() -> None:
    names = [definition.name for definition in METRICS]
    assert len(names) == len(set(names))
    for definition in METRICS:
        assert definition.name.startswith(PREFIXES), definition.name
        assert re.fullmatch(r"[a-z][a-z0-9_]*", definition.name)
        assert definition.name.endswith("_total") == (definition.kind == "counter"), definition.name
        assert definition.help, definition.name
        assert not definition.help.endswith("."), definition.name


def test_no_label_grows_with_traffic() -> None:
    for definition in METRICS:
        assert not UNBOUNDED_LABELS & set(definition.labels), definition.name


def test_what_is_not_in_the_list_cannot_be_made() -> None:
    registry = CollectorRegistry()
    with pytest.raises(LookupError, match="no counter made_up_total"):
        metrics.counter(registry, "made_up_total")
    with pytest.raises(LookupError, match="no gauge telemetry_log_lines_total"):
        metrics.gauge(registry, "telemetry_log_lines_total")


def test_values_kept_by_the_process_are_read_on_scrape() -> None:
    registry = CollectorRegistry()
    lines = {"info": 1.0}
    metrics.on_scrape(registry, lambda: [("telemetry_log_lines_total", (k,), v) for k, v in lines.items()])
    metrics.on_scrape(registry, lambda: [("telemetry_ready", (), 1)])
    assert b'telemetry_log_lines_total{level="info"} 1.0' in generate_latest(registry)
    lines["info"] = 5
    text = generate_latest(registry).decode()
    assert 'telemetry_log_lines_total{level="info"} 5.0' in text
    assert f"# HELP telemetry_ready {definitions()['telemetry_ready'].help}" in text


def test_the_page_of_metrics_is_the_list_as_it_is(root: Path) -> None:
    assert (root / "docs" / "metrics.md").read_text() == metrics_page.page(), "run: make docs"
    for definition in METRICS:
        assert f"| `{definition.name}` | {definition.kind} |" in metrics_page.page()

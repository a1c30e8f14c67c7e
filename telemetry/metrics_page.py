"""``python -m telemetry.metrics_page > docs/metrics.md``: the page of all metrics, made from the one list."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Final

from telemetry.metrics import METRICS, MetricDefinition

SECTIONS: Final = (
    ("telemetry_", "Every process"),
    ("zmqbroker_", "Broker"),
    ("streamer_", "Streamer"),
    ("collector_", "Collector"),
    ("store_", "Store"),
    ("api_", "API"),
)

HEAD: Final = """# Metrics

Made from `telemetry/metrics.py` by `make docs`; a test holds both together. Each process serves its own at `/metrics`
on its HTTP address, beside the usual `process_*` and `python_*`. No label grows with traffic.
"""


def lines() -> Iterator[str]:
    """The page, line by line."""
    yield from HEAD.splitlines()
    for prefix, title in SECTIONS:
        found = [definition for definition in METRICS if definition.name.startswith(prefix)]
        if found:
            yield from ("", f"## {title}", "", "| name | kind | labels | meaning |", "| --- | --- | --- | --- |")
            yield from map(_row, found)


def _row(definition: MetricDefinition) -> str:
    labels = ", ".join(f"`{label}`" for label in definition.labels)
    return f"| `{definition.name}` | {definition.kind} | {labels} | {definition.help.replace('|', '/')} |"


def page() -> str:
    """The whole page."""
    return "\n".join(lines()) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())

"""The curves of the bench ``tuning`` as Markdown: a table and a chart each, for docs/tuning.md."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

TITLES: Final = {
    "batch_rows": "Batch rows (streamer `--batch-rows`)",
    "linger_ms": "Linger (collector `--linger`)",
    "credit": "Credit (collector `--credit`)",
    "partitions": "Partitions (broker `--partitions`)",
    "collector_workers": "Workers of one collector (`--workers`)",
    "streamer_workers": "Workers of one streamer over a CSV file (`--workers`)",
}
HEADS: Final = {
    "rows_per_s": "rows/s",
    "p50_ms": "latency p50, ms",
    "p99_ms": "latency p99, ms",
    "inserts_per_s": "INSERTs a second",
    "store_cores": "store, cores",
    "collector_cores": "collector, cores",
}


def sections(result: dict[str, Any]) -> Iterator[str]:
    """Lines of all curves of a result."""
    for name, points in result["notes"]["curves"].items():
        figures = [key for key in points[0] if key != name]
        yield from (f"### {TITLES[name]}", "")
        yield "| " + " | ".join([name.replace("_", " "), *(HEADS[figure] for figure in figures)]) + " |"
        yield "| ---: |" + " ---: |" * len(figures)
        for point in points:
            yield "| " + " | ".join([f"{point[name]:,}", *(number(point[figure]) for figure in figures)]) + " |"
        yield ""
        yield from chart(name, figures[0], points)


def chart(name: str, figure: str, points: list[dict[str, Any]]) -> Iterator[str]:
    """One figure as bars, for viewers that draw Mermaid."""
    values = [round(point[figure] / 1000) if figure == "rows_per_s" else round(point[figure]) for point in points]
    label = "thousand rows/s" if figure == "rows_per_s" else HEADS[figure]
    yield from ("```mermaid", "xychart-beta")
    yield f'    x-axis "{name.replace("_", " ")}" {[point[name] for point in points]}'.replace("'", '"')
    yield f'    y-axis "{label}" 0 --> {max(values) + 1}'
    yield from (f"    bar {values}", "```", "")


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"

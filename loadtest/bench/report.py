"""Puts the latest results into docs/performance.md and docs/tuning.md: ``python -m loadtest.bench.report``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from loadtest.bench import curves
from loadtest.bench.frame import RESULTS, ROOT

DOCS: Final = ROOT / "docs"
BEGIN: Final = "<!-- results: written by python -m loadtest.bench.report -->"
END: Final = "<!-- end of results -->"


def main(results: Path = RESULTS, docs: Path = DOCS) -> None:
    """Replace what stands between the two marks of each page."""
    loaded = [json.loads(path.read_text()) for path in sorted(results.glob("*.json"))]
    put(docs / "performance.md", sections(result for result in loaded if result["bench"] != "tuning"))
    for result in loaded:
        if result["bench"] == "tuning":
            put(docs / "tuning.md", [*curves.sections(result), _machine(result), ""])


def put(page: Path, lines: Iterable[str]) -> None:
    """Replace what stands between the marks of one page."""
    before, found, rest = page.read_text("utf-8").partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not (found and ended):
        raise SystemExit(f"report: {page} has not both marks {BEGIN!r} and {END!r}")
    page.write_text("\n".join([before + BEGIN, "", *lines, END + after]), "utf-8")


def sections(results: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Markdown lines: a table a benchmark, with the machine it ran on."""
    for result in results:
        yield from (f"### {result['bench']}", "")
        yield from _table(result["figures"])
        yield from ("", _machine(result), "")


def _machine(result: dict[str, Any]) -> str:
    machine = result["machine"]
    return (
        f"{result['taken'][:10]}, median of {result['runs']}; {machine['cores']} cores, "
        f"{machine['memory_gib']} GiB, Python {machine['python']}; a `fdatasync` of 64 kB takes "
        f"{machine['fdatasync_64kB_p50_ms']} ms (p50), {machine['fdatasync_64kB_p99_ms']} ms (p99); "
        f"the disk writes {machine['disk_write_mb_per_s']} MB/s; load before the run: {machine['load_before']}."
    )


def _table(figures: list[dict[str, Any]]) -> Iterator[str]:
    """Figures with their baselines; without those columns where no figure has one."""
    if all(figure["baseline_value"] is None for figure in figures):
        yield from ("| metric | value |", "| --- | ---: |")
        yield from (f"| `{figure['metric']}` | {_number(figure['value'])} {figure['unit']} |" for figure in figures)
        return
    yield from ("| metric | value | baseline | its value | ratio |", "| --- | ---: | --- | ---: | ---: |")
    for figure in figures:
        beside = f"{figure['baseline'] or ''} | {_number(figure['baseline_value'])} | {_number(figure['ratio'])}"
        yield f"| `{figure['metric']}` | {_number(figure['value'])} {figure['unit']} | {beside} |"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:,.4g}"


if __name__ == "__main__":
    main()

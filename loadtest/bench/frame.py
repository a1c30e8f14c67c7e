"""What every benchmark shares: figures, settings, medians, the machine it ran on."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import psutil

import loadtest.bench

ROOT: Final = Path(__file__).resolve().parents[2]
RESULTS: Final = ROOT / "loadtest" / "results"
SYNCS: Final = 200
DISK_PROBE_BYTES: Final = 256 << 20
HELPERS: Final = frozenset({"curves", "fleet_agent", "fleet_file", "fleet_rows", "frame", "processes", "report"})


@dataclass(frozen=True)
class Figure:
    """One result. ``baseline`` names what was measured beside it; ``ratio`` is value / baseline_value."""

    bench: str
    metric: str
    value: float
    unit: str
    baseline: str | None = None
    baseline_value: float | None = None
    ratio: float | None = None

    def line(self) -> str:
        """The JSON line that others script against."""
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Settings:
    """How to run. ``scale`` shrinks the work (tests use 0.01); ``directory`` must lie on the disk that is meant."""

    directory: Path = ROOT / "build" / "bench"
    runs: int = 3
    scale: float = 1.0
    notes: dict[str, Any] = field(default_factory=dict)
    """What a benchmark wants kept beside its figures (CPU by process, single runs)."""

    def scaled(self, count: int, least: int = 1) -> int:
        return max(least, int(count * self.scale))


def compare(
    bench: str,
    metric: str,
    unit: str,
    ours: Sequence[float],
    baseline: str | None = None,
    theirs: Sequence[float] = (),
) -> Figure:
    """The median of our runs beside that of the baseline's."""
    value = statistics.median(ours)
    if not theirs:
        return Figure(bench, metric, _short(value), unit, baseline)
    beside = statistics.median(theirs)
    return Figure(bench, metric, _short(value), unit, baseline, _short(beside), _short(value / beside))


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def modules() -> dict[str, ModuleType]:
    """Every benchmark by name."""
    found = {}
    for info in pkgutil.iter_modules(loadtest.bench.__path__):
        if info.name not in HELPERS and not info.name.startswith("_"):
            module = importlib.import_module(f"loadtest.bench.{info.name}")
            if hasattr(module, "run"):
                found[info.name] = module
    return found


def machine(directory: Path) -> dict[str, Any]:
    """What the figures depend on: cores, memory, the disk's rate and how long a sync of 64 kB takes on it."""
    directory.mkdir(parents=True, exist_ok=True)
    syncs = sync_seconds(directory / "sync-probe")
    return {
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "fdatasync_64kB_p50_ms": _short(1000 * statistics.median(syncs)),
        "fdatasync_64kB_p99_ms": _short(1000 * sorted(syncs)[int(len(syncs) * 0.99)]),
        "disk_write_mb_per_s": _short(disk_rate(directory / "disk-probe") / 1e6),
        "load_before": round(os.getloadavg()[0], 2),
    }


def sync_seconds(path: Path) -> list[float]:
    """Durations of single ``fdatasync`` calls after writing 64 kB into space that is already there."""
    block = os.urandom(65536)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        os.write(fd, bytes(SYNCS * len(block)))
        os.fsync(fd)
        durations = []
        for i in range(SYNCS):
            started = time.perf_counter()
            os.pwrite(fd, block, i * len(block))
            os.fdatasync(fd)
            durations.append(time.perf_counter() - started)
        return durations
    finally:
        os.close(fd)
        path.unlink()


def disk_rate(path: Path) -> float:
    """Bytes a second of one sequential write, synced at its end."""
    block = os.urandom(4 << 20)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        started = time.perf_counter()
        for _ in range(DISK_PROBE_BYTES // len(block)):
            os.write(fd, block)
        os.fdatasync(fd)
        return DISK_PROBE_BYTES / (time.perf_counter() - started)
    finally:
        os.close(fd)
        path.unlink()


def run_one(name: str, run: Callable[[Settings], Iterable[Figure]], settings: Settings) -> Iterator[Figure]:
    """Run a benchmark, yield its figures as they come, then write ``results/NAME.json``."""
    settings.directory.mkdir(parents=True, exist_ok=True)
    around = machine(settings.directory)
    figures = []
    for figure in run(settings):
        figures.append(figure)
        yield figure
    if settings.scale < 1:
        return  # a shrunk run proves that the benchmark works; its figures mean nothing
    RESULTS.mkdir(exist_ok=True)
    result = {
        "bench": name,
        "taken": datetime.now(UTC).isoformat(timespec="seconds"),
        "runs": settings.runs,
        "machine": around,
        "figures": [asdict(figure) for figure in figures],
        "notes": settings.notes,
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")

"""The CSV file that benchmarks read: a simulated fleet of 248 GPUs, every row distinct, made once and kept."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

from loadtest.bench.frame import Settings

HOSTS: Final = 31
SEED: Final = 7


def fleet_csv(settings: Settings, rows: int) -> tuple[Path, int]:
    """The file and its rows; ``rows`` is scaled by the settings."""
    rows = settings.scaled(rows, 10_000)
    path = settings.directory / f"fleet-{rows}.csv"
    if not path.exists():
        settings.directory.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        command = [sys.executable, "-m", "producers.cli", "simulate", "--out", str(part)]
        command += ["--hosts", str(HOSTS), "--rows", str(rows), "--seed", str(SEED), "--http", "off"]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        part.rename(path)
    return path, rows

"""The short forms of the chaos runs: real processes, real kills, every row accounted for."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import pytest

from tests.chaos.scenario import at_random, one_after_the_other

ROWS = int(os.environ.get("CHAOS_ROWS") or 1_000_000)
FAULTS = int(os.environ.get("CHAOS_FAULTS") or 20)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_killing_collector_broker_and_store_one_after_the_other_neither_loses_nor_doubles_a_row(tmp_path: Path):
    """While a million rows stream, each part is killed with -9 and started again."""
    findings = one_after_the_other(tmp_path / "run", ROWS, rate=80_000)
    assert not findings.wrong, f"{findings}\nlogs: {tmp_path}"
    assert findings.rows_stored + findings.rows_rejected > 0.95 * ROWS


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_random_faults_to_every_process_neither_lose_nor_double_a_row(tmp_path: Path):
    """Kills, stops and restarts of streamer, broker, collectors and store, drawn from a seed that is printed."""
    seed = int(os.environ.get("SEED") or secrets.randbits(32))
    print(f"SEED={seed}")
    findings = at_random(tmp_path / "run", 300_000, FAULTS, seed, rate=20_000)
    assert not findings.wrong, f"SEED={seed}\n{findings}\nlogs: {tmp_path}"
    assert findings.minutes_rolled > 0


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_random_faults_without_a_broker_neither_lose_nor_double_a_row(tmp_path: Path):
    """A batch that a killed collector held goes to the other one after lease and Z (R7, R30): the end waits for that."""
    seed = int(os.environ.get("SEED") or secrets.randbits(32))
    print(f"SEED={seed}")
    findings = at_random(tmp_path / "run", 100_000, FAULTS // 2, seed, rate=20_000, brokerless=True, calm_s=200.0)
    assert not findings.wrong, f"SEED={seed}\n{findings}\nlogs: {tmp_path}"
    assert findings.rows_stored > 0

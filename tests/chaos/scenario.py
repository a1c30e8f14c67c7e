"""The plot of a chaos run: start all, stream, strike, wait for calm, audit."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

from tests.chaos import journal
from tests.chaos.audit import Findings, audit, audit_rollups
from tests.chaos.contents import is_garbage
from tests.chaos.faults import Fault, draw, strike
from tests.chaos.pipeline import Pipeline
from tests.helpers.waiting import eventually

ROLLUP_SETTLES_S = 3.0
Say = Callable[[str], None]


def one_after_the_other(
    directory: Path, rows: int, *, rate: float, say: Say = print, calm_s: float = 120.0
) -> Findings:
    """Kill a collector, the broker and the store at a quarter, half and three quarters of the rows."""
    with Pipeline(directory, rows=rows, rate=rate) as pipeline:
        pipeline.start()
        for share, whom in ((0.25, "collector-1"), (0.5, "broker"), (0.75, "store")):
            _until_acked(pipeline, int(rows * share), calm_s)
            fault = Fault("kill", whom, 0.0, 0.0)
            say(str(fault))
            strike(pipeline, fault)
        return _settle(pipeline, say, calm_s)


def at_random(
    directory: Path, rows: int, faults: int, seed: int, *, rate: float, collectors: int = 2, brokerless: bool = False,
    say: Say = print, calm_s: float = 120.0,
) -> Findings:  # fmt: skip
    """``faults`` faults drawn from ``seed``; the feeder goes on until the rows are in and the faults are over."""
    rng = random.Random(seed)
    with Pipeline(
        directory, rows=rows, rate=rate, collectors=collectors, endless=True, small_disks=True, brokerless=brokerless
    ) as pipeline:
        names = [program.name for program in pipeline.programs]
        pipeline.start()
        _until_acked(pipeline, 1, calm_s)
        for number in range(1, faults + 1):
            fault = draw(rng, names, list(pipeline.disks))
            say(f"[{number}/{faults}] {fault}")
            strike(pipeline, fault)
        pipeline.enough.touch()
        return _settle(pipeline, say, calm_s, rolled=True)


def _until_acked(pipeline: Pipeline, rows: int, timeout: float) -> None:
    eventually(
        lambda: journal.read(pipeline.journal).acked_rows >= rows, timeout, f"{rows} rows acknowledged", pause=0.2
    )


def _settle(pipeline: Pipeline, say: Say, calm_s: float, *, rolled: bool = False) -> Findings:
    """No more faults: all must come to rest, and then add up. ``rolled``: wait for at least one finished minute."""
    started = time.monotonic()
    pipeline.wait_until_fed(calm_s)
    pipeline.wait_until_drained(calm_s)
    say(f"fed and drained {time.monotonic() - started:.1f} s after the last fault")
    told = journal.read(pipeline.journal)
    acked_garbage = sum(is_garbage(*address) for address in told.acked)
    dead = pipeline.dead_batches(acked_garbage)
    if rolled:
        first_s = min(sent.base_ms for sent in told.sent.values()) // 60_000 * 60
        time.sleep(max(0.0, first_s + 60 + ROLLUP_SETTLES_S + 1 - time.time()))
    # Minutes that were over, with their rows, before this look began; the present one has no bucket yet.
    upto_s = int(time.time() - ROLLUP_SETTLES_S) // 60 * 60
    pipeline.roll_up()
    with pipeline.open_store() as store:
        found = audit(told, store, dead, brokerless=pipeline.brokerless)
        found.wrong += audit_rollups(store, upto_s)
        found.minutes_rolled = int(
            store.query(
                "SELECT uniqExact(bucket) FROM telemetry.samples_1m WHERE bucket < toDateTime({u:UInt32}, 'UTC')",
                {"u": upto_s},
            )[0][0]
        )
        return found

"""``python -m tests.chaos.stalled``: the store stands still for minutes while rows stream. Environment: MINUTES (5),
RATE (100000 rows/s).

Memory of every other process must stay within a tenth of what it was after the first minute, nothing may be lost, and
the backlog must drain fast afterwards. How fast is told beside two baselines of the same run: the same kind of rows
drained by the same processes from a store that was not stopped, and ``bench collector`` (its rows are in order, of
values that repeat, and none is rejected: they cost the store less). Prints one JSON line; ends with 1 where memory grew
or a row is missing.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import psutil

from loadtest.bench.collector import ROWS, collect_s
from loadtest.bench.frame import Settings
from tests.chaos import journal
from tests.chaos.audit import audit
from tests.chaos.contents import is_garbage
from tests.chaos.pipeline import Pipeline
from tests.helpers.waiting import eventually

GROWTH_MAX = 1.1
AGAIN_ROWS_MAX = 15_000_000


def main() -> int:
    minutes = float(os.environ.get("MINUTES") or 5)
    rate = float(os.environ.get("RATE") or 100_000)
    directory = Path(tempfile.mkdtemp(prefix="stalled-"))
    with Pipeline(directory / "run", rows=1, rate=rate, endless=True) as pipeline:
        pipeline.start()
        eventually(lambda: journal.read(pipeline.journal).acked_rows >= 10 * rate, 120, "the first rows")
        pipeline.store.pause()
        time.sleep(60)
        after_a_minute = memory_mb(pipeline)
        time.sleep(max(0.0, minutes - 1) * 60)
        at_the_end = memory_mb(pipeline)
        pipeline.enough.touch()
        pipeline.wait_until_fed(60)
        backlog = pipeline.lag_rows()
        began = time.monotonic()
        pipeline.store.go_on()
        pipeline.wait_until_drained(600)
        seconds = time.monotonic() - began
        never_stopped = drained_rows_per_s(pipeline, min(backlog, AGAIN_ROWS_MAX))
        told = journal.read(pipeline.journal)
        dead = pipeline.dead_batches(sum(is_garbage(*address) for address in told.acked))
        with pipeline.open_store() as store:
            findings = audit(told, store, dead)
    bench_seconds, _ = collect_s(Settings(directory / "bench"), ROWS)
    print(findings, file=sys.stderr)
    grown = [name for name, mb in at_the_end.items() if mb > GROWTH_MAX * after_a_minute[name]]
    line = {
        "minutes": minutes,
        "rows_per_s": rate,
        "rss_mb_after_1_minute": after_a_minute,
        "rss_mb_at_the_end": at_the_end,
        "backlog_rows": backlog,
        "drained_rows_per_s": round(backlog / seconds),
        "never_stopped_rows_per_s": round(never_stopped),
        "bench_collector_rows_per_s": round(ROWS / bench_seconds),
        "wrong": len(findings.wrong),
        "grown": grown,
    }
    print(json.dumps(line))
    if findings.wrong or grown:
        print(f"FAILED; logs: {directory}", file=sys.stderr)
        return 1
    shutil.rmtree(directory)
    return 0


def drained_rows_per_s(pipeline: Pipeline, rows: int) -> float:
    """Rows a second of a backlog that has gathered while the collectors were away, from the first range settled."""
    for collector in pipeline.collectors:
        collector.terminate()
    pipeline.feed(rows, 120)
    backlog = pipeline.lag_rows()
    for collector in pipeline.collectors:
        collector.start()
    eventually(lambda: pipeline.lag_rows() < backlog, 60, "the first range is settled", pause=0.02)
    began, rest = time.monotonic(), pipeline.lag_rows()
    pipeline.wait_until_drained(600)
    return rest / (time.monotonic() - began)


def memory_mb(pipeline: Pipeline) -> dict[str, float]:
    """Resident memory by process, without the one that stands still, and the feeder with its list for the audit."""
    programs = [p for p in pipeline.programs if p not in (pipeline.store, pipeline.feeder) and p.popen is not None]
    return {p.name: round(psutil.Process(p.popen.pid).memory_info().rss / 1e6, 1) for p in programs if p.popen}


if __name__ == "__main__":
    sys.exit(main())

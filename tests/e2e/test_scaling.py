"""Elastic collectors: one, four, one again, under load, with real processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos import journal
from tests.chaos.audit import audit
from tests.chaos.pipeline import Pipeline
from tests.helpers.waiting import eventually

ROWS = 400_000


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_collectors_from_one_to_four_and_back_neither_lose_nor_double_a_row_and_the_lag_follows(tmp_path: Path) -> None:
    """Scale-in is a SIGTERM: the collector ends with 0 after it has given back or finished what it held."""
    with Pipeline(tmp_path / "run", rows=ROWS, rate=40_000, collectors=4) as pipeline:
        first, *others = pipeline.collectors
        for program in (pipeline.store, pipeline.broker, first, pipeline.rollup, pipeline.feeder):
            program.start()

        def members() -> int:
            return pipeline.broker_stats()["topics"]["gpu-telemetry"]["groups"]["clickhouse"]["members"]

        def acked(rows: int) -> bool:
            return journal.read(pipeline.journal).acked_rows >= rows

        eventually(lambda: acked(ROWS // 4), 90, "a quarter of the rows is in")
        for program in others:
            program.start()
        eventually(lambda: members() == 4, 60, "four collectors take part")
        eventually(lambda: acked(ROWS // 2), 90, "half of the rows is in")
        for program in others:
            assert program.terminate() == 0
        assert members() == 1
        pipeline.wait_until_fed(120)
        eventually(lambda: pipeline.lag_rows() == 0, 120, "the lag has followed down to nothing", pause=0.2)
        with pipeline.open_store() as store:
            findings = audit(journal.read(pipeline.journal), store, [])
    assert findings.rows_stored + findings.rows_rejected > 0.95 * ROWS
    # The feeder mixes in batches that cannot be decoded: they are dead letters, and no part of this test.
    assert not [line for line in findings.wrong if "dead" not in line], str(findings)

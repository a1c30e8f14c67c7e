"""Paging by cursor costs the same at any depth: told by the rows that the engine reads, which no slow machine changes."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from clickhouse import insert
from clickhouse.client import StoreAddress, StorePool, connect
from clickhouse.migrate import migrate
from clickhouse.queries import samples
from clickhouse.queries.samples import Filter
from clickhouse.schema import Flavour
from telemetry.batch import Device

DATABASE = "deep"
METRICS = [f"METRIC_{number}" for number in range(10)]
SECONDS = 20_000
PAGE = 10
DEEP = 10_000
START_MS = int(time.time() // 86_400 - 2) * 86_400_000 + 6 * 3_600_000
"""Within one day, hence one partition, at whatever time of day this runs."""


class CountingPool(StorePool):
    """Counts the rows that the engine says it has read."""

    rows_read = 0

    def _ask(self, do: Any) -> Any:
        result = super()._ask(do)
        self.rows_read += int(getattr(result, "summary", {}).get("read_rows", 0))
        return result


def fill(url: str, device: Device) -> None:
    with connect(url, database=DATABASE) as conn:
        list(migrate(conn, Flavour(database=DATABASE)))
        n = SECONDS * len(METRICS)
        whole = insert.SampleColumns(
            gpu=np.full(n, device.gpu_key, np.uint64),
            labels=np.full(n, device.labels_key, np.uint64),
            metric_code=np.tile(np.arange(len(METRICS), dtype=np.uint16), SECONDS),
            metric_names=METRICS,
            ts_ms=START_MS + np.repeat(np.arange(SECONDS), len(METRICS)) * 1000,
            value=np.arange(n, dtype=float),
            session=np.full(n, 7, np.uint64),
            seq=np.full(n, 1, np.uint64),
        )
        for day, part in whole.by_day():
            insert.insert_samples(conn, part, token=f"deep-{day}")


def test_page_ten_thousand_by_cursor_reads_as_many_rows_as_page_one(store_url: str) -> None:
    device = Device(uuid="GPU-deep")
    fill(store_url, device)
    wanted = Filter((device.gpu_key,))
    with CountingPool(StoreAddress(url=store_url, database=DATABASE)) as store:
        read = []
        for page in (1, DEEP):
            before, _ = samples.page(store, wanted, order="asc", limit=PAGE, offset=(page - 1) * PAGE)
            store.rows_read = 0
            rows = samples.page_after(store, wanted, samples.cursor_after(before, None), order="asc", limit=PAGE)
            assert [row.value for row in rows] == [float(page * PAGE + number) for number in range(PAGE)]
            read.append(store.rows_read)
    first, deep = read
    assert 0 < deep <= 2 * first, f"page 1 read {first} rows, page {DEEP:,} read {deep}"
    assert deep < SECONDS * len(METRICS)

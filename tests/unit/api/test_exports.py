"""Exports of any length: one window of rows is asked for, sent, and only then the next."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pytest

from api.formats import SCHEMA
from clickhouse.queries.export import WINDOW_ROWS
from tests.helpers.api import app_on
from tests.helpers.api_fakes import RecordingStore

MINUTES = 200
START_S = 1_752_840_000
ROWS_A_MINUTE = WINDOW_ROWS * 4 // 5


class LongStore(RecordingStore):
    """200 minutes of 800,000 rows each, none of which is made before it is asked for."""

    def __init__(self) -> None:
        counts = [((START_S + 60 * minute) * 1000, ROWS_A_MINUTE) for minute in range(MINUTES)]
        super().__init__(**{"GROUP BY t ORDER BY t": counts})
        self.windows = 0

    @contextmanager
    def open_stream(self, sql: str, params: Any, settings: Any, output_format: str) -> Iterator[io.BytesIO]:
        self.windows += 1
        yield io.BytesIO(_arrow() if output_format == "ArrowStream" else b"row\n" * 1000)


def _arrow() -> bytes:
    one = {"timestamp": START_S * 1000, "gpu_id": "g", "metric_name": "m", "value": 1.0, "device": "", "hostname": ""}
    table = pa.Table.from_pylist([one], SCHEMA)
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, SCHEMA) as writer:
        writer.write_table(table)
    return sink.getvalue()


@pytest.mark.parametrize("name", ["csv", "ndjson", "arrow", "parquet"])
def test_an_export_never_holds_more_than_the_window_it_sends(name: str) -> None:
    store = LongStore()
    client = app_on(store).test_client()
    span = f"start_time={START_S}&end_time={START_S + 60 * MINUTES - 1}"
    answer = client.get(f"/api/v1/telemetry?format={name}&{span}", buffered=False)
    assert answer.status_code == 200
    sent = 0
    for piece in answer.response:
        sent += bool(piece)
        # The window that is being sent, and for the text formats the header before it.
        assert store.windows <= sent
    assert store.windows == MINUTES

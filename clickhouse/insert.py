"""Writing: arrays in, one Native block out, one INSERT.

Blocks are made here and sent by :class:`clickhouse.client.StoreConnection`, which never repeats. Whoever calls
decides when to repeat (GUARANTEES R12-R15).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np

from clickhouse import native
from clickhouse.client import InsertSummary, StoreConnection
from clickhouse.native import LOW_CARDINALITY, Coded, Column, Keys
from clickhouse.schema import DEVICE_COLUMNS, REJECT_COLUMNS, SAMPLE_COLUMNS
from telemetry.batch import Device

MS_A_DAY: Final = 86_400_000
_TIME: Final = "DateTime64(3, 'UTC')"
_SERIES_MAX: Final = 1 << 16
"""NumPy sorts 16 bits by radix, in 5 ns a row, and wider numbers in ten times that."""


class SampleColumns(NamedTuple):
    """Rows for ``samples``: columns of one length. The four of keys (uint64) are given row by row, or as codes."""

    gpu: np.ndarray | Keys
    """:attr:`telemetry.batch.Device.gpu_key`."""
    labels: np.ndarray | Keys
    """:attr:`telemetry.batch.Device.labels_key`."""
    metric_code: np.ndarray
    """Unsigned integers into ``metric_names``."""
    metric_names: Sequence[str]
    ts_ms: np.ndarray
    """int64, milliseconds since the epoch, UTC."""
    value: np.ndarray
    """float64, in the metric's canonical unit."""
    session: np.ndarray | Keys
    """With ``seq`` the address of the batch that the row came in (R1)."""
    seq: np.ndarray | Keys

    @property
    def rows(self) -> int:
        return len(self.value)

    def take(self, index: np.ndarray) -> SampleColumns:
        """Some of the rows, by mask or index."""
        return SampleColumns(
            gpu=self.gpu[index],
            labels=self.labels[index],
            metric_code=self.metric_code[index],
            metric_names=self.metric_names,
            ts_ms=self.ts_ms[index],
            value=self.value[index],
            session=self.session[index],
            seq=self.seq[index],
        )

    def by_day(self) -> Iterator[tuple[int, SampleColumns]]:
        """The rows of each day (since the epoch), ascending, in their order: what one INSERT may hold (R15)."""
        first, last = int(self.ts_ms.min()) // MS_A_DAY, int(self.ts_ms.max()) // MS_A_DAY
        if first == last:
            yield first, self
            return
        day = self.ts_ms // MS_A_DAY
        for one in np.unique(day).tolist():
            yield one, self.take(day == one)


class RejectColumns(NamedTuple):
    """Rows for ``rejects``: arrays of one length, texts as codes."""

    appended_ms: np.ndarray
    """int64: when the row's batch was appended to the log, milliseconds since the epoch."""
    reason: Coded
    detail: Coded
    log: Coded
    """The log's uuid in hex, "" without a broker."""
    partition: np.ndarray
    offset: np.ndarray
    session: np.ndarray
    seq: np.ndarray
    row: np.ndarray
    """uint32: the row's place in its batch."""
    gpu_id: Coded
    hostname: Coded
    metric: Coded
    timestamp_ns: np.ndarray
    """int64, as it came: it may be the very reason."""
    value: np.ndarray

    @property
    def rows(self) -> int:
        return len(self.row)


def in_table_order(columns: SampleColumns) -> SampleColumns:
    """The same rows by (gpu, metric), rows of a series in their order.

    Sorting codes of 16 bits here costs a third of what it spares the server. Columns of more series than that are
    returned as they are: the order is never a promise.
    """
    gpu, names = columns.gpu, columns.metric_names
    if not isinstance(gpu, Keys) or len(gpu.values) * len(names) > _SERIES_MAX:
        return columns
    _, gpu_rank = np.unique(gpu.values, return_inverse=True)
    _, metric_rank = np.unique(np.array(names), return_inverse=True)
    series = (gpu_rank * len(names)).astype(np.uint16)[gpu.codes] + metric_rank.astype(np.uint16)[columns.metric_code]
    return columns.take(np.argsort(series, kind="stable"))


def sample_block(columns: SampleColumns) -> bytes:
    """One Native block. Raises ``ValueError`` for no rows or rows of several days (R15)."""
    if not columns.rows:
        raise ValueError("a block without rows is not worth an insert")
    first, last = int(columns.ts_ms.min()), int(columns.ts_ms.max())
    if first // MS_A_DAY != last // MS_A_DAY:
        raise ValueError("rows of several days in one insert would be several parts: split them with by_day() (R15)")
    return native.block(
        columns.rows,
        [
            Column("gpu", *native.keys(columns.gpu)),
            Column("metric", LOW_CARDINALITY, native.low_cardinality(Coded(columns.metric_code, columns.metric_names))),
            Column("ts", _TIME, native.numbers(_TIME, columns.ts_ms)),
            Column("value", "Float64", native.numbers("Float64", columns.value)),
            Column("labels", *native.keys(columns.labels)),
            Column("_session", *native.keys(columns.session)),
            Column("_seq", *native.keys(columns.seq)),
        ],
    )


def insert_samples(conn: StoreConnection, columns: SampleColumns, *, token: str, query_id: str = "") -> InsertSummary:
    """Insert rows of one day as one block under ``token``. Raises what :meth:`StoreConnection.insert` raises."""
    return conn.insert("samples", sample_block(columns), SAMPLE_COLUMNS, token=token, query_id=query_id)


def device_block(devices: Sequence[Device], seen_ms: int) -> bytes:
    """Label sets as a Native block; an object a device, not a row."""

    def texts(name: str, kind: str = "String") -> Column:
        values = [str(getattr(device, name)) for device in devices]
        if kind != LOW_CARDINALITY:
            return Column(name, kind, native.strings(values))
        distinct = {value: code for code, value in enumerate(dict.fromkeys(values))}
        codes = np.array([distinct[value] for value in values], dtype=np.uint32)
        return Column(name, kind, native.low_cardinality(Coded(codes, list(distinct))))

    rows = len(devices)
    gpu = np.array([device.gpu_key for device in devices], dtype="<u8")
    labels = np.array([device.labels_key for device in devices], dtype="<u8")
    return native.block(
        rows,
        [
            Column("gpu", "UInt64", native.numbers("UInt64", gpu)),
            Column("labels", "UInt64", native.numbers("UInt64", labels)),
            texts("gpu_id"),
            texts("uuid"),
            *(texts(name, LOW_CARDINALITY) for name in ("hostname", "gpu_index", "device", "model", "cluster")),
            texts("container"),
            texts("pod"),
            texts("namespace", LOW_CARDINALITY),
            texts("job"),
            Column("extra", "Map(String, String)", native.maps([dict(device.labels) for device in devices])),
            Column("seen", _TIME, native.numbers(_TIME, np.full(rows, seen_ms, dtype="<i8"))),
        ],
    )


def insert_devices(conn: StoreConnection, devices: Iterable[Device]) -> int:
    """Make label sets known before the first rows that name them. Repeats are harmless. Returns how many were sent."""
    distinct = list(dict.fromkeys(device for device in devices if device.gpu_id))
    if distinct:
        conn.insert("devices", device_block(distinct, time.time_ns() // 1_000_000), DEVICE_COLUMNS)
    return len(distinct)


def reject_block(columns: RejectColumns) -> bytes:
    """One Native block; by day of append (R15) as :func:`sample_block` is by day of the row."""
    if not columns.rows:
        raise ValueError("a block without rows is not worth an insert")
    first, last = int(columns.appended_ms.min()), int(columns.appended_ms.max())
    if first // MS_A_DAY != last // MS_A_DAY:
        raise ValueError("rejects of several days of append in one insert would be several parts: split them (R15)")

    def coded(name: str, column: Coded) -> Column:
        return Column(name, LOW_CARDINALITY, native.low_cardinality(column))

    def counted(name: str, kind: str, values: np.ndarray) -> Column:
        return Column(name, kind, native.numbers(kind, values))

    return native.block(
        columns.rows,
        [
            counted("appended", _TIME, columns.appended_ms),
            coded("reason", columns.reason),
            coded("detail", columns.detail),
            coded("log", columns.log),
            counted("partition", "UInt32", columns.partition),
            counted("offset", "UInt64", columns.offset),
            counted("_session", "UInt64", columns.session),
            counted("_seq", "UInt64", columns.seq),
            counted("row", "UInt32", columns.row),
            coded("gpu_id", columns.gpu_id),
            coded("hostname", columns.hostname),
            coded("metric", columns.metric),
            counted("timestamp_ns", "Int64", columns.timestamp_ns),
            counted("value", "Float64", columns.value),
        ],
    )


def insert_rejects(conn: StoreConnection, columns: RejectColumns, *, token: str, query_id: str = "") -> InsertSummary:
    """Insert refused rows by the same once-only insert as the others (R17)."""
    return conn.insert("rejects", reject_block(columns), REJECT_COLUMNS, token=token, query_id=query_id)

"""Deliveries for tests of the collector: batches from plain rows, ranges of batches, and what should come of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from telemetry.batch import Device, DictionaryEncoder, encode

RECORD = np.dtype(
    [("offset", "<u8"), ("session", "<u8"), ("seq", "<u8"), ("rows", "<u4"), ("time_ms", "<u8"), ("length", "<u4")]
)
NOON_MS = 1_763_640_000_000
"""2025-11-20 12:00:00 UTC."""


@dataclass(frozen=True)
class Row:
    ts_ms: int
    device: Device
    metric: str
    value: float


def gpu(n: int, **attributes: str) -> Device:
    return Device(uuid=f"GPU-{n:04d}", hostname=f"host-{n // 8}", gpu_index=str(n % 8), **attributes)


def batch_of(rows: Sequence[Row], session: int, seq: int, compression: str = "lz4") -> bytes:
    """Encode rows, with a dictionary in order of appearance."""
    devices = list(dict.fromkeys(row.device for row in rows))
    metrics = list(dict.fromkeys(row.metric for row in rows))
    return encode(
        session,
        seq,
        np.array([row.ts_ms * 1_000_000 for row in rows], dtype=np.int64),
        np.array([devices.index(row.device) for row in rows], dtype=np.uint16),
        np.array([metrics.index(row.metric) for row in rows], dtype=np.uint16),
        np.array([row.value for row in rows], dtype=np.float64),
        DictionaryEncoder(compression).encode(devices, metrics),
        created_ns=0,
        compression=compression,
    )


def simple_rows(
    count: int, *, start_ms: int = NOON_MS, gpus: int = 4, metric: str = "DCGM_FI_DEV_GPU_TEMP"
) -> list[Row]:
    return [Row(start_ms + i, gpu(i % gpus), metric, float(i)) for i in range(count)]


@dataclass
class FakeDelivery:
    """What a broker's delivery looks like to the collector."""

    bodies: list[bytes]
    addresses: list[tuple[int, int]]
    time_ms: list[int]
    first: int = 0
    topic: str = "gpu-telemetry"
    log_uuid: str = "00112233445566778899aabbccddeeff"
    seal_epoch: int = 1
    partition: int = 0
    range_id: int = 1
    attempt: int = 1
    maybe_repeat: bool = False
    rows: int = 0
    records: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.records = np.zeros(len(self.bodies), dtype=RECORD)
        self.records["offset"] = np.arange(self.first, self.first + len(self.bodies))
        self.records["session"] = [session for session, _ in self.addresses]
        self.records["seq"] = [seq for _, seq in self.addresses]
        self.records["time_ms"] = self.time_ms
        self.records["length"] = [len(body) for body in self.bodies]

    @property
    def last(self) -> int:
        return self.first + len(self.bodies) - 1

    def payloads(self) -> list[memoryview]:
        return [memoryview(body) for body in self.bodies]


def delivery_of(
    batches: Sequence[tuple[int, int, Sequence[Row]]], *, appended_ms: int = NOON_MS + 5_000, **fields: object
) -> FakeDelivery:
    """A range that holds these (session, seq, rows), all appended at one time."""
    return FakeDelivery(
        bodies=[batch_of(rows, session, seq) for session, seq, rows in batches],
        addresses=[(session, seq) for session, seq, _ in batches],
        time_ms=[appended_ms] * len(batches),
        rows=sum(len(rows) for _, _, rows in batches),
        **fields,  # type: ignore[arg-type]
    )

"""Columns to batches: codes of a reader become the small dictionary of each batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np

from producers.columns import Columns
from producers.identities import Identities
from telemetry import tracing
from telemetry.batch import ROWS_MAX, DictionaryEncoder, EncodedDictionary, encode

DICTIONARIES_KEPT = 64
"""Dictionaries remembered by the codes in them: a loop over a file and a fleet's next second meet the same again."""


def batch_parts(rows: int, batch_rows: int) -> list[tuple[int, int]]:
    """Even parts of at most ``batch_rows`` (and ROWS_MAX) of ``rows`` rows, as (start, end); a pure function."""
    count = -(-rows // min(batch_rows, ROWS_MAX))
    return [(rows * i // count, rows * (i + 1) // count) for i in range(count)]


class Batcher:
    """Packs columns whose codes are those of ``identities``."""

    def __init__(
        self, identities: Identities, compression: str = "lz4", clock_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self._identities = identities
        self._compression = compression
        self._clock_ns = clock_ns
        self._encoder = DictionaryEncoder(compression, DICTIONARIES_KEPT)

    def pack(self, columns: Columns, timestamp_ns: np.ndarray, session: int, seq: int) -> bytes:
        """One batch of 1 to ROWS_MAX rows."""
        device_code, devices = _local_codes(columns.device, len(self._identities.devices))
        metric_code, metrics = _local_codes(columns.metric, len(self._identities.metrics))
        return encode(
            session,
            seq,
            timestamp_ns,
            device_code,
            metric_code,
            columns.value,
            self._dictionary(devices, metrics),
            created_ns=self._clock_ns(),
            compression=self._compression,
            trace=tracing.publishing(session, seq, columns.rows),
        )

    def _dictionary(self, devices: np.ndarray, metrics: np.ndarray) -> EncodedDictionary:
        identities = self._identities
        key = (identities.generation, devices.tobytes(), metrics.tobytes())
        return self._encoder.encode(_Picked(identities.devices, devices), _Picked(identities.metrics, metrics), key)


class _Picked:
    """Items of a list by an index array; made into a list only where the dictionary is new."""

    def __init__(self, items: list, picked: np.ndarray) -> None:
        self._items = items
        self._picked = picked

    def __len__(self) -> int:
        return len(self._picked)

    def __iter__(self) -> Iterator:
        return (self._items[i] for i in self._picked.tolist())


def _local_codes(codes: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(uint16 codes from 0 without gaps, the codes they stand for in rising order)."""
    present = np.zeros(size, dtype=bool)
    present[codes] = True
    picked = np.flatnonzero(present)
    table = np.zeros(size, dtype=np.uint16)
    table[picked] = np.arange(len(picked), dtype=np.uint16)
    return table[codes], picked

"""The latest value of every metric of every GPU, kept in memory and renewed by one question for all who ask.

Asked for one GPU, the store reads a granule of every metric and spends ten milliseconds of CPU; a dashboard asks for
many GPUs every second. Here one question a second brings what is new (parts of the table that hold nothing of the last
minute are not read), and none while nothing was inserted.

Answers are at most ``AGE_SECONDS`` old, and nobody waits for a renewal: what is not here is asked of the store. That is
a GPU whose newest row is missing (it was silent for long, or catches up), the first request after a pause, and
everything while a renewal costs more than it saves. A metric that arrives over a minute later than its GPU's others is
seen when the whole hour is read again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa

from clickhouse.errors import StoreError
from clickhouse.queries import samples
from clickhouse.queries.inventory import Gpu

log = logging.getLogger(__name__)

AGE_SECONDS: Final = 1.0
RENEW_SECONDS: Final = 0.5
"""From this age on the next is taken, while the present one is still given."""
COST_SHARE: Final = 0.1
"""No more than this part of the time goes into renewals."""
LOOK_BACK_MS: Final = 3_600_000
"""A metric's latest value is looked for in the hour before its GPU was last seen."""
OVERLAP_MS: Final = 60_000
AGAIN_SECONDS: Final = 600.0
"""The whole look back is read again after this, for what came late."""

Row = tuple[int, str, int, float]
"""(gpu, metric, time in ms, value)."""


class Table:
    """Latest values as columns, sorted by GPU. Never changed."""

    def __init__(
        self, names: list[str], gpu: np.ndarray, code: np.ndarray, ts_ms: np.ndarray, value: np.ndarray
    ) -> None:
        """Rows in any order; of each GPU and metric the newest is kept. ``code`` is a metric's place in ``names``."""
        order = np.lexsort((ts_ms, code, gpu))
        gpu, code = gpu[order], code[order]
        last = np.append((gpu[1:] != gpu[:-1]) | (code[1:] != code[:-1]), True)[: len(gpu)]
        self.names = names
        self.columns = (gpu[last], code[last], ts_ms[order][last], value[order][last])

    def rows(self, gpu: int) -> list[Row]:
        """One GPU's, by metric."""
        keys, codes, times, values = self.columns
        start, stop = np.searchsorted(keys, np.uint64(gpu), "left"), np.searchsorted(keys, np.uint64(gpu), "right")
        part = slice(int(start), int(stop))
        told = zip(codes[part].tolist(), times[part].tolist(), values[part].tolist(), strict=True)
        return sorted((gpu, self.names[code], ts_ms, value) for code, ts_ms, value in told)

    def of_metrics(self, metrics: Sequence[str], since_ms: int) -> list[Row]:
        """These metrics of every GPU that reported them since then."""
        _, codes, times, _ = self.columns
        wanted = [code for code, name in enumerate(self.names) if name in metrics]
        chosen = np.isin(codes, wanted) & (times >= since_ms)
        told = zip(*(column[chosen].tolist() for column in self.columns), strict=True)
        return [(gpu, self.names[code], ts_ms, value) for gpu, code, ts_ms, value in told]


class Latest:
    """The newest :class:`Table`, for many threads."""

    def __init__(self, store: Any, settings: Any, clock: Callable[[], float] = time.monotonic) -> None:
        """``settings`` go with every question."""
        self._store = store
        self._settings = settings
        self._clock = clock
        self._codes: dict[str, int] = {}
        self._table: Table | None = None
        self._version: tuple[int, int] | None = None
        self._taken = self._whole_taken = -1e9
        self._cost_seconds = 0.0
        self._renewing = threading.Lock()

    def rows(self, gpus: Sequence[Gpu]) -> list[Row]:
        """The latest values of these GPUs, by GPU and metric. Raises StoreError."""
        table = self._fresh_table()
        found: list[Row] = []
        missing: list[Gpu] = []
        for gpu in gpus:
            rows = table.rows(gpu.key) if table is not None else []
            if rows and max(row[2] for row in rows) >= gpu.last_seen_ms:
                found += [row for row in rows if row[2] >= gpu.last_seen_ms - LOOK_BACK_MS]
            else:
                missing.append(gpu)
        if missing:
            since_ms = max(gpu.last_seen_ms for gpu in missing) - LOOK_BACK_MS
            keys = [gpu.key for gpu in missing]
            found += samples.latest(self._store, keys, since_ms=since_ms, settings=self._settings)
        return found

    def of_metrics(self, metrics: Sequence[str], since_ms: int) -> list[Row]:
        """The latest values of these metrics of every GPU that reported them since then. Raises StoreError."""
        table = self._fresh_table()
        if table is not None:
            return table.of_metrics(metrics, since_ms)
        return samples.latest(self._store, (), since_ms=since_ms, metrics=metrics, settings=self._settings)

    def start(self) -> None:
        """Read the whole look back before anybody asks: under load it takes long, and each GPU is asked for by itself.

        Returns at once. Where the store is away, the first who asks begins it.
        """
        if self._renewing.acquire(blocking=False):
            threading.Thread(target=self._renew_behind, name="latest", daemon=True).start()

    def _fresh_table(self) -> Table | None:
        age = self._clock() - self._taken
        if age > RENEW_SECONDS and age * COST_SHARE >= self._cost_seconds:
            self.start()
        return self._table if age <= AGE_SECONDS else None

    def _renew_behind(self) -> None:
        try:
            self.renew()
        except StoreError:
            pass  # Whoever asks the store itself is told.
        except Exception:
            log.exception("the latest values were not renewed")
        finally:
            self._renewing.release()

    def renew(self) -> None:
        """Take what is new; one thread at a time. Raises StoreError."""
        began = self._clock()
        version = samples.version(self._store, self._settings)
        whole = self._table is None or began - self._whole_taken > AGAIN_SECONDS
        if whole or version != self._version:
            since_ms = version[1] - (LOOK_BACK_MS if whole else OVERLAP_MS)
            self._take(samples.latest_of_all(self._store, since_ms=since_ms, settings=self._settings))
            self._version = version
        if whole:
            self._whole_taken = began
        else:
            self._cost_seconds = self._clock() - began
        self._taken = began

    def _take(self, found: pa.Table) -> None:
        metric = found.column("metric").combine_chunks().dictionary_encode()
        names = metric.dictionary.to_pylist()
        codes = np.array([self._codes.setdefault(name, len(self._codes)) for name in names], dtype=np.int32)
        columns = (
            found.column("gpu").to_numpy().astype(np.uint64),
            codes[metric.indices.to_numpy()] if names else codes,
            found.column("t").to_numpy().astype(np.int64),
            found.column("value").to_numpy().astype(np.float64),
        )
        if self._table is not None:
            columns = tuple(np.concatenate(pair) for pair in zip(self._table.columns, columns, strict=True))
        self._table = Table(list(self._codes), *columns)

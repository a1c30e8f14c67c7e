"""The GPUs as the API knows them: one snapshot in memory, taken from the store and renewed as it ages.

A list of 10,000 GPUs changes slowly and is asked for all the time: filtering, sorting and paging it in memory costs
microseconds, asking the store each time would cost a scan. A snapshot is at most ``fresh_seconds`` old when it is
cheap to take, and is served up to ``stale_seconds`` old while one thread takes the next. Taking it reads the newest
rows alone, and none while nothing was inserted.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final

from api.errors import UnknownGpu
from api.times import format_ms
from clickhouse.errors import StoreError
from clickhouse.queries import inventory, samples
from clickhouse.queries.inventory import Gpu, LabelSet

ACTIVE_MS: Final = 60_000
LOST_MS: Final = 3_600_000

OVERLAP_MS: Final = 600_000
"""How far behind the newest row a renewal looks; what comes later than that is seen when everything is read again."""
AGAIN_SECONDS: Final = 600.0

LABEL_SETS_MAX: Final = 200_000
"""Label sets remembered: 200,000 x about 500 bytes = 100 MB at the very most, usually a few MB."""


def status(last_seen_ms: int, now_ms: int) -> str:
    """``active`` (seen within 60 s), ``stale``, or ``lost`` (over 1 h)."""
    age = now_ms - last_seen_ms
    return "active" if age <= ACTIVE_MS else "stale" if age <= LOST_MS else "lost"


@dataclass(frozen=True)
class Snapshot:
    """All GPUs at one moment. ``documents`` are the GPUs as the API tells them, without their status."""

    taken: float
    gpus: dict[str, Gpu]
    documents: dict[str, dict[str, Any]]
    by_key: dict[int, Gpu] = field(default_factory=dict)
    orders: dict[str, list[str]] = field(default_factory=dict)
    """Ids in the orders that were asked for so far."""


class Directory:
    """The newest snapshot, for many threads."""

    def __init__(
        self,
        store: Any,
        *,
        fresh_seconds: float = 1.0,
        stale_seconds: float = 15.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._fresh = fresh_seconds
        self._stale = stale_seconds
        self._clock = clock
        self._snapshot: Snapshot | None = None
        self._version = (0, 0)
        self._whole_taken = 0.0
        self._cost_seconds = 0.0
        self._lock = threading.Lock()
        self._renewing = threading.Lock()
        self._labels: OrderedDict[int, LabelSet] = OrderedDict()

    def now_ms(self) -> int:
        return int(self._clock() * 1000)

    def snapshot(self, *, fresh: bool = False) -> Snapshot:
        """All GPUs; at most the last second's if that is cheap. ``fresh`` waits for a new one if it is older.

        Raises StoreError if the store is away and there is no snapshot, or only one that is too old.
        """
        found = self._snapshot
        age = self._clock() - found.taken if found else 0.0
        # A snapshot that took 300 ms is renewed every 3 s: never more than a tenth of the time goes into it.
        if found and age <= max(self._fresh, 10 * self._cost_seconds) and not (fresh and age > self._fresh):
            return found
        if found and age <= self._stale and not fresh:
            self._renew_behind()
            return found
        with self._lock:
            found = self._snapshot
            if found and self._clock() - found.taken <= self._fresh:
                return found
            return self._take()

    def _renew_behind(self) -> None:
        if not self._renewing.acquire(blocking=False):
            return

        def renew() -> None:
            try:
                with self._lock:
                    self._take()
            except StoreError:
                pass  # Whoever needs it once it is too old is told.
            finally:
                self._renewing.release()

        threading.Thread(target=renew, name="directory", daemon=True).start()

    def _take(self) -> Snapshot:
        began = time.monotonic()
        taken = self._clock()
        before = self._snapshot
        version = samples.version(self._store)
        if before is not None and version == self._version:
            # No row came or went: nothing to look at.
            self._snapshot = found = replace(before, taken=taken)
            return found
        whole = before is None or taken - self._whole_taken > AGAIN_SECONDS
        known = before.gpus.values() if before is not None and not whole else ()
        rows = inventory.gpus(self._store, known=known, since_ms=version[1] - OVERLAP_MS)
        if whole:
            self._whole_taken = taken
        self._version = version
        gpus = {gpu.gpu_id: gpu for gpu in rows if gpu.gpu_id}
        documents = {gpu.gpu_id: _document(gpu) for gpu in gpus.values()}
        # What most samples stand under: it need not be asked for GPU by GPU.
        self._remember({gpu.labels: LabelSet.of(gpu) for gpu in gpus.values() if gpu.labels not in self._labels})
        self._snapshot = found = Snapshot(taken, gpus, documents, {gpu.key: gpu for gpu in gpus.values()})
        self._cost_seconds = time.monotonic() - began
        return found

    def gpu(self, gpu_id: str) -> Gpu:
        """The GPU of this id; :class:`UnknownGpu` (404) if it was never seen, by a fresh look."""
        found = self.snapshot().gpus.get(gpu_id) or self.snapshot(fresh=True).gpus.get(gpu_id)
        if found is None:
            raise UnknownGpu(gpu_id)
        return found

    def labels(self, pairs: Iterable[tuple[int, int]]) -> dict[int, LabelSet]:
        """What these (gpu, labels) keys stand for; keys that nobody told yet are left out."""
        cache = self._labels
        pairs = set(pairs)
        missing = [pair for pair in pairs if pair[1] not in cache]
        if missing:
            self._remember(inventory.label_sets(self._store, missing))
        return {labels: cache[labels] for _, labels in pairs if labels in cache}

    def _remember(self, found: dict[int, LabelSet]) -> None:
        self._labels.update(found)
        while len(self._labels) > LABEL_SETS_MAX:
            self._labels.popitem(last=False)

    def ids(self, snapshot: Snapshot, sort: str) -> Iterator[str]:
        """Ids of a snapshot, ordered by a field of the documents, then by id; "-" before it turns it round."""
        order = snapshot.orders.get(sort)
        if order is None:
            name = sort.lstrip("-")
            documents = snapshot.documents
            if name == "gpu_index":
                order = sorted(documents, key=lambda i: (_index(documents[i]["gpu_index"]), i))
            elif name == "hostname":
                order = sorted(
                    documents, key=lambda i: (documents[i]["hostname"], _index(documents[i]["gpu_index"]), i)
                )
            else:
                order = sorted(documents, key=lambda i: (documents[i][name], i))
            if sort.startswith("-"):
                order.reverse()
            snapshot.orders[sort] = order
        return iter(order)


def _index(text: str) -> tuple[int, str]:
    return (int(text), "") if text.isdigit() else (1 << 30, text)


def _document(gpu: Gpu) -> dict[str, Any]:
    return {
        "id": gpu.gpu_id,
        "device": gpu.device,
        "gpu_index": gpu.gpu_index,
        "model_name": gpu.model,
        "hostname": gpu.hostname,
        "cluster": gpu.cluster,
        "first_seen": format_ms(gpu.first_seen_ms),
        "last_seen": format_ms(gpu.last_seen_ms),
    }

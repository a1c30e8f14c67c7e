"""Which GPUs there are: their latest labels, and when they were first and last heard of."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol


class Reader(Protocol):
    """What these questions need of :class:`clickhouse.client.StorePool`."""

    def query(self, sql: str, params: Any = None, settings: Any = None) -> list[tuple[Any, ...]]: ...


class ArrowReader(Reader, Protocol):
    """And what questions with many rows need."""

    def query_arrow(self, sql: str, params: Any = None, settings: Any = None) -> Any: ...


class NumbersReader(Reader, Protocol):
    """And what series need."""

    def query_numbers(self, sql: str, params: Any, settings: Any, row: Any) -> Any: ...


class CountingReader(Reader, Protocol):
    """And what pages with a total need."""

    def query_counted(
        self, sql: str, params: Any = None, settings: Any = None
    ) -> tuple[list[tuple[Any, ...]], int]: ...


class Gpu(NamedTuple):
    """A GPU by its newest label set. Times are milliseconds since the epoch; 0 = no sample is stored any more."""

    key: int
    gpu_id: str
    uuid: str
    hostname: str
    gpu_index: str
    device: str
    model: str
    cluster: str
    container: str
    pod: str
    namespace: str
    job: str
    extra: dict[str, str]
    labels: int
    """Key of this label set."""
    first_seen_ms: int
    last_seen_ms: int


_DEVICES = """
SELECT gpu, newest.1, newest.2, newest.3, newest.4, newest.5, newest.6, newest.7, newest.8, newest.9, newest.10,
       newest.11, newest.12, newest.13
FROM (SELECT gpu, argMax((gpu_id, uuid, hostname, gpu_index, device, model, cluster, container, pod, namespace, job,
                          extra, labels), seen) AS newest
      FROM devices GROUP BY gpu)
"""

# What the rollup knows, and raw rows from where it ends; without a rollup, all raw rows.
_SEEN = """
SELECT gpu, toUnixTimestamp64Milli(min(a)), toUnixTimestamp64Milli(max(b)) FROM (
    SELECT gpu, min(first) AS a, max(last) AS b FROM gpu_seen GROUP BY gpu
    UNION ALL
    SELECT gpu, min(ts) AS a, max(ts) AS b FROM samples
    WHERE ts >= (SELECT max(upto) FROM rollup_progress WHERE name = 'minutes') GROUP BY gpu)
GROUP BY gpu
"""


_SEEN_SINCE = """
SELECT gpu, toUnixTimestamp64Milli(min(ts)), toUnixTimestamp64Milli(max(ts)) FROM samples
WHERE ts >= fromUnixTimestamp64Milli({since:Int64}, 'UTC') GROUP BY gpu
"""


def gpus(store: Reader, *, known: Iterable[Gpu] = (), since_ms: int = 0) -> list[Gpu]:
    """Every GPU that ever had a sample or is known by its labels, in no order.

    With ``known``, an earlier answer, only rows from ``since_ms`` on are looked at, and the rest taken from there;
    everything is looked at again when there is a GPU of which neither tells.
    """
    devices = store.query(_DEVICES)
    seen = {gpu.key: (gpu.first_seen_ms, gpu.last_seen_ms) for gpu in known if gpu.last_seen_ms}
    if seen:
        for gpu, first, last in store.query(_SEEN_SINCE, {"since": since_ms}):
            before = seen.get(int(gpu), (int(first), int(last)))
            seen[int(gpu)] = (min(before[0], int(first)), max(before[1], int(last)))
    if not seen or any(int(row[0]) not in seen for row in devices):
        seen = {int(gpu): (int(first), int(last)) for gpu, first, last in store.query(_SEEN)}
    return [
        Gpu(int(row[0]), *row[1:12], dict(row[12]), int(row[13]), *seen.get(int(row[0]), (0, 0)))  # type: ignore[arg-type]
        for row in devices
    ]


class LabelSet(NamedTuple):
    """What a ``labels`` key stands for, for ever: the key is a hash of it."""

    gpu_id: str
    hostname: str
    gpu_index: str
    device: str
    model: str
    container: str
    pod: str
    namespace: str
    job: str

    @classmethod
    def of(cls, gpu: Gpu) -> LabelSet:
        """The one that a GPU has now."""
        return cls(*(getattr(gpu, name) for name in cls._fields))


UNKNOWN = LabelSet("", "", "", "", "", "", "", "", "")

_LABELS = """
SELECT labels, any(gpu_id), any(hostname), any(gpu_index), any(device), any(model), any(container), any(pod),
       any(namespace), any(job)
FROM devices WHERE gpu IN {gpus:Array(UInt64)} AND labels IN {labels:Array(UInt64)} GROUP BY labels
"""


def label_sets(store: Reader, pairs: Iterable[tuple[int, int]]) -> dict[int, LabelSet]:
    """The label sets of these (gpu, labels) keys."""
    pairs = list(pairs)
    params = {"gpus": sorted({gpu for gpu, _ in pairs}), "labels": sorted({labels for _, labels in pairs})}
    return {int(row[0]): LabelSet(*row[1:]) for row in store.query(_LABELS, params)}

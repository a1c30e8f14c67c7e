"""The latest values in memory: what they answer, and what they leave to the store."""

from __future__ import annotations

import threading
from typing import Any

import pyarrow as pa

from api.latest import AGE_SECONDS, Latest
from clickhouse.queries.inventory import Gpu
from clickhouse.queries.samples import instant
from tests.helpers.waiting import eventually

NOW_MS = 1_752_871_354_000


class Samples:
    """A store that holds rows (gpu, metric, time, value) and counts what it is asked."""

    def __init__(self, *rows: tuple[int, str, int, float]) -> None:
        self.rows = list(rows)
        self.asked: list[str] = []

    def query(self, sql: str, params: Any = None, settings: Any = None) -> list[Any]:
        if "count()" in sql:
            self.asked.append("version")
            return [(len(self.rows), max(row[2] for row in self.rows))]
        self.asked.append("one")
        gpus = {params["gpu"]} if "gpu" in params else set(params["gpus"])
        return self._latest([row for row in self.rows if row[0] in gpus and instant(row[2]) >= params["start"]])

    def query_arrow(self, sql: str, params: Any = None, settings: Any = None) -> pa.Table:
        self.asked.append("all")
        found = self._latest([row for row in self.rows if instant(row[2]) >= params["start"]])
        return pa.table(dict(zip(("gpu", "metric", "t", "value"), zip(*found, strict=True), strict=True)))

    @staticmethod
    def _latest(rows: list[tuple[int, str, int, float]]) -> list[tuple[int, str, int, float]]:
        newest = {(row[0], row[1]): row for row in sorted(rows, key=lambda row: row[2])}
        return sorted(newest.values())


def gpu(key: int, last_seen_ms: int = NOW_MS) -> Gpu:
    return Gpu(key, f"GPU-{key}", "", "", "", "", "", "", "", "", "", "", {}, 0, 0, last_seen_ms)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_many_gpus_are_answered_by_one_question() -> None:
    store = Samples(*((key, name, NOW_MS, key) for key in range(100) for name in ("a", "b")))
    latest = Latest(store, None, Clock())
    latest.renew()
    for key in range(100):
        assert latest.rows([gpu(key)]) == [(key, "a", NOW_MS, key), (key, "b", NOW_MS, key)]
    assert store.asked == ["version", "all"]


def test_while_nothing_is_inserted_no_rows_are_read_again() -> None:
    store, clock = Samples((1, "a", NOW_MS, 1.0)), Clock()
    latest = Latest(store, None, clock)
    for _ in range(3):
        latest.renew()
        clock.now += 1
    assert store.asked == ["version", "all", "version", "version"]


def test_new_rows_replace_older_ones_of_their_metric_alone() -> None:
    store, clock = Samples((1, "a", NOW_MS, 1.0), (1, "b", NOW_MS, 2.0), (2, "a", NOW_MS, 3.0)), Clock()
    latest = Latest(store, None, clock)
    latest.renew()
    store.rows += [(1, "a", NOW_MS + 90_000, 9.0), (2, "c", NOW_MS + 90_000, 8.0)]
    clock.now += 1
    latest.renew()
    assert latest.rows([gpu(1)]) == [(1, "a", NOW_MS + 90_000, 9.0), (1, "b", NOW_MS, 2.0)]
    assert latest.rows([gpu(2)]) == [(2, "a", NOW_MS, 3.0), (2, "c", NOW_MS + 90_000, 8.0)]
    assert latest.of_metrics(["a"], NOW_MS) == [(1, "a", NOW_MS + 90_000, 9.0), (2, "a", NOW_MS, 3.0)]
    assert latest.of_metrics(["a"], NOW_MS + 1) == [(1, "a", NOW_MS + 90_000, 9.0)]
    assert "one" not in store.asked


def test_what_is_too_old_or_behind_its_gpu_is_asked_of_the_store() -> None:
    store, clock = Samples((1, "a", NOW_MS, 1.0), (2, "a", NOW_MS - 7_200_000, 2.0)), Clock()
    latest = Latest(store, None, clock)
    latest.renew()
    assert latest.rows([gpu(2, NOW_MS - 7_200_000)]) == [(2, "a", NOW_MS - 7_200_000, 2.0)]
    # The directory has seen a row of it that is not here yet.
    store.rows.append((1, "a", NOW_MS + 500, 5.0))
    assert latest.rows([gpu(1, NOW_MS + 500)]) == [(1, "a", NOW_MS + 500, 5.0)]
    clock.now = 2 * AGE_SECONDS
    latest._renewing.acquire()  # nobody renews meanwhile
    store.rows.append((1, "a", NOW_MS + 900, 7.0))
    assert latest.rows([gpu(1, NOW_MS)]) == [(1, "a", NOW_MS + 900, 7.0)]
    assert store.asked.count("one") == 3


def test_the_first_look_is_taken_before_anybody_asks() -> None:
    store = Samples((1, "a", NOW_MS, 0.5))
    latest = Latest(store, None, Clock())
    latest.start()
    eventually(lambda: all(thread.name != "latest" for thread in threading.enumerate()), pause=0.001)
    assert latest.rows([gpu(1)]) == [(1, "a", NOW_MS, 0.5)]
    assert store.asked == ["version", "all"]

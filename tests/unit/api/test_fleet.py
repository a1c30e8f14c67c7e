"""The fleet's totals."""

from __future__ import annotations

from api.resources.fleet import UTILISATION, totals
from clickhouse.queries.inventory import Gpu


def test_the_funnel_only_narrows() -> None:
    def gpu(key: int, pod: str, last_seen_ms: int) -> Gpu:
        return Gpu(key, f"GPU-{key}", "", "h", "0", "", "", "", "", pod, "", "", {}, 0, 0, last_seen_ms)

    now = 10_000_000
    gpus = [gpu(1, "p", now), gpu(2, "p", now), gpu(3, "", now), gpu(4, "", now), gpu(5, "p", 0)]
    values = {(key, UTILISATION): value for key, value in ((1, 90.0), (2, 0.0), (3, 90.0), (5, 90.0))}
    found = totals(gpus, 1, values, now)
    assert [found[name] for name in ("gpus", "reporting", "allocated", "active")] == [5, 4, 2, 1]
    assert (found["idle_allocated"], found["working"]) == (1, 2)

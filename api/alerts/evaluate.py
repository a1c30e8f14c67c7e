"""Rules against the stored samples: which hold now, for what, since when, and by which values.

Evidence is what was measured, never what was concluded. A rule whose metric has no samples cannot fire and is named
as such: an alert that silently never fires is worse than none.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

from api.alerts.rules import Rule, Rules
from api.directory import Directory, Snapshot
from clickhouse.queries import conditions, events
from clickhouse.queries.inventory import Gpu

COVERED: Final = 0.8
"""Share of a rule's `for` that samples must span, so that a GPU that just appeared does not count."""
NEVER_SEEN_MS: Final = 24 * 3_600_000
_ORDINAL: Final = re.compile(r"[-_]\d+$")


class Firing(NamedTuple):
    """A rule that holds for a GPU, a host, or the pipeline (both empty)."""

    rule: Rule
    gpu_id: str
    hostname: str
    since_ms: int
    values: dict[str, Any]
    severity: str = ""
    summary: str = ""
    action: str = ""


class Evaluator:
    """Evaluates all rules at one moment. ``numbers`` tells the pipeline's own: dead, lag_seconds."""

    def __init__(
        self,
        store: Any,
        directory: Directory,
        rules: Rules,
        numbers: Callable[[], dict[str, float]],
        settings: dict[str, Any] | None = None,
    ) -> None:
        self._store = store
        self._directory = directory
        self._rules = rules
        self._numbers = numbers
        self._settings = settings
        self._kinds: dict[str, Callable[[Rule, Snapshot, int], Iterator[Firing]]] = {
            "threshold": self._threshold,
            "mask": self._mask,
            "increase": self._increase,
            "rate": self._increase,
            "xid": self._xid,
            "idle": self._idle,
            "straggler": self._straggler,
            "missing": self._missing,
            "no_data": self._no_data,
            "skew": self._skew,
            "pipeline": self._pipeline,
        }

    def evaluate(self) -> tuple[list[Firing], list[str]]:
        """(what fires, warnings about rules that cannot). Raises StoreError."""
        now_ms = self._directory.now_ms()
        snapshot = self._directory.snapshot()
        seen = conditions.metrics_seen(self._store, since_ms=now_ms - NEVER_SEEN_MS, settings=self._settings)
        firing: list[Firing] = []
        warnings = []
        for rule in self._rules.rules:
            wanted = set(rule.metrics)
            missing = wanted - seen
            # Of several metrics that say "works", one is enough.
            if (rule.kind == "idle" and wanted <= missing) or (rule.kind != "idle" and missing):
                warnings.append(f"{rule.name} cannot fire: no samples of {', '.join(sorted(missing))} for a day")
                continue
            firing += self._kinds[rule.kind](rule, snapshot, now_ms)
        return firing, warnings

    def _threshold(self, rule: Rule, snapshot: Snapshot, now_ms: int) -> Iterator[Firing]:
        span = rule.parameters["for"]
        above, below = rule.parameters.get("above"), rule.parameters.get("below")
        for window in self._windows(rule.parameters["metric"], now_ms - max(span, RECENT_MS)):
            if span == 0:
                holds = window.last > above if above is not None else window.last < below
            else:
                holds = _covers(window.first_ms, window.last_ms, span, now_ms) and (
                    window.low > above if above is not None else window.high < below
                )
            if holds:
                values = {"last": window.last, "min": window.low, "max": window.high, "samples": window.samples}
                yield from self._of_gpu(rule, snapshot, window.gpu, window.first_ms, values)

    def _mask(self, rule: Rule, snapshot: Snapshot, now_ms: int) -> Iterator[Firing]:
        span = rule.parameters["for"]
        rows = conditions.masked(
            self._store,
            rule.parameters["metric"],
            rule.parameters["mask"],
            since_ms=now_ms - span,
            settings=self._settings,
        )
        for row in rows:
            if row.hits == row.samples and _covers(row.first_ms, row.last_ms, span, now_ms):
                values = {"last": row.last, "bits": row.last & rule.parameters["mask"], "samples": row.samples}
                yield from self._of_gpu(rule, snapshot, row.gpu, row.first_ms, values)

    def _increase(self, rule: Rule, snapshot: Snapshot, now_ms: int) -> Iterator[Firing]:
        window = rule.parameters["window"]
        rows = conditions.growths(
            self._store, rule.parameters["metric"], since_ms=now_ms - window, settings=self._settings
        )
        for row in rows:
            seconds = max(1.0, (row.last_ms - row.first_ms) / 1000)
            measured = row.grown / seconds if rule.kind == "rate" else row.grown
            if measured > rule.parameters["above"]:
                values = {"increase": row.grown, "per_second": row.grown / seconds, "last": row.last}
                yield from self._of_gpu(rule, snapshot, row.gpu, row.first_ms, values)

    def _xid(self, rule: Rule, snapshot: Snapshot, now_ms: int) -> Iterator[Firing]:
        since = now_ms - rule.parameters["window"]
        by_gpu: dict[int, list[events.Xid]] = {}
        for xid in events.xids(self._store, start_ms=since, end_ms=now_ms, limit=10_000, settings=self._settings):
            if self._rules.xid(xid.code).severity == rule.severity:
                by_gpu.setdefault(xid.gpu, []).append(xid)
        for gpu, xids in by_gpu.items():
            newest = self._rules.xid(xids[0].code)
            values = {"codes": [xid.code for xid in reversed(xids)], "last": xids[0].code}
            summary = f"XID {newest.code}: {newest.name}"
            for firing in self._of_gpu(rule, snapshot, gpu, xids[-1].ts_ms, values):
                yield firing._replace(summary=summary, action=newest.action)

    def _idle(self, rule: Rule, snapshot: Snapshot, now_ms: int) -> Iterator[Firing]:
        span = rule.parameters["for"]
        work: dict[int, tuple[str, conditions.Window, float]] = {}
        for metric, limit in rule.parameters["metrics"].items():
            for window in self._windows(metric, now_ms - span):
                # The first metric that a GPU reports decides: they are listed best first.
                work.setdefault(window.gpu, (metric, window, float(limit)))
        also = {
            metric: ({window.gpu: window.last for window in self._windows(metric, now_ms - RECENT_MS)}, float(least))
            for metric, least in rule.parameters.get("also", {}).items()
        }
        for key, (metric, window, limit) in work.items():
            gpu = snapshot.by_key.get(key)
            if gpu is None or (rule.parameters.get("held", True) and not (gpu.pod or gpu.container)):
                continue
            if window.high >= limit or not _covers(window.first_ms, window.last_ms, span, now_ms):
                continue
            if any(found.get(key, 0.0) <= least for found, least in also.values()):
                continue
            values = {"metric": metric, "max": window.high, "pod": gpu.pod, "namespace": gpu.namespace}
            values |= {name: found[key] for name, (found, _) in also.items()}
            yield from self._of_gpu(rule, snapshot, key, window.first_ms, values)

    def _straggler(self, rule: Rule, snapshot: Snapshot, now_ms: int) -> Iterator[Firing]:
        groups: dict[tuple[str, ...], list[tuple[Gpu, conditions.Window]]] = {}
        for window in self._windows(rule.parameters["metric"], now_ms - rule.parameters["window"]):
            gpu = snapshot.by_key.get(window.gpu)
            job = _job(gpu) if gpu else None
            if gpu and job:
                groups.setdefault(job, []).append((gpu, window))
        for job, members in groups.items():
            if len(members) < rule.parameters["least"]:
                continue
            median = statistics.median(window.mean for _, window in members)
            for gpu, window in members:
                if window.mean < rule.parameters["ratio"] * median:
                    values = {"mean": window.mean, "median": median, "job": "/".join(job), "gpus": len(members)}
                    yield from self._of_gpu(rule, snapshot, gpu.key, window.first_ms, values)

    def _missing(self, rule: Rule, snapshot: Snapshot, now_ms: int) -> Iterator[Firing]:
        silent, window = rule.parameters["for"], rule.parameters["window"]
        newest = _newest_by_host(snapshot)
        for gpu in snapshot.gpus.values():
            age = now_ms - gpu.last_seen_ms
            if silent < age <= window and now_ms - newest[gpu.hostname] <= silent:
                yield from self._of_gpu(rule, snapshot, gpu.key, gpu.last_seen_ms, {"silent_seconds": age / 1000})

    def _no_data(self, rule: Rule, snapshot: Snapshot, now_ms: int) -> Iterator[Firing]:
        counts: dict[str, int] = {}
        for gpu in snapshot.gpus.values():
            counts[gpu.hostname] = counts.get(gpu.hostname, 0) + 1
        for host, newest in _newest_by_host(snapshot).items():
            age = now_ms - newest
            if rule.parameters["for"] < age <= rule.parameters["window"]:
                yield Firing(rule, "", host, newest, {"silent_seconds": age / 1000, "gpus": counts[host]})

    def _skew(self, rule: Rule, snapshot: Snapshot, now_ms: int) -> Iterator[Firing]:
        label = rule.parameters["label"]
        versions: dict[str, int] = {}
        for gpu in snapshot.gpus.values():
            version = gpu.extra.get(label, "")
            if version and now_ms - gpu.last_seen_ms <= NEVER_SEEN_MS:
                versions[version] = versions.get(version, 0) + 1
        if len(versions) > 1:
            yield Firing(rule, "", "", now_ms, {"label": label, "gpus_by_value": versions})

    def _pipeline(self, rule: Rule, snapshot: Snapshot, now_ms: int) -> Iterator[Firing]:
        value = self._numbers().get(rule.parameters["number"])
        if value is not None and value > rule.parameters["above"]:
            yield Firing(rule, "", "", now_ms, {rule.parameters["number"]: value})

    def _windows(self, metric: str, since_ms: int) -> list[conditions.Window]:
        return conditions.windows(self._store, metric, since_ms=since_ms, settings=self._settings)

    def _of_gpu(
        self, rule: Rule, snapshot: Snapshot, key: int, since_ms: int, values: dict[str, Any]
    ) -> Iterator[Firing]:
        gpu = snapshot.by_key.get(key)
        if gpu is not None:
            yield Firing(rule, gpu.gpu_id, gpu.hostname, since_ms, values)


RECENT_MS: Final = 60_000
"""A latest value older than this says nothing about the present."""


def _covers(first_ms: int, last_ms: int, span: int, now_ms: int) -> bool:
    return last_ms - first_ms >= COVERED * span and now_ms - last_ms <= max(RECENT_MS, span * (1 - COVERED))


def _newest_by_host(snapshot: Snapshot) -> dict[str, int]:
    newest: dict[str, int] = {}
    for gpu in snapshot.gpus.values():
        newest[gpu.hostname] = max(newest.get(gpu.hostname, 0), gpu.last_seen_ms)
    return newest


def _job(gpu: Gpu) -> tuple[str, ...] | None:
    """What a GPU works for: the scheduler's job, else the pod's namespace and name without its ordinal."""
    if gpu.extra.get("hpc_job"):
        return (gpu.extra["hpc_job"],)
    return (gpu.namespace, _ORDINAL.sub("", gpu.pod)) if gpu.pod else None

"""Every metric of every process: name, kind, labels, meaning. Nothing is exported that is not in this list.

Names carry their unit (``_seconds``, ``_bytes``, ``_rows``) and counters end in ``_total``. No label ever holds a
GPU, a session or a message: the number of series depends on configuration, not on traffic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final, Literal, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

# "…_created" beside each counter would double the series and tell nothing that the process's start time does not.
disable_created_metrics()

Kind = Literal["counter", "gauge", "histogram"]

SECONDS_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class MetricDefinition(NamedTuple):
    """One metric. ``buckets`` counts for histograms only."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    help: str
    buckets: tuple[float, ...] = SECONDS_BUCKETS


METRICS: Final[tuple[MetricDefinition, ...]] = (
    # every process
    MetricDefinition("telemetry_build_info", "gauge", ("service", "version"), "1; the labels tell what runs"),
    MetricDefinition("telemetry_ready", "gauge", (), "1 when /readyz says ready, else 0"),
    MetricDefinition("telemetry_check_status", "gauge", ("check",), "Each check: 0 healthy, 1 degraded, 2 unhealthy"),
    MetricDefinition("telemetry_log_lines_total", "counter", ("level",), "Log lines written, by level"),
)


def definitions() -> dict[str, MetricDefinition]:
    """The list by name."""
    return {definition.name: definition for definition in METRICS}


def _definition(name: str, kind: Kind) -> MetricDefinition:
    definition = definitions().get(name)
    if definition is None or definition.kind != kind:
        raise LookupError(f"no {kind} {name} in telemetry.metrics.METRICS")
    return definition


def counter(registry: CollectorRegistry, name: str) -> Counter:
    """The counter of that name, registered; :class:`LookupError` if the list has none."""
    definition = _definition(name, "counter")
    return Counter(definition.name, definition.help, definition.labels, registry=registry)


def gauge(registry: CollectorRegistry, name: str) -> Gauge:
    """The gauge of that name, registered; :class:`LookupError` if the list has none."""
    definition = _definition(name, "gauge")
    return Gauge(definition.name, definition.help, definition.labels, registry=registry)


def histogram(registry: CollectorRegistry, name: str) -> Histogram:
    """The histogram of that name, registered; :class:`LookupError` if the list has none."""
    definition = _definition(name, "histogram")
    return Histogram(definition.name, definition.help, definition.labels, registry=registry, buckets=definition.buckets)


Sample = tuple[str, tuple[str, ...], float]
"""(metric name, label values, value)"""


class _ReadOnScrape(Collector):
    def __init__(self, read: Callable[[], Iterable[Sample]]) -> None:
        self._read = read

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def collect(self) -> Iterator[Metric]:
        families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
        known = definitions()
        for name, labels, value in self._read():
            family = families.get(name)
            if family is None:
                definition = known[name]
                make = CounterMetricFamily if definition.kind == "counter" else GaugeMetricFamily
                family = families[name] = make(name, definition.help, labels=definition.labels)
            family.add_metric(labels, value)
        yield from families.values()


def on_scrape(registry: CollectorRegistry, read: Callable[[], Iterable[Sample]]) -> None:
    """Export counters and gauges that the process keeps itself: ``read`` runs at each scrape and costs nothing between.

    ``read`` yields (name, label values in the list's order, value); it runs in an HTTP thread.
    """
    registry.register(_ReadOnScrape(read))

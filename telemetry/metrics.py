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
    # broker
    MetricDefinition("zmqbroker_messages_total", "counter", (), "PUBLISH messages taken into a log"),
    MetricDefinition("zmqbroker_rows_total", "counter", (), "Rows in them"),
    MetricDefinition("zmqbroker_bytes_total", "counter", (), "Payload bytes in them"),
    MetricDefinition(
        "zmqbroker_duplicates_total", "counter", (), "PUBLISH messages whose seq was known: acked, not stored again"
    ),
    MetricDefinition(
        "zmqbroker_over_credit_total", "counter", (), "PUBLISH messages above the credit granted: dropped"
    ),
    MetricDefinition("zmqbroker_refused_total", "counter", (), "PUBLISH messages refused"),
    MetricDefinition("zmqbroker_garbage_total", "counter", (), "Messages that are none of the protocol"),
    MetricDefinition("zmqbroker_stale_total", "counter", (), "Messages of a conversation that is over"),
    MetricDefinition("zmqbroker_bad_checksums_total", "counter", (), "Payloads that did not match their checksum"),
    MetricDefinition("zmqbroker_deliveries_total", "counter", (), "Ranges delivered"),
    MetricDefinition("zmqbroker_delivered_rows_total", "counter", (), "Rows in them"),
    MetricDefinition("zmqbroker_redeliveries_total", "counter", (), "Ranges delivered again"),
    MetricDefinition("zmqbroker_settled_total", "counter", (), "Ranges settled"),
    MetricDefinition("zmqbroker_deaths_total", "counter", (), "Deliveries that ended with the consumer's death"),
    MetricDefinition("zmqbroker_failures_total", "counter", (), "Deliveries that a consumer reported as failed"),
    MetricDefinition("zmqbroker_dead_records_total", "counter", (), "Records written to dead-letter topics"),
    MetricDefinition("zmqbroker_pauses_total", "counter", (), "Times the broker itself was paused for over a second"),
    MetricDefinition("zmqbroker_errors_total", "counter", ("code",), "Errors answered, by code of the protocol"),
    MetricDefinition("zmqbroker_commits_total", "counter", (), "Commits written to logs"),
    MetricDefinition("zmqbroker_commit_bytes_total", "counter", (), "Bytes written to logs"),
    MetricDefinition("zmqbroker_handshakes_refused_total", "counter", (), "Handshakes with a key that is not listed"),
    MetricDefinition("zmqbroker_conversations_denied_total", "counter", (), "Conversations the key has no role for"),
    MetricDefinition("zmqbroker_loops_total", "counter", (), "Turns of the broker's loop"),
    MetricDefinition(
        "zmqbroker_credit_outstanding_bytes", "gauge", (), "Credit given to producers and not yet durable"
    ),
    MetricDefinition("zmqbroker_peers", "gauge", ("kind",), "Connected peers: producer, consumer"),
    MetricDefinition(
        "zmqbroker_topic_published_rows_total", "counter", ("topic",), "Rows published into the topic since it was made"
    ),
    MetricDefinition(
        "zmqbroker_topic_published_messages_total",
        "counter",
        ("topic",),
        "Messages published into the topic since it was made",
    ),
    MetricDefinition("zmqbroker_topic_disk_bytes", "gauge", ("topic",), "Size of the topic's log"),
    MetricDefinition("zmqbroker_topic_disk_full", "gauge", ("topic",), "1 while producers wait for disk space"),
    MetricDefinition("zmqbroker_topic_stopped", "gauge", ("topic",), "1 after a failed fsync: an operator must act"),
    MetricDefinition("zmqbroker_topic_dead_messages", "gauge", ("topic",), "Messages in the topic's dead-letter topic"),
    MetricDefinition("zmqbroker_group_lag_rows", "gauge", ("topic", "group"), "Rows not settled yet"),
    MetricDefinition("zmqbroker_group_lag_messages", "gauge", ("topic", "group"), "Messages not settled yet"),
    MetricDefinition(
        "zmqbroker_group_oldest_age_seconds", "gauge", ("topic", "group"), "Age of the oldest message not settled yet"
    ),
    MetricDefinition("zmqbroker_group_in_flight", "gauge", ("topic", "group"), "Ranges that consumers hold"),
    MetricDefinition("zmqbroker_group_ready", "gauge", ("topic", "group"), "Ranges that wait for credit"),
    MetricDefinition("zmqbroker_group_members", "gauge", ("topic", "group"), "Consumers connected"),
    MetricDefinition(
        "zmqbroker_group_free_credit", "gauge", ("topic", "group"), "Deliveries that consumers could take now"
    ),
    MetricDefinition("zmqbroker_group_settled_rows_total", "counter", ("topic", "group"), "Rows settled"),
    MetricDefinition("zmqbroker_group_redelivered_total", "counter", ("topic", "group"), "Ranges delivered again"),
    MetricDefinition(
        "zmqbroker_group_lost_messages_total", "counter", ("topic", "group"), "Messages dropped before they were taken"
    ),
    MetricDefinition(
        "zmqbroker_sync_seconds",
        "histogram",
        (),
        "Time of one fdatasync of a log",
        (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0),
    ),
    # store (the embedded server)
    MetricDefinition("store_connections", "gauge", (), "HTTP connections that are open"),
    MetricDefinition("store_queries_running", "gauge", (), "Queries under way, inserts included"),
    MetricDefinition("store_queries_total", "counter", (), "Queries that succeeded, inserts included"),
    MetricDefinition("store_query_errors_total", "counter", (), "Requests that were answered with an error"),
    MetricDefinition("store_queries_cancelled_total", "counter", (), "Queries cancelled because their client hung up"),
    MetricDefinition("store_inserts_total", "counter", (), "Inserts that succeeded"),
    MetricDefinition("store_rows_inserted_total", "counter", (), "Rows that inserts brought"),
    MetricDefinition("store_bodies_refused_total", "counter", (), "Bodies refused because they did not come whole"),
    # rollup
    MetricDefinition("store_rollup_looks_total", "counter", (), "Looks for minutes to roll up"),
    MetricDefinition("store_rollup_failures_total", "counter", (), "Looks that failed"),
    MetricDefinition("store_rollup_minutes_total", "counter", (), "Minutes recomputed"),
    MetricDefinition("store_rollup_rows_total", "counter", (), "Raw rows of recomputed minutes"),
    MetricDefinition("store_rollup_busy_seconds_total", "counter", (), "Seconds spent on looks"),
    MetricDefinition("store_doubled_batches", "gauge", (), "Batches stored more than once among the newest rows"),
    MetricDefinition("store_rollup_lag_seconds", "gauge", (), "Age of the newest minute that is rolled up"),
    # collector
    MetricDefinition("collector_rows_received_total", "counter", (), "Rows of the deliveries taken from the broker"),
    MetricDefinition("collector_batches_received_total", "counter", (), "Batches of the deliveries taken"),
    MetricDefinition("collector_rows_stored_total", "counter", (), "Rows known to be in the store when acknowledged"),
    MetricDefinition(
        "collector_rows_found_total", "counter", (), "Rows an earlier attempt had stored: duplicates avoided"
    ),
    MetricDefinition(
        "collector_rows_rejected_total", "counter", ("reason",), "Rows kept in the rejects table, by reason"
    ),
    MetricDefinition("collector_rows_dead_total", "counter", (), "Rows of decodable batches sent to the dead letters"),
    MetricDefinition("collector_batches_dead_total", "counter", (), "Batches sent to the dead letters"),
    MetricDefinition(
        "collector_batches_repeated_total", "counter", (), "Batches that stood twice in one range; one was taken"
    ),
    MetricDefinition(
        "collector_doubtful_total", "counter", (), "Deliveries that may have been stored before, so were asked for"
    ),
    MetricDefinition(
        "collector_alarms_total", "counter", (), "Findings that the rules say cannot be; the log says which"
    ),
    MetricDefinition(
        "collector_deliveries_total", "counter", ("outcome",), "Deliveries: settled, given_back, failed, lease_over"
    ),
    MetricDefinition("collector_deliveries_in_hand", "gauge", (), "Deliveries being worked on now"),
    MetricDefinition(
        "collector_lag_seconds", "gauge", (), "Age of the oldest batch in hand, since the broker appended it"
    ),
    MetricDefinition("collector_insert_seconds", "histogram", (), "One INSERT, from sending to the store's answer"),
    MetricDefinition("collector_step_seconds_total", "counter", ("step",), "Time spent in decode, validate and merge"),
    MetricDefinition("collector_breaker_state", "gauge", (), "0 closed, 1 half-open, 2 open: the store is away"),
    MetricDefinition("collector_breaker_opened_total", "counter", (), "How often the breaker has opened"),
    # streamer
    MetricDefinition("streamer_rows_read_total", "counter", (), "Rows read and handed to the publisher"),
    MetricDefinition("streamer_rows_published_total", "counter", (), "Rows given to the broker's client"),
    MetricDefinition("streamer_rows_acked_total", "counter", (), "Rows that the broker has made durable"),
    MetricDefinition("streamer_rows_rejected_total", "counter", ("reason",), "Rows left out as bad, by reason"),
    MetricDefinition("streamer_batches_published_total", "counter", (), "Batches given to the broker's client"),
    MetricDefinition("streamer_batches_acked_total", "counter", (), "Batches that the broker has made durable"),
    MetricDefinition("streamer_bytes_read_total", "counter", (), "Bytes read from sources, decompressed"),
    MetricDefinition("streamer_passes_total", "counter", (), "Passes over a source that came to their end"),
    MetricDefinition("streamer_pending_batches", "gauge", (), "Batches published and not yet durable"),
    MetricDefinition("streamer_pending_bytes", "gauge", (), "Bytes published and not yet durable"),
    MetricDefinition("streamer_publish_latency_seconds", "gauge", ("quantile",), "Publish to ack, recent batches"),
    MetricDefinition("streamer_backpressure_seconds_total", "counter", (), "Time spent waiting for credit"),
    MetricDefinition("streamer_reconnects_total", "counter", (), "Times a connection to the broker was made again"),
    MetricDefinition(
        "streamer_possible_duplicates_total",
        "counter",
        (),
        "Batches sent again to a broker that did not know the session",
    ),
    MetricDefinition("streamer_spool_rows", "gauge", (), "Rows that wait in the spool"),
    MetricDefinition("streamer_spool_bytes", "gauge", (), "Disk that the spool takes"),
    MetricDefinition("streamer_rows_dropped_total", "counter", (), "Rows of live sources that a full spool dropped"),
    MetricDefinition("streamer_targets", "gauge", (), "Exporters or GPUs that are read"),
    MetricDefinition("streamer_targets_up", "gauge", (), "Exporters or GPUs whose last reading succeeded"),
    MetricDefinition("streamer_workers", "gauge", (), "Worker processes alive"),
    MetricDefinition(
        "streamer_worker_restarts_total", "counter", (), "Worker processes that died and were started again"
    ),
    # API
    MetricDefinition("api_requests_total", "counter", ("method", "endpoint", "status"), "HTTP requests answered"),
    MetricDefinition("api_request_seconds", "histogram", ("endpoint",), "Time to make an answer, streaming excluded"),
    MetricDefinition("api_live_clients", "gauge", (), "Live tails that are open"),
    MetricDefinition(
        "api_live_missed_rows_total", "counter", (), "Rows that live clients missed because they were slow"
    ),
    MetricDefinition("api_written_rows_total", "counter", ("kind",), "Rows handed to the broker, by kind: json or csv"),
    MetricDefinition("api_cache_hits_total", "counter", (), "Answers given again from the cache"),
    MetricDefinition(
        "api_cache_misses_total", "counter", (), "Answers that had to be made although they may be cached"
    ),
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

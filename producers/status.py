"""What a streamer tells over HTTP: health, metrics and ``/api/v1/status``."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from producers.supervisor import Totals
from telemetry.health import Check
from telemetry.metrics import Sample, on_scrape
from telemetry.service import Service


class StreamerStatus:
    """Wires the totals of a run to the service's HTTP server."""

    def __init__(
        self,
        service: Service,
        source: str,
        totals: Callable[[], Totals],
        inputs: list[str],
        *,
        started: int,
        always_ready: bool = False,
    ) -> None:
        """``always_ready``: for a server that takes work whether the broker is there or not."""
        self._service = service
        self._source = source
        self._totals = totals
        self._inputs = inputs
        self._started_ns = started
        self._always_ready = always_ready
        service.check("broker", self._broker)
        service.check("workers", self._workers)
        service.route("/api/v1/status", self.status)
        on_scrape(service.registry, self._samples)

    def status(self) -> dict[str, Any]:
        """JSON of ``/api/v1/status``."""
        totals = self._totals()
        seconds = max((time.time_ns() - self._started_ns) / 1e9, 1e-9)
        return {
            "source": self._source,
            "inputs": self._inputs,
            "uptime_seconds": round(seconds, 3),
            "rows_per_second": round(totals.rows_acked / seconds, 1),
            "rows_rejected": totals.rows_rejected,
            **asdict(totals),
        }

    def _broker(self) -> Check:
        totals = self._totals()
        if totals.workers_connected:
            return Check("healthy")
        if (totals.lanes or self._always_ready) and totals.lanes == totals.lanes_done:
            return Check("healthy", "everything is acknowledged")
        return Check("degraded", "not connected to the broker yet", ready=self._always_ready)

    def _workers(self) -> Check:
        totals = self._totals()
        if totals.workers_alive:
            return Check("healthy")
        return Check("degraded", "no worker runs at the moment", ready=False)

    def _samples(self) -> Iterator[Sample]:
        totals = self._totals()
        yield "streamer_rows_read_total", (), totals.rows_read
        yield "streamer_rows_published_total", (), totals.rows_published
        yield "streamer_rows_acked_total", (), totals.rows_acked
        yield "streamer_batches_published_total", (), totals.batches_published
        yield "streamer_batches_acked_total", (), totals.batches_acked
        yield "streamer_bytes_read_total", (), totals.bytes_read
        yield "streamer_passes_total", (), totals.passes
        for reason, rows in sorted(totals.rejected.items()):
            yield "streamer_rows_rejected_total", (reason,), rows
        yield "streamer_pending_batches", (), totals.pending_batches
        yield "streamer_pending_bytes", (), totals.pending_bytes
        yield "streamer_backpressure_seconds_total", (), totals.credit_wait_seconds
        yield "streamer_reconnects_total", (), totals.reconnects
        yield "streamer_possible_duplicates_total", (), totals.possible_duplicates
        yield "streamer_spool_rows", (), totals.spooled_rows
        yield "streamer_spool_bytes", (), totals.spooled_bytes
        yield "streamer_rows_dropped_total", (), totals.rows_dropped
        yield "streamer_targets", (), totals.targets
        yield "streamer_targets_up", (), totals.targets_up
        yield "streamer_workers", (), totals.workers_alive
        yield "streamer_worker_restarts_total", (), totals.worker_restarts
        yield "streamer_publish_latency_seconds", ("0.5",), totals.latency_p50_s
        yield "streamer_publish_latency_seconds", ("0.99",), totals.latency_p99_s

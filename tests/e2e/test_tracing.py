"""Spans of the real streamer and collector, as a trace collector gets them over OTLP."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.helpers.processes import ROOT, RunningProcess, free_port
from tests.helpers.waiting import eventually

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def received() -> Iterator[tuple[str, list[tuple[str, Any]]]]:
    """(address, spans with their service's name) of a trace collector."""
    spans: list[tuple[str, Any]] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                import gzip

                body = gzip.decompress(body)
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                names = [a.value.string_value for a in resource.resource.attributes if a.key == "service.name"]
                spans.extend((names[0], span) for scope in resource.scope_spans for span in scope.spans)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", spans
    server.shutdown()
    server.server_close()


def test_every_batch_of_a_streamer_is_linked_from_an_insert_of_the_collector(
    received: tuple[str, list[tuple[str, Any]]], tmp_path: Path
) -> None:
    otlp, spans = received
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": otlp, "OTEL_TRACES_SAMPLER": "always_on", "OTEL_BSP_SCHEDULE_DELAY": "200"}
    data, page = f"tcp://127.0.0.1:{free_port()}", ("--http", "127.0.0.1:0")
    admin = f"tcp://127.0.0.1:{free_port()}"
    store = RunningProcess(
        "clickhouse.cli", ["serve", "--migrate", "--data-dir", str(tmp_path / "store"), *page], tmp_path, name="store"
    )
    broker = RunningProcess(
        "zmqbroker.cli",
        ["serve", "--data-dir", str(tmp_path / "broker"), "--bind", data, "--admin-bind", admin, *page],
        tmp_path,
        name="broker",
    )
    with store, broker:
        url = store.wait_ready()
        broker.wait_ready()
        sample = str(ROOT / "producers" / "sample" / "dcgm_sample.csv")
        play = ["csv", sample, "--connect", data, "--http", "off", "--state-dir", str(tmp_path), "--batch-rows", "500"]
        with (
            RunningProcess(
                "consumers.cli", ["--connect", data, "--clickhouse", url, *page], tmp_path, name="collector", env=env
            ) as collector,
            RunningProcess("producers.cli", play, tmp_path, name="streamer", env=env) as streamer,
        ):
            assert streamer.popen.wait(60) == 0, streamer.log_path.read_text()[-2000:]
            published = {s.span_id: s for service, s in spans if service == "telemetry-streamer"}
            assert len(published) > 1

            def linked() -> bool:
                return {link.span_id for _, s in spans for link in s.links} == set(published)

            eventually(linked, 20, "every published batch is linked from an insert")
            assert collector.stop() == 0
    inserts = [s for service, s in spans if service == "telemetry-collector"]
    assert {s.name for s in inserts} == {"insert"}
    for span in inserts:
        parent = published[span.parent_span_id]
        assert parent.trace_id == span.trace_id
        assert span.end_time_unix_nano >= span.start_time_unix_nano >= parent.start_time_unix_nano

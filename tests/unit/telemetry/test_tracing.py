"""Tracing: publish and insert are one trace, and nothing is there while it is off."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from producers.publisher import Publisher
from telemetry import tracing
from telemetry.batch import NO_TRACE, Batch, BatchDecoder, Device, DictionaryEncoder, encode
from tests.helpers.processes import ROOT


class Receipt:
    def __init__(self, session: int, seq: int) -> None:
        self.session, self.seq, self.done = session, seq, False

    def wait(self, timeout: float | None = None) -> bool:
        return self.done


class Log:
    """A producer whose batches come to lie in a list."""

    session = 2**64 - 5

    def __init__(self) -> None:
        self.payloads: list[bytes] = []
        self.receipts: list[Receipt] = []

    def publish(self, payload: Any, rows: int, timeout: float) -> Receipt:
        self.receipts.append(Receipt(self.session, len(self.receipts) + 1))
        self.payloads.append(payload(self.session, self.receipts[-1].seq))
        return self.receipts[-1]


def pack(session: int, seq: int) -> bytes:
    """As the batcher does."""
    codes = np.zeros(3, dtype=np.uint16)
    dictionary = DictionaryEncoder().encode([Device(uuid="GPU-1")], ["gpu_temp"], b"one")
    times = np.arange(3, dtype=np.int64)
    return encode(
        session,
        seq,
        times,
        codes,
        codes,
        np.zeros(3),
        dictionary,
        created_ns=1,
        trace=tracing.publishing(session, seq, 3),
    )


def decoded(payloads: list[bytes]) -> list[Batch]:
    decoder = BatchDecoder()
    return [decoder.decode(payload) for payload in payloads]


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_on")
    exporter = InMemorySpanExporter()
    assert tracing.start("test", exporter)
    yield exporter
    tracing.stop()


def test_publish_and_insert_are_one_trace_with_a_link_to_every_batch(spans: Any) -> None:
    log = Log()
    publisher = Publisher(log, 0)
    for mark in (1, 2):
        assert publisher.publish(pack, 3, mark, threading.Event())
    batches = decoded(log.payloads)
    with tracing.inserting(batches, 1_700_000_000_000_000_000, {"topic": "t", "partition": 2}):
        pass
    assert [span.name for span in spans.get_finished_spans()] == ["insert"], "nothing is acknowledged yet"
    for receipt in log.receipts:
        receipt.done = True
    publisher.settle()
    insert, first, second = spans.get_finished_spans()
    assert [first.name, second.name] == ["publish", "publish"]
    assert first.attributes == {"session": str(log.session), "seq": 1, "rows": 3, "acknowledged": True}
    assert insert.context.trace_id == first.context.trace_id != second.context.trace_id
    assert insert.parent.span_id == first.context.span_id
    assert [link.context.span_id for link in insert.links] == [first.context.span_id, second.context.span_id]
    assert insert.attributes["partition"] == 2
    assert insert.start_time == 1_700_000_000_000_000_000


def test_a_failed_insert_is_a_span_with_an_error_and_the_error_goes_on(spans: Any) -> None:
    with pytest.raises(OSError, match="away"), tracing.inserting(decoded([pack(1, 1)]), 1, {}):
        raise OSError("away")
    (span,) = spans.get_finished_spans()
    assert span.status.status_code.name == "ERROR"


def test_open_spans_are_bounded_and_the_oldest_ends_unacknowledged(spans: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "OPEN_MAX", 10)
    for seq in range(15):
        tracing.publishing(1, seq, 1)
    ended = spans.get_finished_spans()
    assert [span.attributes["seq"] for span in ended] == [0, 1, 2, 3, 4]
    assert not any(span.attributes["acknowledged"] for span in ended)


def test_what_is_not_sampled_leaves_no_trace_in_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    exporter = InMemorySpanExporter()
    assert tracing.start("test", exporter)
    try:
        batches = decoded([pack(1, 1)])
        assert batches[0].trace == NO_TRACE
        with tracing.inserting(batches, 1, {}):
            pass
    finally:
        tracing.stop()
    assert exporter.get_finished_spans() == ()


def test_a_hostile_context_in_a_header_opens_nothing(spans: Any) -> None:
    (batch,) = decoded([pack(1, 1)])
    for trace in (bytes(16) + b"\1" * 16, b"\1" * 16 + bytes(8) + b"\1" * 8, b"\xff" * 24 + bytes(8)):
        with tracing.inserting([batch._replace(trace=trace)], 1, {}):
            pass
    assert spans.get_finished_spans() == ()


@pytest.mark.parametrize(
    ("environ", "exporter"),
    [
        ({}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:4318"}, "otlp"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x:4318/v1/traces"}, "otlp"),
        ({"OTEL_TRACES_EXPORTER": "console"}, "console"),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:4318"}, ""),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_TRACES_EXPORTER": "otlp"}, ""),
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, ""),
    ],
)
def test_the_standard_variables_turn_it_on_and_off(environ: dict[str, str], exporter: str) -> None:
    assert tracing.wanted(environ) == exporter


def test_off_it_costs_no_import_and_batches_carry_nothing() -> None:
    program = (
        "import sys, consumers.cli, producers.cli, producers.worker, producers.live, consumers.collector\n"
        "from telemetry import tracing\n"
        "assert not tracing.start('x')\n"
        "assert tracing.publishing(1, 1, 1) == bytes(32)\n"
        "with tracing.inserting([], 0, {}): pass\n"
        "tracing.stop()\n"
        "assert not any(name.startswith('opentelemetry') for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, env={"PATH": "/usr/bin:/bin"}, check=True, timeout=60)

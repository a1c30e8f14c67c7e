"""Spans from publish to insert, in OpenTelemetry; off unless the standard variables ask for them, and free when off.

A producer opens one span a sampled batch, from packing to the acknowledgement, and writes its context into the batch's
header. Broker and log carry it untouched. A collector opens one span a delivery that holds sampled batches: within
the trace of the first of them, with a link to each. Nothing of OpenTelemetry is imported while tracing is off.

On with ``OTEL_EXPORTER_OTLP_ENDPOINT`` (or ``…_TRACES_ENDPOINT``), or ``OTEL_TRACES_EXPORTER=otlp|console``; off with
``OTEL_TRACES_EXPORTER=none`` or ``OTEL_SDK_DISABLED=true``. All other variables of the SDK count as they are.
"""

from __future__ import annotations

import logging
import os
import struct
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from telemetry.batch import NO_TRACE, Batch

SHARE_DEFAULT: Final = 0.01
"""Share of batches that are traced where ``OTEL_TRACES_SAMPLER`` says nothing."""
OPEN_MAX: Final = 4096
"""Spans of batches that are not acknowledged; of more, the oldest ends early. A spooled batch may wait for hours."""
LINKS_MAX: Final = 128

_CONTEXT: Final = struct.Struct(">16s8sB7x")
_SAMPLED: Final = 1
_log = logging.getLogger(__name__)
_active: Tracing | None = None


def wanted(environ: Mapping[str, str] = os.environ) -> str:
    """The exporter that the environment asks for: "otlp", "console", or "" for none."""
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return ""
    named = environ.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    if not named:
        told = environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
        return "otlp" if told else ""
    if named in ("otlp", "console"):
        return named
    if named != "none":
        _log.warning("no such exporter of traces: tracing is off", extra={"exporter": named, "known": "otlp, console"})
    return ""


def start(service: str, exporter: Any = None) -> bool:
    """Trace this process if the environment asks for it (or with this ``exporter``); whether it does from now on."""
    global _active
    kind = "" if exporter is not None else wanted()
    if exporter is None and not kind:
        return False
    try:
        _active = Tracing(service, exporter, kind)
    except ImportError as error:
        reason = f"{error}; pip install 'gpu-telemetry[tracing]'"
        _log.warning("tracing is asked for and not installed: it is off", extra={"reason": reason})
        return False
    return True


def stop() -> None:
    """End what is open and send what waits. May be called always."""
    global _active
    if _active is not None:
        _active.stop()
        _active = None


def publishing(session: int, seq: int, rows: int) -> bytes:
    """Open the span of a batch that is packed now; the 32 bytes for its header."""
    return NO_TRACE if _active is None else _active.publishing(session, seq, rows)


def published(receipt: Any) -> None:
    """The batch of this receipt is acknowledged: its span ends."""
    if _active is not None:
        _active.published(receipt.session, receipt.seq)


@contextmanager
def inserting(batches: Iterable[Batch], since_ns: int, fields: Mapping[str, Any]) -> Iterator[None]:
    """The span of a delivery that holds traced batches, from ``since_ns`` (since the epoch) to the end of the block.

    An exception ends it as an error and goes on.
    """
    span = None if _active is None else _active.inserting([batch.trace for batch in batches], since_ns, fields)
    if span is None:
        yield
        return
    from opentelemetry.trace import use_span

    with use_span(span, end_on_exit=True):
        yield


class Tracing:
    """A tracer of its own, not OpenTelemetry's global one. Raises ImportError where the packages are missing."""

    def __init__(self, service: str, exporter: Any = None, kind: str = "otlp") -> None:
        from opentelemetry import trace
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SimpleSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

        self._trace = trace
        # Without a sampler of its own the provider reads OTEL_TRACES_SAMPLER.
        own = {} if "OTEL_TRACES_SAMPLER" in os.environ else {"sampler": ParentBased(TraceIdRatioBased(SHARE_DEFAULT))}
        name = os.environ.get("OTEL_SERVICE_NAME", service)
        self._provider = TracerProvider(resource=Resource.create({"service.name": name}), **own)  # type: ignore[arg-type]
        if exporter is not None:
            self._provider.add_span_processor(SimpleSpanProcessor(exporter))
        elif kind == "console":
            self._provider.add_span_processor(BatchSpanProcessor(ConsoleSpanExporter()))
        else:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

            self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("gpu-telemetry")
        self._open: dict[tuple[int, int], Any] = {}
        self._lock = threading.Lock()

    def publishing(self, session: int, seq: int, rows: int) -> bytes:
        fields: dict[str, Any] = {"session": f"{session:d}", "seq": seq, "rows": rows}  # a session may exceed int64
        span = self._tracer.start_span(
            "publish", context=self._trace.Context(), kind=self._trace.SpanKind.PRODUCER, attributes=fields
        )
        context = span.get_span_context()
        if not context.trace_flags.sampled:
            return NO_TRACE
        with self._lock:
            again = self._open.pop((session, seq), None)
            oldest = self._open.pop(next(iter(self._open))) if len(self._open) >= OPEN_MAX else None
            self._open[session, seq] = span
        for ended in (again, oldest):
            if ended is not None:
                ended.set_attribute("acknowledged", False)
                ended.end()
        return _CONTEXT.pack(context.trace_id.to_bytes(16), context.span_id.to_bytes(8), _SAMPLED)

    def published(self, session: int, seq: int) -> None:
        with self._lock:
            span = self._open.pop((session, seq), None)
        if span is not None:
            span.set_attribute("acknowledged", True)
            span.end()

    def inserting(self, traces: list[bytes], since_ns: int, fields: Mapping[str, Any]) -> Any:
        contexts = [context for trace in traces if trace != NO_TRACE and (context := self._context(trace)) is not None]
        if not contexts:
            return None
        parent = self._trace.set_span_in_context(self._trace.NonRecordingSpan(contexts[0]), self._trace.Context())
        return self._tracer.start_span(
            "insert",
            context=parent,
            kind=self._trace.SpanKind.CONSUMER,
            attributes={**fields, "batches": len(traces), "traced_batches": len(contexts)},
            links=[self._trace.Link(context) for context in contexts[:LINKS_MAX]],
            start_time=since_ns,
        )

    def _context(self, trace: bytes) -> Any:
        """What a header says; None where it is no sampled context. It may come from anybody."""
        trace_id, span_id, flags = _CONTEXT.unpack(trace)
        context = self._trace.SpanContext(
            int.from_bytes(trace_id), int.from_bytes(span_id), is_remote=True, trace_flags=self._trace.TraceFlags(flags)
        )
        return context if context.is_valid and flags & _SAMPLED else None

    def stop(self) -> None:
        with self._lock:
            left, self._open = self._open, {}
        for span in left.values():
            span.set_attribute("acknowledged", False)
            span.end()
        self._provider.shutdown()

"""What every process needs, once: signals, structured logs, health and metrics over HTTP.

    with Service("telemetry-collector", http=args.http, log_level=args.log_level, ...) as service:
        service.check("store", store_check)
        while not service.stopping.is_set():
            ...

Entering starts the HTTP server and the signal handling; leaving stops them. The first SIGTERM or SIGINT sets
``stopping``: from then on the process has ``drain_timeout_s`` to finish. A second one ends it at once.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self, TextIO
from wsgiref.types import WSGIApplication

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector

from telemetry import __version__, logs, metrics
from telemetry.addresses import listening_socket
from telemetry.health import SEVERITY, Check, Health
from telemetry.http import Application, HttpServer
from telemetry.signals import StopRequest, watch

__all__ = ["Check", "Service"]


class Service:
    """One running process.

    ``http`` is HOST:PORT, or "" for no server (the API serves :attr:`http_app` itself). ``keys`` says that what listens
    there asks for keys. Raises :class:`telemetry.options.UsageError` from :meth:`start` if the address cannot be used.
    """

    def __init__(
        self,
        name: str,
        http: str = "",
        *,
        log_level: str = "info",
        log_format: str = "auto",
        drain_timeout_s: float = 10.0,
        insecure: bool = False,
        keys: bool = False,
        log_stream: TextIO | None = None,
    ) -> None:
        self.name = name
        self.log: logging.Logger = logs.configure(name, log_level, log_format, log_stream)
        self.stopping = threading.Event()
        self.drain_timeout_s = drain_timeout_s
        self.registry = CollectorRegistry()
        self.health = Health(name, __version__)
        self.http_app = Application(self.health, self.registry, self.stopping.is_set)
        self.address = ""
        """HOST:PORT that is listened on, once started."""
        self._http = http
        self._insecure = insecure
        self._keys = keys
        self._server: HttpServer | None = None
        self._unwatch: Callable[[], None] | None = None
        self._stop_at = 0.0
        self._started = False
        self._counting = _Counting(metrics.counter(self.registry, "telemetry_log_lines_total"))
        self._export()

    @classmethod
    def from_args(cls, name: str, args: argparse.Namespace, *, keys: bool = False) -> Self:
        """A service by the options of :data:`telemetry.options.COMMON`."""
        return cls(
            name,
            args.http,
            log_level=args.log_level,
            log_format=args.log_format,
            drain_timeout_s=args.drain_timeout,
            insecure=args.insecure,
            keys=keys,
        )

    def check(self, name: str, check: Callable[[], Check]) -> None:
        """Ask ``check`` for ``/health``, ``/healthz`` and ``/readyz``; it reads fields and does no I/O."""
        self.health.add(name, check)

    def route(self, path: str, answer: Callable[[], Any]) -> None:
        """``GET path`` answers ``answer()`` as JSON; it runs in an HTTP thread."""
        self.http_app.route(path, answer)

    def mount(self, prefix: str, app: WSGIApplication) -> None:
        """A WSGI application for every path at and below ``prefix``."""
        self.http_app.mount(prefix, app)

    def start(self) -> None:
        """Watch signals (in the main thread) and listen."""
        if self._started:
            return
        self._started = True
        if threading.current_thread() is threading.main_thread():
            self._unwatch = watch(StopRequest(self._asked_to_stop, self._asked_again))
        if self._http:
            sock = listening_socket(self._http, "--http", insecure=self._insecure, keys=self._keys)
            self._server = HttpServer(self.http_app, sock)
            self._server.start()
            self.address = self._server.address
            self.log.info("listening", extra={"address": self.address})

    def stop(self) -> None:
        """Set ``stopping``, close the HTTP server and hand the signals back. May be called twice."""
        self.stopping.set()
        if self._server is not None:
            self._server.stop()
            self._server = None
        if self._unwatch is not None:
            self._unwatch()
            self._unwatch = None
        logging.getLogger().removeHandler(self._counting)

    def drain_seconds_left(self) -> float:
        """Seconds that are left to finish work: ``drain_timeout_s`` until a stop is asked for, then falling to 0."""
        if not self._stop_at:
            return self.drain_timeout_s
        return max(0.0, self._stop_at + self.drain_timeout_s - time.monotonic())

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def _asked_to_stop(self, number: int) -> None:
        self._stop_at = time.monotonic()
        self.stopping.set()
        self.log.info(
            "stopping", extra={"signal": signal.Signals(number).name, "drain_timeout_s": self.drain_timeout_s}
        )

    def _asked_again(self, number: int) -> None:
        self.log.warning("ended at once by a second signal", extra={"signal": signal.Signals(number).name})
        sys.stderr.flush()
        os._exit(128 + number)

    def _export(self) -> None:
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        logging.getLogger().addHandler(self._counting)
        metrics.on_scrape(self.registry, self._samples)

    def _samples(self) -> Iterator[metrics.Sample]:
        yield "telemetry_build_info", (self.name, __version__), 1
        yield "telemetry_ready", (), float(not self.health.unready() and not self.stopping.is_set())
        for name, result in self.health.results().items():
            yield "telemetry_check_status", (name,), SEVERITY[result.status]


class _Counting(logging.Handler):
    """Counts log lines by level."""

    def __init__(self, lines: Any) -> None:
        super().__init__()
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.labels(record.levelname.lower()).inc()

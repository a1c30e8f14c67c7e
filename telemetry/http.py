"""The small HTTP server of every process: health, metrics and what the process adds.

waitress serves it: slow or silent clients cost a buffer and not one of its few threads, so a probe is answered
whatever else is connected; bodies are spooled to disk above 512 KiB, so memory stays bounded.
"""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Callable, Iterable
from typing import Any, Final
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import waitress
from prometheus_client import CollectorRegistry, make_wsgi_app
from waitress import wasyncore

from telemetry.health import Health

log = logging.getLogger(__name__)

THREADS: Final = 4
CONNECTIONS_MAX: Final = 100
IDLE_SECONDS: Final = 60
BODY_BYTES_MAX: Final = 16 << 30
"""Bodies are spooled to disk; an application that takes uploads sets its own, lower limit."""

_REASONS: Final = {200: "200 OK", 404: "404 Not Found", 405: "405 Method Not Allowed", 503: "503 Service Unavailable"}


class Application:
    """The WSGI application: exact paths for answers, prefixes for whole applications."""

    def __init__(self, health: Health, registry: CollectorRegistry, stopping: Callable[[], bool]) -> None:
        self._health = health
        self._stopping = stopping
        self._metrics = make_wsgi_app(registry)
        self._routes: dict[str, Callable[[], Any]] = {}
        self._mounts: dict[str, WSGIApplication] = {}

    def route(self, path: str, answer: Callable[[], Any]) -> None:
        """``GET path`` answers what ``answer()`` returns, as JSON."""
        self._routes[path] = answer

    def mount(self, prefix: str, app: WSGIApplication) -> None:
        """Requests at and below ``prefix`` go to ``app``, with their path as it is."""
        self._mounts[prefix.rstrip("/")] = app

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "/")
        for prefix, app in self._mounts.items():
            if path == prefix or path.startswith(prefix + "/"):
                return app(environ, start_response)
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            status, body = 405, {"error": "only GET is answered here"}
        elif path == "/metrics":
            return self._metrics(environ, start_response)
        else:
            status, body = self._answer(path)
        data = json.dumps(body, default=str).encode() + b"\n"
        headers = [
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(data))),
            ("Cache-Control", "no-store"),
        ]
        if status == 405:
            headers.append(("Allow", "GET, HEAD"))
        start_response(_REASONS[status], headers)
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [data]

    def _answer(self, path: str) -> tuple[int, Any]:
        if path == "/health":
            report = self._health.report()
            return (503 if report["status"] == "unhealthy" else 200), report
        if path == "/healthz":
            dead = self._health.dead()
            return (503, {"status": "dead", "reasons": dead}) if dead else (200, {"status": "alive"})
        if path == "/readyz":
            reasons = self._health.unready()
            if self._stopping():
                reasons["stopping"] = "the process is finishing its work and will end"
            return (503, {"status": "not ready", "reasons": reasons}) if reasons else (200, {"status": "ready"})
        if path in self._routes:
            try:
                return 200, self._routes[path]()
            except Exception:
                log.exception("a page failed", extra={"path": path})
                return 503, {"error": "this page failed; the log says why"}
        return 404, {
            "error": f"nothing at {path}",
            "paths": ["/health", "/healthz", "/readyz", "/metrics", *self._routes],
        }


class HttpServer:
    """Serves a WSGI application on one listening socket from threads of its own."""

    def __init__(self, app: WSGIApplication, sock: socket.socket, threads: int = THREADS) -> None:
        self._map: dict[int, Any] = {}
        self._stopped = threading.Event()
        self._server = waitress.create_server(
            app,
            map=self._map,
            sockets=[sock],
            threads=threads,
            ident="",
            connection_limit=CONNECTIONS_MAX,
            channel_timeout=IDLE_SECONDS,
            max_request_body_size=BODY_BYTES_MAX,
            clear_untrusted_proxy_headers=True,
        )
        host, port = sock.getsockname()[:2]
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop listening and close every connection; waits at most a second for running requests."""
        if self._stopped.is_set():
            return
        self._stopped.set()
        if self._thread.is_alive():
            self._server.pull_trigger()
            self._thread.join(1.0)
        self._server.task_dispatcher.shutdown(timeout=1)
        wasyncore.close_all(self._map, ignore_all=True)

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                wasyncore.loop(timeout=1.0, use_poll=True, map=self._map, count=1)
            except OSError:
                log.exception("the HTTP server's loop failed and goes on")

"""What happens around every request: its id, who asks, what is measured and logged, and the headers of every answer."""

from __future__ import annotations

import logging
import re
import time
from typing import Any, Final

from flask import Flask, Response, g, request
from prometheus_client import CollectorRegistry

from api.auth import Keys, admit
from api.settings import Settings
from telemetry import metrics
from telemetry.ids import unique_id

log = logging.getLogger(__name__)

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}$")

SECURITY_HEADERS: Final = (
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Permissions-Policy", "camera=(), geolocation=(), microphone=()"),
)
PAGE_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; font-src 'self'; "
    "connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
"""Content-Security-Policy of pages; answers that are data allow nothing at all."""
DATA_POLICY: Final = "default-src 'none'; frame-ancestors 'none'"


def required_scope(path: str, method: str) -> str:
    """What a key must allow for this request."""
    if path.endswith("/silence"):
        return "admin"
    if path.endswith("/graphql"):
        return "read"
    return "read" if method in ("GET", "HEAD", "OPTIONS") else "write"


class RequestMetrics:
    """Counters of requests by endpoint (the route's name, never the path: see telemetry.metrics)."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = metrics.counter(registry, "api_requests_total")
        self.seconds = metrics.histogram(registry, "api_request_seconds")
        self._children: dict[tuple[str, str, int], Any] = {}

    def observe(self, method: str, endpoint: str, status: int, seconds: float) -> None:
        key = (method, endpoint, status)
        child = self._children.get(key)
        if child is None:
            # Looking children up by label values takes longer than counting: keep them.
            child = (self.requests.labels(method, endpoint, str(status)), self.seconds.labels(endpoint))
            self._children[key] = child
        child[0].inc()
        child[1].observe(seconds)


_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def install(app: Flask, settings: Settings, registry: CollectorRegistry, keys: Keys | None) -> None:
    """Put it all around ``app``. ``app.extensions["keys"]`` may be replaced while serving (a reload)."""
    observed = RequestMetrics(registry)
    app.extensions["keys"] = keys

    @app.before_request
    def begin() -> None:
        g.started = time.perf_counter()
        given = request.headers.get("X-Request-Id", "")
        g.request_id = given if _REQUEST_ID.fullmatch(given) else unique_id()[:16]
        g.client = None
        path = request.path
        # A browser's preflight carries no key; pages hold no data and ask for the key themselves.
        if request.method == "OPTIONS" or not path.startswith(("/api/", "/graphql")):
            return
        scope = required_scope(path, request.method)
        g.client = admit(app.extensions["keys"], request, scope, in_query=path.endswith(("/stream", "/ws")))

    @app.after_request
    def end(response: Response) -> Response:
        headers = response.headers
        # Nobody else sets these, so they need no search for an earlier one: that is a tenth of a cached answer's time.
        headers.extend([("X-Request-Id", g.get("request_id", "")), *SECURITY_HEADERS])
        if "Content-Security-Policy" not in headers:
            page = response.mimetype == "text/html"
            headers["Content-Security-Policy"] = PAGE_POLICY if page else DATA_POLICY
        if request.is_secure:
            headers["Strict-Transport-Security"] = "max-age=31536000"
        seconds = time.perf_counter() - g.get("started", time.perf_counter())
        method = request.method if request.method in _METHODS else "OTHER"
        observed.observe(method, request.endpoint or "none", response.status_code, seconds)
        _log_request(response.status_code, seconds)
        return response


def _log_request(status: int, seconds: float) -> None:
    # A probe that is told "not ready" is no failure, and comes every few seconds.
    failed = status >= 500 and request.path.startswith("/api/")
    level = logging.WARNING if failed else logging.DEBUG
    if not log.isEnabledFor(level):
        return
    client = g.get("client")
    log.log(
        level,
        "request",
        extra={
            "request_id": g.get("request_id", ""),
            "method": request.method,
            "path": request.path,
            "status": status,
            "ms": round(seconds * 1000, 1),
            "client": client.name if client else "",
            "address": request.remote_addr,
        },
    )

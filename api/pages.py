"""Pages for machines and probes: /health, /healthz, /readyz, /metrics and /version."""

from __future__ import annotations

import platform
from typing import Any

from flask import Flask, Response, jsonify, request
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from telemetry import __version__
from telemetry.health import Health

PROBE_PATHS = ("/health", "/healthz", "/readyz", "/metrics")


def install(app: Flask, registry: CollectorRegistry, health: Health) -> None:
    """Register the pages."""

    def health_page() -> tuple[Response, int]:
        report = health.report()
        return _no_store(jsonify(report)), 503 if report["status"] == "unhealthy" else 200

    def alive() -> tuple[Response, int]:
        dead = health.dead()
        body: dict[str, Any] = {"status": "dead", "reasons": dead} if dead else {"status": "alive"}
        return _no_store(jsonify(body)), 503 if dead else 200

    def ready() -> tuple[Response, int]:
        reasons = health.unready()
        body: dict[str, Any] = {"status": "not ready", "reasons": reasons} if reasons else {"status": "ready"}
        return _no_store(jsonify(body)), 503 if reasons else 200

    def metrics_page() -> Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return _no_store(Response(encode(registry), content_type=content_type))

    def version() -> Response:
        return jsonify(
            {"service": "telemetry-api", "version": __version__, "api": "v1", "python": platform.python_version()}
        )

    app.add_url_rule("/health", "health", health_page)
    app.add_url_rule("/healthz", "healthz", alive)
    app.add_url_rule("/readyz", "readyz", ready)
    app.add_url_rule("/metrics", "metrics_page", metrics_page)
    app.add_url_rule("/version", "version", version)


def _no_store(response: Response) -> Response:
    response.headers["Cache-Control"] = "no-store"
    return response

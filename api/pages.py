"""Pages for machines and probes: /health, /healthz, /readyz, /metrics and /version."""

from __future__ import annotations

import platform
from typing import Any

from flask import Response, current_app, jsonify, request
from flask_smorest import Blueprint
from prometheus_client.exposition import choose_encoder

from api.described import described
from telemetry import __version__
from telemetry.health import Health

PROBE_PATHS = ("/health", "/healthz", "/readyz", "/metrics")

blueprint = Blueprint("pages", __name__, description="Health, metrics and version")

_OBJECT = {"type": "object"}


def _health() -> Health:
    found: Health = current_app.extensions["health"]
    return found


def _no_store(body: Any, status: int = 200) -> Response:
    response = body if isinstance(body, Response) else jsonify(body)
    response.status_code = status
    response.headers["Cache-Control"] = "no-store"
    return response


@blueprint.route("/health")
@blueprint.response(200, _OBJECT, description="healthy or degraded")
@blueprint.alt_response(503, schema=_OBJECT, content_type="application/json", description="unhealthy")
@described(blueprint, "health", "What this process and each part of the pipeline says about itself", security=[])
def health() -> Response:
    """`checks` tells of the store, the broker and the collectors, with a reason for whatever is not healthy."""
    report = _health().report()
    return _no_store(report, 503 if report["status"] == "unhealthy" else 200)


@blueprint.route("/healthz")
@blueprint.response(200, _OBJECT, description="alive")
@blueprint.alt_response(503, schema=_OBJECT, content_type="application/json", description="Only a restart can help")
@described(blueprint, "alive", "Whether this process is alive", security=[])
def alive() -> Response:
    """A part that is away makes a process unready, never dead."""
    dead = _health().dead()
    return _no_store({"status": "dead", "reasons": dead} if dead else {"status": "alive"}, 503 if dead else 200)


@blueprint.route("/readyz")
@blueprint.response(200, _OBJECT, description="ready")
@blueprint.alt_response(503, schema=_OBJECT, content_type="application/json", description="Not ready, with reasons")
@described(blueprint, "ready", "Whether requests may be sent here", security=[])
def ready() -> Response:
    """Ready means that the store answers: everything can then be read."""
    reasons = _health().unready()
    return _no_store(
        {"status": "not ready", "reasons": reasons} if reasons else {"status": "ready"}, 503 if reasons else 200
    )


@blueprint.route("/metrics")
@blueprint.response(200, {"type": "string"}, content_type="text/plain", description="Prometheus text")
@described(blueprint, "metrics", "Metrics of this process for Prometheus", security=[])
def metrics_page() -> Response:
    """In the Prometheus text format, or OpenMetrics by Accept."""
    encode, content_type = choose_encoder(request.headers.get("Accept", ""))
    return _no_store(Response(encode(current_app.extensions["registry"]), content_type=content_type))


@blueprint.route("/version")
@blueprint.response(200, _OBJECT, description="Versions")
@described(blueprint, "version", "What runs here", security=[])
def version() -> Response:
    """Versions of the software, the API and Python."""
    return jsonify(
        {"service": "telemetry-api", "version": __version__, "api": "v1", "python": platform.python_version()}
    )

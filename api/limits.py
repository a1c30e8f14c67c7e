"""Limits: how often a client may ask (flask-limiter), and conditional answers (ETag and 304)."""

from __future__ import annotations

from flask import Flask, Response, g, request
from flask_limiter import Limiter
from flask_limiter.util import get_remote_address
from limits import parse_many

from api.caching import add_etag
from api.pages import PROBE_PATHS
from api.settings import Settings
from telemetry.options import UsageError


def rate_text(text: str) -> str:
    """An option's rate limits such as ``600/minute`` or ``10/second;1000/hour``. Raises ``ValueError``."""
    try:
        parse_many(text.replace(";", ","))
    except ValueError:
        raise ValueError("is no rate such as 600/minute or 10/second;1000/hour") from None
    return text


def client_key() -> str:
    """Who a request is counted for: its key's name, else its address."""
    client = g.get("client")
    return f"key:{client.name}" if client is not None and client.name else f"address:{get_remote_address()}"


def install_limits(app: Flask, settings: Settings) -> None:
    """Rate limits where configured (counted in memory, or in Redis for several processes), and validators."""
    if settings.rate_limit or settings.write_rate_limit:
        _install_rates(app, settings)

    @app.after_request
    def validators(response: Response) -> Response:
        if request.method not in ("GET", "HEAD") or response.status_code != 200 or response.is_streamed:
            return response
        if response.headers.get("Cache-Control") == "no-store":
            return response
        if "ETag" not in response.headers:
            add_etag(response)
        response.headers.setdefault("Cache-Control", "no-cache")
        if "Vary" not in response.headers:
            response.headers["Vary"] = "Accept"
        else:
            response.vary.add("Accept")
        if "If-None-Match" in request.headers or "If-Modified-Since" in request.headers:
            return response.make_conditional(request)
        return response


def _install_rates(app: Flask, settings: Settings) -> None:
    def limits() -> str:
        wrote = request.method not in ("GET", "HEAD", "OPTIONS")
        return (settings.write_rate_limit if wrote else "") or settings.rate_limit or "1000000000/second"

    limiter = Limiter(
        client_key,
        application_limits=[limits],
        headers_enabled=True,
        storage_uri=settings.redis_url or "memory://",
        # Redis away: count here meanwhile, rather than refuse or let everything through.
        in_memory_fallback_enabled=bool(settings.redis_url),
        strategy="moving-window",
    )
    try:
        limiter.init_app(app)
    except Exception as error:
        raise UsageError(f"--redis-url: cannot be used for rate limits: {error}") from None

    @limiter.request_filter
    def probes_are_free() -> bool:
        return request.path in PROBE_PATHS or request.method == "OPTIONS"

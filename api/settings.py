"""What the API is configured with: one frozen value, made from the command line or by a test."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

MIB: Final = 1 << 20


@dataclass(frozen=True)
class Settings:
    """Everything :func:`api.app.create_app` needs to know. Units are in the names."""

    topic: str = "gpu-telemetry"
    group: str = "clickhouse"
    """The collectors' group on the broker: its lag is the pipeline's lag."""

    keys_file: Path | None = None
    """API keys (see :mod:`api.auth`); None = open to everyone who can connect."""
    cors_origins: tuple[str, ...] = ()
    """Origins that browsers may call from; ``*`` is all of them."""
    trusted_proxies: int = 0
    """Reverse proxies in front whose X-Forwarded-* headers are believed."""

    rate_limit: str = ""
    """Requests a client (key, else address), such as ``600/minute``; "" = none."""
    write_rate_limit: str = ""
    redis_url: str = ""
    """Shared by several API processes for rate limits and cached answers; "" = this process's memory."""

    cache_seconds: float = 1.0
    """Age up to which the GPU list, latest values and the like are answered again; 0 = never."""
    body_bytes_max: int = 16 * MIB
    """Largest JSON or NDJSON body."""
    upload_bytes_max: int = 2048 * MIB
    """Largest CSV upload."""
    query_seconds_max: float = 20.0
    """The store gives up on an ordinary query after this (504)."""
    export_seconds_max: float = 3600.0
    """The same for streamed exports."""
    scan_rows_max: int = 500_000_000
    """A query that would read more rows is refused (422)."""
    live_clients_max: int = 1000
    live_buffer_rows: int = 10_000
    """Rows kept for one slow live client; older ones are dropped and it is told how many."""
    publish_seconds_max: float = 5.0
    """Longest wait for the broker's credit and its acknowledgement (503 after it)."""

    graphql: bool = False
    rules_file: Path | None = None
    """Alert rules; None = the ones that come with the package."""
    alert_webhook: str = ""
    alertmanager_url: str = ""
    alert_seconds: float = 30.0
    """How often alert rules are evaluated; 0 = never."""
    state_dir: Path | None = None
    """Where silences and uploads are remembered across restarts; None = in memory."""

"""The endpoints, one module a noun."""

from __future__ import annotations

from typing import Final

from flask_smorest import Blueprint

from api.resources import alerts, events, fleet, gpus, hosts, ingest, live, metrics, series, stats, telemetry

BLUEPRINTS: Final[tuple[Blueprint, ...]] = (
    gpus.blueprint,
    telemetry.blueprint,
    series.blueprint,
    fleet.blueprint,
    hosts.blueprint,
    metrics.blueprint,
    stats.blueprint,
    events.blueprint,
    alerts.blueprint,
    live.blueprint,
    ingest.blueprint,
)

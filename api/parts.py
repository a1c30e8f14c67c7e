"""The parts of the pipeline, one entry a process name: its state, since when, and how fast it works.

Streamers and collectors are known by their connections to the broker, which counts those of one name together: what
only talks to a part that is away is not listed. Rates are those between the monitor's last two looks.
"""

from __future__ import annotations

import time
from typing import Any

from api.monitor import Finding, Monitor
from api.times import format_ms
from telemetry.health import Check, Health

SILENT_SECONDS = 15.0
"""A client that sends nothing for longer than this, heartbeats included, hangs."""


def parts(monitor: Monitor, health: Health, clock: Any = time.time) -> list[dict[str, Any]]:
    """Streamers, broker, collectors, other readers, store and API; as many as are known."""
    now_ms = int(clock() * 1000)
    broker, store = monitor.broker, monitor.store
    found = [
        _process(
            "broker",
            "zmqbroker",
            monitor.check_broker(),
            _since(now_ms, (broker.value or {}).get("uptime_seconds")),
            {"rows_per_second": monitor.topic_stats().get("throughput_rows_per_sec")},
        ),
        _process(
            "store",
            "clickhouse",
            monitor.check_store(),
            _since(now_ms, (store.value or {}).get("uptime_seconds")),
            {"rows_per_second": _rate(monitor.store_before, store, "samples_rows")},
        ),
        _process("api", "telemetry-api", Check(), _since(now_ms, health.uptime_seconds), {}),
    ]
    before = {_key(client): client for client in (monitor.broker_before.value or {}).get("clients", ())}
    for client in (broker.value or {}).get("clients", ()):
        found.append(_client(client, before.get(_key(client)), monitor, now_ms))
    order = ("streamer", "broker", "collector", "reader", "store", "api")
    return sorted(found, key=lambda one: (order.index(one["part"]), one["name"]))


def _client(client: dict[str, Any], before: dict[str, Any] | None, monitor: Monitor, now_ms: int) -> dict[str, Any]:
    """One name that the broker knows; readers are consumers of other groups, such as live tails and archives."""
    produces = client["kind"] == "producer"
    part = "streamer" if produces else "collector" if client["group"] == monitor.group else "reader"
    silent = client["silent_seconds"]
    hangs = silent > SILENT_SECONDS
    check = Check("degraded", f"nothing was heard of it for {silent:.0f} s") if hangs else Check()
    counted = "received_bytes" if produces else "deliveries"
    seconds = monitor.broker.at - monitor.broker_before.at
    grown = client[counted] - before[counted] if before is not None else None
    # A new conversation counts from zero.
    rate = round(grown / seconds, 1) if grown is not None and grown >= 0 and seconds > 0 else None
    return {
        **_process(
            part,
            client["name"] or client["kind"],
            check,
            _since(now_ms, client["connected_seconds"]),
            {"bytes_per_second" if produces else "deliveries_per_second": rate},
        ),
        "connections": client["connections"],
        "topic": client["topic"],
        "group": client["group"],
    }


def _process(part: str, name: str, check: Check, since: str | None, rates: dict[str, Any]) -> dict[str, Any]:
    return {
        "part": part,
        "name": name,
        "state": check.status,
        "reason": check.reason,
        "since": since,
        "rates": rates,
        "connections": None,
        "topic": None,
        "group": None,
    }


def _key(client: dict[str, Any]) -> tuple[str, ...]:
    return (client["kind"], client["topic"], client["group"], client["name"])


def _since(now_ms: int, seconds: float | None) -> str | None:
    return None if seconds is None else format_ms(now_ms - round(seconds * 1000))


def _rate(before: Finding, after: Finding, name: str) -> float | None:
    """How fast a count grew between two looks; None if one of them found nothing."""
    if before.value is None or after.value is None or after.at <= before.at:
        return None
    return round(max(0, after.value[name] - before.value[name]) / (after.at - before.at), 1)

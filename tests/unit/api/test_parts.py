"""The list of the pipeline's parts."""

from __future__ import annotations

from typing import Any

from api.monitor import Monitor
from api.parts import parts
from telemetry.health import Health

NOW = 1_752_871_354.0


def client(
    kind: str, name: str, *, group: str = "", seconds: float, silent: float = 0.1, **counts: int
) -> dict[str, Any]:
    return {
        "kind": kind,
        "topic": "gpu-telemetry",
        "group": group,
        "name": name,
        "connections": 2,
        "connected_seconds": seconds,
        "silent_seconds": silent,
        "received_bytes": 0,
        "deliveries": 0,
        **counts,
    }


class Pipeline:
    """A broker and a store whose answers a test sets, looked at every ten seconds."""

    def __init__(self) -> None:
        self.now = 0.0
        self.clients: list[dict[str, Any]] = []
        self.stored = 0
        self.monitor = Monitor(
            lambda: {"samples_rows": self.stored, "uptime_seconds": 60},
            lambda: {"topics": {}, "uptime_seconds": 120.0, "clients": self.clients},
            "gpu-telemetry",
            "clickhouse",
            clock=lambda: self.now,
        )

    def look(self) -> None:
        self.now += 10
        self.monitor.look_at_broker()
        self.monitor.look_at_store()

    def parts(self) -> dict[str, dict[str, Any]]:
        health = Health("telemetry-api", "1", clock=lambda: NOW)
        return {one["name"]: one for one in parts(self.monitor, health, clock=lambda: NOW)}


def test_every_part_tells_its_state_since_when_and_its_rates() -> None:
    pipeline = Pipeline()
    pipeline.clients = [
        client("producer", "streamer-csv", seconds=30, received_bytes=1_000),
        client("consumer", "collector-1", group="clickhouse", seconds=20, deliveries=5),
    ]
    pipeline.look()
    first = pipeline.parts()
    assert first["streamer-csv"]["rates"] == {"bytes_per_second": None}
    pipeline.clients = [
        client("producer", "streamer-csv", seconds=40, received_bytes=6_000),
        client("consumer", "collector-1", group="clickhouse", seconds=30, deliveries=25),
    ]
    pipeline.stored = 2_000
    pipeline.look()
    found = pipeline.parts()
    assert [one["part"] for one in found.values()] == ["streamer", "broker", "collector", "store", "api"]
    assert found["streamer-csv"]["since"] == "2025-07-18T20:41:54.000Z"
    assert found["streamer-csv"]["connections"] == 2
    assert found["streamer-csv"]["rates"] == {"bytes_per_second": 500.0}
    assert found["zmqbroker"]["since"] == "2025-07-18T20:40:34.000Z"
    assert found["clickhouse"]["rates"] == {"rows_per_second": 200.0}
    assert {one["state"] for one in found.values()} == {"healthy"}


def test_a_client_that_went_silent_is_degraded_and_one_of_another_group_is_a_reader() -> None:
    pipeline = Pipeline()
    pipeline.clients = [
        client("consumer", "tail", group="api-live-1", seconds=5),
        client("producer", "streamer-csv", seconds=30, silent=40),
    ]
    pipeline.look()
    found = pipeline.parts()
    assert found["tail"]["part"] == "reader"
    assert found["streamer-csv"]["state"] == "degraded"
    assert "40 s" in found["streamer-csv"]["reason"]


def test_a_conversation_that_began_anew_has_no_rate_until_it_is_seen_twice() -> None:
    pipeline = Pipeline()
    pipeline.clients = [client("producer", "streamer-csv", seconds=30, received_bytes=1_000)]
    pipeline.look()
    pipeline.clients = [client("producer", "streamer-csv", seconds=1, received_bytes=10)]
    pipeline.look()
    assert pipeline.parts()["streamer-csv"]["rates"] == {"bytes_per_second": None}


def test_parts_are_told_while_broker_and_store_are_away() -> None:
    monitor = Monitor(dict, lambda: None, "gpu-telemetry", "clickhouse")
    monitor.look_at_broker()
    found = parts(monitor, Health("telemetry-api", "1"))
    assert [(one["part"], one["state"], one["since"] is None) for one in found] == [
        ("broker", "degraded", True),
        ("store", "degraded", True),
        ("api", "healthy", False),
    ]

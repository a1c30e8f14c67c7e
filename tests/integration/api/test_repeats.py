"""Repeats of a request against a real broker: whatever the API forgot, the broker tells a batch that it has."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from api.broker import Broker
from tests.helpers.api import app_on
from tests.helpers.api_fakes import RecordingStore
from tests.helpers.processes import RunningProcess, free_port
from tests.helpers.waiting import eventually

TOPIC = "gpu-telemetry"
ITEM = {"metric_name": "gpu_temp", "value": 41, "gpu_id": "GPU-r"}
CSV = b"timestamp,metric_name,uuid,value\n" + b"2025-07-18T20:42:34Z,DCGM_FI_DEV_GPU_TEMP,GPU-r,41\n" * 100


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    data, http = f"tcp://127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    arguments = ["serve", "--data-dir", str(tmp_path / "broker"), "--bind", data, "--http", http]
    with RunningProcess(
        "zmqbroker.cli", [*arguments, "--admin-bind", f"tcp://127.0.0.1:{free_port()}"], tmp_path, name="broker"
    ) as process:
        process.wait_ready()
        found = Broker(data, f"http://{http}", TOPIC)
        try:
            yield found
        finally:
            found.close(0)


def stored(broker: Broker) -> int:
    """Rows in the broker's log."""
    found = broker.stats()
    assert found is not None
    return int(found["topics"].get(TOPIC, {}).get("published_rows", 0))


class Replica:
    """An API process that shares nothing with another but the broker."""

    def __init__(self, broker: Broker, state_dir: Path) -> None:
        state_dir.mkdir(exist_ok=True)
        self.app = app_on(RecordingStore(), broker, state_dir=state_dir)
        self.client = self.app.test_client()

    def write(self) -> Any:
        return self.client.post("/api/v1/telemetry", json=[ITEM], headers={"Idempotency-Key": "w"}).get_json()

    def upload(self) -> Any:
        form = {"file": (BytesIO(CSV), "a.csv")}
        path = "/api/v1/csv/upload?timestamps=original"
        accepted = self.client.post(path, data=form, headers={"Idempotency-Key": "u"}).get_json()

        def ended() -> Any:
            found = self.client.get(f"/api/v1/csv/uploads/{accepted['id']}").get_json()
            return found if found["status"] in ("done", "failed") else None

        return eventually(ended, 30, "the upload ends")

    def close(self) -> None:
        self.app.extensions["uploads"].close(5)
        self.app.extensions["submissions"].close()


def test_r08_a_request_repeated_at_another_replica_or_after_a_restart_stores_nothing_again(
    broker: Broker, tmp_path: Path
) -> None:
    first = Replica(broker, tmp_path / "a")
    written, uploaded = first.write(), first.upload()
    assert (written["status"], written["durable_rows"]) == ("done", 1)
    assert (uploaded["status"], uploaded["durable_rows"]) == ("done", 100)
    assert stored(broker) == 101
    assert first.write()["id"] == written["id"]
    first.close()
    again = Replica(broker, tmp_path / "a")
    assert again.write() == written
    assert again.upload()["id"] == uploaded["id"]
    again.close()
    other = Replica(broker, tmp_path / "b")
    assert other.write()["status"] == "done"
    assert other.upload()["status"] == "done"
    other.close()
    assert stored(broker) == 101

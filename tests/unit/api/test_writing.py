"""Writing: what becomes of each item, and of a request that is sent twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from api.errors import Problem
from api.submissions import KEPT_SECONDS, Submissions
from telemetry.batch import BatchDecoder
from tests.helpers.api import app_on
from tests.helpers.api_fakes import FakeBroker, RecordingStore

GOOD = {"metric_name": "DCGM_FI_DEV_GPU_TEMP", "value": 41.5, "gpu_id": "GPU-1", "timestamp": "2025-07-18T20:42:34Z"}


@pytest.fixture
def broker() -> FakeBroker:
    return FakeBroker()


@pytest.fixture
def client(broker: FakeBroker) -> FlaskClient:
    return app_on(RecordingStore(), broker, publish_seconds_max=0.1).test_client()


def rows(broker: FakeBroker) -> list[tuple[str, str, int, float]]:
    found = []
    for payload in broker.batches:
        batch = BatchDecoder().decode(payload)
        for i in range(batch.rows):
            device = batch.dictionary.devices[batch.device_code[i]]
            metric = batch.dictionary.metrics[batch.metric_code[i]]
            found.append((device.gpu_id, metric, int(batch.timestamp_ns[i]) // 10**6, float(batch.value[i])))
    return found


def test_an_item_becomes_a_row_of_a_batch(client: FlaskClient, broker: FakeBroker) -> None:
    answer = client.post("/api/v1/telemetry", json=[GOOD])
    assert answer.status_code == 202
    document = answer.get_json()
    assert (document["status"], document["accepted_rows"], document["durable_rows"]) == ("done", 1, 1)
    assert rows(broker) == [("GPU-1", "DCGM_FI_DEV_GPU_TEMP", 1_752_871_354_000, 41.5)]
    assert client.get(answer.headers["Location"]).get_json() == document


@pytest.mark.parametrize(
    ("item", "gpu_id", "metric", "value"),
    [
        ({"metric_name": "gpu_temp", "value": 1, "uuid": "GPU-9"}, "GPU-9", "DCGM_FI_DEV_GPU_TEMP", 1),
        ({"metric_name": "x", "value": 1, "hostname": "h", "gpu_index": 3}, "h:3", "x", 1),
        ({"metric_name": "x", "value": 1, "gpu_id": "h:3"}, "h:3", "x", 1),
        (
            {"metric_name": "DCGM_FI_DEV_FB_USED", "value": 1 << 30, "unit": "bytes", "gpu_id": "g"},
            "g", "DCGM_FI_DEV_FB_USED", 1024,
        ),
    ],
)  # fmt: skip
def test_names_units_and_identities_are_made_canonical(
    client: FlaskClient, broker: FakeBroker, item: Any, gpu_id: str, metric: str, value: float
) -> None:
    assert client.post("/api/v1/telemetry", json=item).status_code == 202
    ((found_gpu, found_metric, _, found_value),) = rows(broker)
    assert (found_gpu, found_metric, found_value) == (gpu_id, metric, value)


def test_bad_items_are_named_and_the_others_are_stored(client: FlaskClient, broker: FakeBroker) -> None:
    items = [
        GOOD,
        {**GOOD, "value": "41"},
        {**GOOD, "value": True},
        {**GOOD, "metric_name": ""},
        {**GOOD, "gpu_id": ""},
        {**GOOD, "timestamp": "soon"},
        "text",
        {**GOOD, "labels": [1]},
        {**GOOD, "pod": "x" * 2000},
        {**GOOD, "value": 42},
    ]
    document = client.post("/api/v1/telemetry", json=items).get_json()
    assert (document["accepted_rows"], document["rejected_rows"]) == (2, 8)
    assert [error["index"] for error in document["errors"]] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert all(error["message"] for error in document["errors"])
    assert [row[3] for row in rows(broker)] == [41.5, 42]


def test_ndjson_is_taken_line_by_line(client: FlaskClient, broker: FakeBroker) -> None:
    body = json.dumps(GOOD) + "\n{broken\n\n" + json.dumps({**GOOD, "value": 1})
    answer = client.post("/api/v1/telemetry", data=body, content_type="application/x-ndjson")
    assert answer.status_code == 202
    assert [error["index"] for error in answer.get_json()["errors"]] == [1]
    assert [row[3] for row in rows(broker)] == [41.5, 1]


@pytest.mark.parametrize("body", ["", "[]", "{", "null", "3", '"x"', "[1]", '{"telemetry": []}'])
def test_a_body_without_a_good_item_is_422(client: FlaskClient, broker: FakeBroker, body: str) -> None:
    answer = client.post("/api/v1/telemetry", data=body, content_type="application/json")
    assert answer.status_code == 422
    assert not broker.batches


def test_other_types_and_bodies_too_large_are_refused(broker: FakeBroker) -> None:
    client = app_on(RecordingStore(), broker, body_bytes_max=100).test_client()
    assert client.post("/api/v1/telemetry", data="a=1", content_type="text/plain").status_code == 415
    assert client.post("/api/v1/telemetry", json=[GOOD] * 10).status_code == 413
    assert client.post("/api/v1/csv/upload", data="x", content_type="image/png").status_code == 415


def test_a_repeat_under_the_same_key_stores_nothing_again(client: FlaskClient, broker: FakeBroker) -> None:
    """A client that lost the answer sends the request again: the rows must not be there twice."""
    headers = {"Idempotency-Key": "once"}
    first = client.post("/api/v1/telemetry", json=[GOOD], headers=headers)
    again = client.post("/api/v1/telemetry", json=[GOOD], headers=headers)
    assert again.status_code == 202
    assert again.get_json() == first.get_json()
    assert len(broker.batches) == 1
    other = client.post("/api/v1/telemetry", json=[{**GOOD, "value": 2}], headers=headers)
    assert other.status_code == 422
    assert "Idempotency-Key" in other.get_json()["detail"]
    assert client.post("/api/v1/telemetry", json=[GOOD], headers={"Idempotency-Key": "a b"}).status_code == 422


def test_without_a_broker_writing_is_503_at_once_and_the_key_can_be_used_again(
    client: FlaskClient, broker: FakeBroker
) -> None:
    broker.away = True
    headers = {"Idempotency-Key": "later"}
    answer = client.post("/api/v1/telemetry", json=[GOOD], headers=headers)
    assert answer.status_code == 503
    assert answer.headers["Retry-After"]
    broker.away = False
    assert client.post("/api/v1/telemetry", json=[GOOD], headers=headers).status_code == 202
    assert len(broker.batches) == 1


def test_an_unconfirmed_write_is_503_and_its_repeat_finds_it(client: FlaskClient, broker: FakeBroker) -> None:
    """The producer keeps what was not acknowledged: a repeat under its key must wait for that and not send more."""
    broker.confirms = False
    headers = {"Idempotency-Key": "slow"}
    answer = client.post("/api/v1/telemetry", json=[GOOD], headers=headers)
    assert answer.status_code == 503
    submission = answer.get_json()["submission"]
    assert client.get(f"/api/v1/csv/uploads/{submission}").get_json()["status"] == "running"
    assert client.post("/api/v1/telemetry", json=[GOOD], headers=headers).status_code == 503
    broker.receipts[0].done = True
    done = client.post("/api/v1/telemetry", json=[GOOD], headers=headers)
    assert (done.status_code, done.get_json()["status"]) == (202, "done")
    assert len(broker.batches) == 1


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.csv", b"", "header"),
        ("other.csv", b"a,b,c\n1,2,3\n", "identifies a GPU"),
        ("image.csv", b"\x89PNG\r\n\x1a\n\x00\xff\xfe", ""),
    ],
)
def test_a_file_that_is_no_telemetry_is_refused_at_once_by_name(
    client: FlaskClient, name: str, content: bytes, words: str
) -> None:
    from io import BytesIO

    answer = client.post("/api/v1/csv/upload", data={"file": (BytesIO(content), name)})
    assert answer.status_code == 422
    detail = answer.get_json()["detail"]
    assert name in detail
    assert words in detail
    assert "/tmp" not in detail
    assert client.post("/api/v1/csv/upload", data={"other": (BytesIO(b""), "x")}).status_code == 422


def test_a_restart_forgets_no_submission(broker: FakeBroker, tmp_path: Path) -> None:
    """The same key and body find the first answer again, another body is refused, in the next process too."""
    headers = {"Idempotency-Key": "once"}
    first = app_on(RecordingStore(), broker, state_dir=tmp_path)
    answer = first.test_client().post("/api/v1/telemetry", json=[GOOD], headers=headers)
    first.extensions["submissions"].close()
    client = app_on(RecordingStore(), broker, state_dir=tmp_path).test_client()
    assert client.get(answer.headers["Location"]).get_json() == answer.get_json()
    assert client.post("/api/v1/telemetry", json=[GOOD], headers=headers).get_json() == answer.get_json()
    assert client.post("/api/v1/telemetry", json=[{**GOOD, "value": 2}], headers=headers).status_code == 422
    assert len(broker.batches) == 1


def test_a_write_that_a_kill_cut_off_is_sent_again_under_its_old_address(broker: FakeBroker, tmp_path: Path) -> None:
    """Nobody knows whether the broker has it: sent again in the same session and order, the broker tells a repeat."""
    headers = {"Idempotency-Key": "cut"}
    broker.confirms = False
    killed = app_on(RecordingStore(), broker, state_dir=tmp_path, publish_seconds_max=0.1).test_client()
    submission = killed.post("/api/v1/telemetry", json=[GOOD], headers=headers).get_json()["submission"]
    broker.confirms = True
    client = app_on(RecordingStore(), broker, state_dir=tmp_path).test_client()
    assert client.get(f"/api/v1/csv/uploads/{submission}").get_json()["status"] == "failed"
    assert client.post("/api/v1/telemetry", json=[GOOD], headers=headers).get_json()["status"] == "done"
    first, again = (BatchDecoder().decode(payload) for payload in broker.batches)
    assert first.session == again.session


def test_r08_replicas_publish_the_same_write_in_the_same_session(tmp_path: Path) -> None:
    """Two replicas share nothing but the broker: it must be able to tell that both got the same request."""
    sessions = set()
    for replica in ("a", "b"):
        broker = FakeBroker()
        (tmp_path / replica).mkdir()
        client = app_on(RecordingStore(), broker, state_dir=tmp_path / replica).test_client()
        client.post("/api/v1/telemetry", json=[GOOD], headers={"Idempotency-Key": "once"})
        sessions.add(BatchDecoder().decode(broker.batches[0]).session)
    assert len(sessions) == 1


def test_written_rows_count_this_run_alone(tmp_path: Path) -> None:
    path = tmp_path / "submissions.sqlite"
    before = Submissions(path)
    submission, _ = before.begin("json")
    submission.rows = 5
    before.save(submission)
    assert before.written_rows() == {"json": 5, "csv": 0}
    before.close()
    assert Submissions(path).written_rows() == {"json": 0, "csv": 0}


def test_submissions_are_forgotten_after_a_day_and_their_rows_still_count(tmp_path: Path) -> None:
    now = [1_000.0]
    submissions = Submissions(tmp_path / "submissions.sqlite", clock=lambda: now[0])
    submission, _ = submissions.begin("json", key="k", digest="d")
    submission.rows = 5
    now[0] += KEPT_SECONDS + 1
    again, new = submissions.begin("json", key="k", digest="other")
    assert new
    assert again.id != submission.id
    assert submissions.written_rows() == {"json": 5, "csv": 0}
    with pytest.raises(Problem):
        submissions.get(submission.id)

"""Uploads over HTTP: 202 and a job that can be asked for; nothing is lost by a kill in between."""

from __future__ import annotations

import gzip
import hashlib
import json
import urllib.error
import urllib.request

import pytest

from tests.helpers.processes import RunningProcess, get_json
from tests.helpers.producing import batches_in, conflicts_in, rows_in
from tests.helpers.waiting import eventually
from tests.integration.producers.test_producers_cli import command, dcgm_file


@pytest.fixture
def broker(tmp_path):
    directory = tmp_path / "broker"
    directory.mkdir()
    return directory


def server(tmp_path, broker, *args, name="serve"):
    line = command("serve", *args, broker=broker)[3:]
    line[line.index("off")] = "127.0.0.1:0"
    return RunningProcess("producers.cli", line, tmp_path / name, name=name)


def post(url, body, content_type="text/csv", **headers):
    request = urllib.request.Request(url, body, {"Content-Type": content_type, **headers}, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def multipart(body, field="file"):
    edge = b"--edge\r\n"
    head = b'Content-Disposition: form-data; name="%s"; filename="up.csv"\r\n\r\n' % field.encode()
    return edge + head + body + b"\r\n--edge--\r\n"


def done(base, answer):
    def find():
        job = get_json(base + answer["status_url"])
        return job if job["status"] in ("done", "failed") else None

    return eventually(find, 20, "the upload is done")


def test_uploads_reach_the_broker_and_bad_ones_are_refused(tmp_path, broker):
    expected = dcgm_file(tmp_path / "a.csv", 3000, {10: "ragged"})
    body = (tmp_path / "a.csv").read_bytes()
    with server(tmp_path, broker, "--upload-max", "1MB") as running:
        base = running.wait_ready()
        url = f"{base}/api/v1/csv/upload"
        status, answer = post(url, multipart(body), "multipart/form-data; boundary=edge")
        assert (status, answer["filename"]) == (202, "up.csv")
        job = done(base, answer)
        assert (job["status"], job["rows_acked"], job["rejected"]) == ("done", 2999, {"ragged": 1})
        assert rows_in(batches_in(broker)) == expected
        status, answer = post(url, gzip.compress(body))
        assert status == 202
        assert done(base, answer)["rows_acked"] == 2999
        for bad, code, complaint in (
            (b"", 400, "no file"),
            (b"a,b\n1,2\n", 400, "identifies a GPU"),
            (bytes(1_100_000), 413, "above"),
        ):
            status, answer = post(url, bad)
            assert status == code
            assert complaint in answer["detail"]
        assert post(url, multipart(body, "other"), "multipart/form-data; boundary=edge")[0] == 400
        assert post(url + "?timestamps=later", body)[0] == 400
        assert get_json(f"{base}/api/v1/csv/uploads/nothing")["status"] == 404
        assert get_json(f"{base}/api/v1/status")["rows_acked"] == 5998
        assert running.stop() == 0


def test_a_key_with_the_scope_write_is_asked_for(tmp_path, broker):
    keys = tmp_path / "keys"
    reader, writer = (hashlib.sha256(key).hexdigest() for key in (b"reader", b"writer"))
    keys.write_text(f"r read {reader}\nw read,write {writer}\n")
    dcgm_file(tmp_path / "a.csv", 10)
    body = (tmp_path / "a.csv").read_bytes()
    with server(tmp_path, broker, "--keys-file", keys) as running:
        url = f"{running.wait_ready()}/api/v1/csv/upload"
        assert post(url, body)[0] == 401
        assert post(url, body, **{"X-API-Key": "reader"})[0] == 401
        assert post(url, body, Authorization="Bearer writer")[0] == 202


def test_r08_an_upload_that_was_answered_202_survives_a_kill(tmp_path, broker):
    expected = dcgm_file(tmp_path / "a.csv", 5000)
    (broker / "slow").write_text("0.02")
    with server(tmp_path, broker, "--batch-rows", "50") as running:
        status, _ = post(f"{running.wait_ready()}/api/v1/csv/upload", (tmp_path / "a.csv").read_bytes())
        assert status == 202
        eventually(lambda: len(list(broker.iterdir())) > 5, 20, "rows arrive")
        running.kill()
    (broker / "slow").unlink()
    with server(tmp_path, broker, name="again") as running:
        running.wait_ready()
        eventually(lambda: sum(batch.rows for batch in batches_in(broker)) >= 5000, 20, "the rest arrives")
    assert rows_in(batches_in(broker)) == expected
    assert conflicts_in(broker) == []

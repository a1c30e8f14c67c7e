"""What keeps the API safe: keys, scopes, limits, headers, and clear failures."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from api.auth import Keys, new_key
from clickhouse.errors import OutcomeUnknown, StoreRefused
from telemetry.options import UsageError
from tests.helpers.api import app_on
from tests.helpers.api_fakes import FakeBroker, RecordingStore


@pytest.fixture
def keyed(tmp_path: Path) -> tuple[FlaskClient, dict[str, str]]:
    keys = {scope: new_key(scope, scope) for scope in ("read", "write", "admin")}
    (tmp_path / "keys").write_text("# our keys\n\n" + "\n".join(line for _, line in keys.values()))
    client = app_on(RecordingStore(), FakeBroker(), keys_file=tmp_path / "keys").test_client()
    return client, {scope: key for scope, (key, _) in keys.items()}


def test_without_a_key_nothing_is_told(keyed: tuple[FlaskClient, dict[str, str]]) -> None:
    client, _ = keyed
    for path in ("/api/v1/gpus", "/api/v1/stats", "/api/v1/telemetry", "/api/v1/swagger.json", "/api/v1/stream"):
        answer = client.get(path)
        assert answer.status_code == 401, path
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
        assert answer.mimetype == "application/problem+json"
    assert client.get("/api/v1/gpus", headers={"X-API-Key": "gt_wrong"}).status_code == 401
    for path in ("/health", "/healthz", "/readyz", "/version", "/metrics", "/swagger/"):
        assert client.get(path).status_code != 401, path


def test_a_key_is_taken_as_bearer_or_header_and_in_the_query_only_where_headers_cannot_be_set(
    keyed: tuple[FlaskClient, dict[str, str]],
) -> None:
    client, keys = keyed
    assert client.get("/api/v1/gpus", headers={"Authorization": f"Bearer {keys['read']}"}).status_code == 200
    assert client.get("/api/v1/gpus", headers={"X-API-Key": keys["read"]}).status_code == 200
    assert client.get(f"/api/v1/gpus?api_key={keys['read']}").status_code == 401
    assert client.get(f"/api/v1/ws?api_key={keys['read']}").status_code == 426


def test_a_scope_allows_its_own_and_admin_allows_all(keyed: tuple[FlaskClient, dict[str, str]]) -> None:
    client, keys = keyed
    body = [{"metric_name": "gpu_temp", "value": 1, "gpu_id": "g"}]

    def statuses(scope: str) -> tuple[int, int]:
        headers = {"X-API-Key": keys[scope]}
        return (
            client.get("/api/v1/gpus", headers=headers).status_code,
            client.post("/api/v1/telemetry", json=body, headers=headers).status_code,
        )

    assert statuses("read") == (200, 403)
    assert statuses("write") == (403, 202)
    assert statuses("admin") == (200, 202)


def test_a_keys_file_holds_hashes_and_its_mistakes_are_named(tmp_path: Path) -> None:
    key, line = new_key("ops", "read,write")
    assert key not in line
    path = tmp_path / "keys"
    for text, message in (
        ("ops read", "line 1: needs three fields"),
        (f"\nops fly {'0' * 64}", "line 2: scopes are"),
        ("ops read abc", "line 1: the third field is no SHA-256"),
        ("# nothing", "holds no key"),
    ):
        path.write_text(text)
        with pytest.raises(UsageError, match=message):
            Keys.load(path)
    with pytest.raises(UsageError, match="cannot be read"):
        Keys.load(tmp_path / "none")


def test_a_store_that_is_away_is_503_and_comes_back_by_itself() -> None:
    store = RecordingStore()
    client = app_on(store).test_client()
    store.away = True
    answer = client.get("/api/v1/gpus")
    assert answer.status_code == 503
    assert answer.headers["Retry-After"]
    assert "127.0.0.1" not in answer.get_json()["detail"], "addresses of the inside are not for clients"
    store.away = False
    assert client.get("/api/v1/gpus").get_json()["total"] == 1


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (StoreRefused("too many rows", 158, False), 422),
        (OutcomeUnknown("too slow", 159), 504),
        (StoreRefused("busy", 202, False), 503),
        (StoreRefused("no table", 60, False), 503),
        (StoreRefused("our mistake", 62, False), 503),
    ],
)
def test_each_failure_of_the_store_has_its_status(error: Exception, status: int) -> None:
    client = app_on(RecordingStore(**{"FROM samples PREWHERE": error})).test_client()
    answer = client.get("/api/v1/gpus/GPU-1/telemetry")
    assert answer.status_code == status
    assert answer.mimetype == "application/problem+json"
    assert "start_time" in answer.get_json()["detail"] or status == 503


def test_every_answer_has_a_request_id_and_the_security_headers() -> None:
    client = app_on(RecordingStore()).test_client()
    for path in ("/api/v1/gpus", "/nothing", "/swagger/", "/health"):
        answer = client.get(path)
        assert re.fullmatch(r"[0-9a-f]{16}", answer.headers["X-Request-Id"])
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    given = client.get("/nothing", headers={"X-Request-Id": "my-id:1"})
    assert given.headers["X-Request-Id"] == given.get_json()["request_id"] == "my-id:1"
    forged = client.get("/nothing", headers={"X-Request-Id": "a b<script>"})
    assert "script" not in forged.headers["X-Request-Id"]


def test_rates_are_limited_with_headers_and_probes_are_not() -> None:
    client = app_on(RecordingStore(), rate_limit="2/minute").test_client()
    first = client.get("/api/v1/gpus")
    assert (first.headers["X-RateLimit-Limit"], first.headers["X-RateLimit-Remaining"]) == ("2", "1")
    assert client.get("/api/v1/gpus").status_code == 200
    refused = client.get("/api/v1/gpus")
    assert refused.status_code == 429
    assert int(refused.headers["Retry-After"]) > 0
    assert refused.mimetype == "application/problem+json"
    assert client.get("/healthz").status_code == 200


def test_browsers_of_listed_origins_alone_may_read() -> None:
    client = app_on(RecordingStore(), cors_origins=("https://ops.example",)).test_client()
    allowed = client.get("/api/v1/gpus", headers={"Origin": "https://ops.example"})
    assert allowed.headers["Access-Control-Allow-Origin"] == "https://ops.example"
    assert "X-Pagination" in allowed.headers["Access-Control-Expose-Headers"]
    other = client.get("/api/v1/gpus", headers={"Origin": "https://evil.example"})
    assert "Access-Control-Allow-Origin" not in other.headers
    none = app_on(RecordingStore()).test_client().get("/api/v1/gpus", headers={"Origin": "https://ops.example"})
    assert "Access-Control-Allow-Origin" not in none.headers


def test_a_wrong_method_a_wrong_path_and_a_wrong_parameter_are_problems() -> None:
    client = app_on(RecordingStore()).test_client()
    wrong = client.delete("/api/v1/gpus")
    assert wrong.status_code == 405
    assert "GET" in wrong.headers["Allow"]
    bad = client.get("/api/v1/gpus?page=0")
    assert bad.status_code == 422
    assert bad.get_json()["errors"]["query"]["page"]
    assert "page" in bad.get_json()["detail"]
    late = client.get("/api/v1/gpus/GPU-1/telemetry?start_time=now&end_time=now-1h")
    assert late.status_code == 422
    for answer in (wrong, bad, late, client.get("/api/v1/nothing")):
        document = answer.get_json()
        assert answer.mimetype == "application/problem+json"
        assert document["status"] == answer.status_code
        assert {"type", "title", "detail", "instance", "request_id"} <= document.keys()


def test_a_kept_answer_is_given_again_and_counted() -> None:
    store = RecordingStore()
    app = app_on(store, cache_seconds=30.0)
    client = app.test_client()
    first = client.get("/api/v1/metrics")
    asked = len(store.asked)
    again = client.get("/api/v1/metrics")
    assert len(store.asked) == asked
    assert again.data == first.data
    assert again.headers["ETag"] == first.headers["ETag"]
    answers = app.extensions["answers"]
    assert (answers.hits, answers.misses) == (1, 1)
    client.get("/api/v1/metrics?other=1")
    assert answers.misses == 2


def test_documents_are_served_from_the_package_without_foreign_hosts() -> None:
    client = app_on(RecordingStore()).test_client()
    for page, files in (("/swagger/", "/swagger/"), ("/redoc", "/")):
        text = client.get(page).get_data(as_text=True)
        assert "http" not in text.replace("http-equiv", "")
        for name in re.findall(r'(?:src|href)="([^"]+)"', text):
            if name.startswith("data:"):
                continue
            answer = client.get(name.replace("../", "/") if name.startswith("..") else files + name)
            assert answer.status_code == 200, name
    plain = client.get("/redoc/redoc.standalone.js")
    packed = client.get("/redoc/redoc.standalone.js", headers={"Accept-Encoding": "gzip"})
    assert "Content-Encoding" not in plain.headers
    assert packed.headers["Content-Encoding"] == "gzip"
    assert len(packed.data) < len(plain.data)
    assert client.get("/swagger/../errors.py").status_code == 404
    assert client.get("/swagger/%2e%2e/%2e%2e/errors.py").status_code == 404


@pytest.mark.parametrize("path", ["gpus?hostnam=a", "gpus/GPU-1/telemetry?metric=a", "telemetry?host=a", "fleet?x="])
def test_a_parameter_that_nobody_knows_is_refused_by_name(path: str) -> None:
    """A misspelt filter that is ignored gives the whole fleet for an answer."""
    answer = app_on(RecordingStore(), FakeBroker()).test_client().get(f"/api/v1/{path}")
    assert answer.status_code == 422
    name = path.partition("?")[2].partition("=")[0]
    assert name in answer.get_json()["errors"]["query"]
    assert name in answer.get_json()["detail"]

"""Reading through the API from the real engine: what a script that trusts the documents gets."""

from __future__ import annotations

import csv
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from flask.testing import FlaskClient

from api.times import format_ms
from tests.helpers.api import METRICS, SECONDS, Fleet

TELEMETRY = "/api/v1/gpus/GPU-a0/telemetry"


def test_every_gpu_is_listed_with_its_labels(client: FlaskClient, fleet: Fleet) -> None:
    answer = client.get("/api/v1/gpus").get_json()
    assert answer["total"] == 5
    assert (answer["page"], answer["page_size"]) == (1, 100)
    assert [gpu["id"] for gpu in answer["gpus"]] == ["GPU-a0", "GPU-a1", "GPU-b0", "GPU-b1", "host-b:7"]
    first = answer["gpus"][0]
    assert first == {
        "id": "GPU-a0",
        "device": "nvidia0",
        "gpu_index": "0",
        "model_name": "NVIDIA H100 80GB HBM3",
        "hostname": "host-a",
        "cluster": "",
        "first_seen": format_ms(fleet.start_ms),
        "last_seen": format_ms(fleet.end_ms),
        "status": first["status"],
    }


@pytest.mark.parametrize(
    ("query", "ids"),
    [
        ("hostname=host-a", ["GPU-a0", "GPU-a1"]),
        ("host=host-a", ["GPU-a0", "GPU-a1"]),
        ("model=a100", ["GPU-b0", "GPU-b1"]),
        ("q=train-1", ["GPU-a1"]),
        ("status=lost", []),
        ("sort=-id&page_size=2", ["host-b:7", "GPU-b1"]),
        ("sort=-id&page_size=2&page=3", ["GPU-a0"]),
        ("sort=-id&limit=1", ["host-b:7"]),
    ],
)
def test_the_list_can_be_filtered_sorted_and_paged(client: FlaskClient, query: str, ids: list[str]) -> None:
    assert [gpu["id"] for gpu in client.get(f"/api/v1/gpus?{query}").get_json()["gpus"]] == ids


def test_a_page_tells_of_the_others_in_its_headers(client: FlaskClient) -> None:
    answer = client.get("/api/v1/gpus?page=2&page_size=2")
    told = json.loads(answer.headers["X-Pagination"])
    assert told == {
        "total": 5,
        "total_pages": 3,
        "first_page": 1,
        "last_page": 3,
        "page": 2,
        "previous_page": 1,
        "next_page": 3,
    }
    assert '</api/v1/gpus?page=3&page_size=2>; rel="next"' in answer.headers["Link"]


def test_one_gpu_has_the_latest_value_of_every_metric_with_its_unit(client: FlaskClient, fleet: Fleet) -> None:
    answer = client.get("/api/v1/gpus/GPU-a1").get_json()
    latest = {entry["metric_name"]: entry for entry in answer["latest"]}
    assert set(latest) == set(METRICS)
    assert latest["DCGM_FI_DEV_POWER_USAGE"]["value"] == SECONDS - 1
    assert latest["DCGM_FI_DEV_POWER_USAGE"]["unit"] == "W"
    assert latest["DCGM_FI_DEV_POWER_USAGE"]["timestamp"] == format_ms(fleet.end_ms)
    assert answer["pod"] == "train-1"
    assert answer["labels"] == {"DCGM_FI_DRIVER_VERSION": "535.1"}


@pytest.mark.parametrize("path", ["", "/telemetry", "/telemetry?format=csv", "/series?metric_name=x"])
def test_an_unknown_gpu_is_404_and_never_an_empty_answer(client: FlaskClient, path: str) -> None:
    answer = client.get(f"/api/v1/gpus/GPU-none{path}")
    assert answer.status_code == 404
    assert answer.mimetype == "application/problem+json"
    assert "GPU-none" in answer.get_json()["detail"]


def test_samples_come_in_time_order_with_numbers_as_values(client: FlaskClient, fleet: Fleet) -> None:
    answer = client.get(f"{TELEMETRY}?metric_name=DCGM_FI_DEV_GPU_TEMP&page_size=1000").get_json()
    assert answer["gpu_id"] == "GPU-a0"
    assert answer["total"] == SECONDS
    assert [row["value"] for row in answer["telemetry"]] == [float(second) for second in range(SECONDS)]
    assert answer["telemetry"][0] == {
        "timestamp": format_ms(fleet.start_ms),
        "metric_name": "DCGM_FI_DEV_GPU_TEMP",
        "value": 0.0,
        "device": "nvidia0",
        "hostname": "host-a",
    }
    newest = client.get(f"{TELEMETRY}?metric_name=gpu_temp&order=desc&page_size=1").get_json()
    assert newest["telemetry"][0]["value"] == SECONDS - 1


def test_both_ends_of_a_range_are_included_to_the_millisecond(client: FlaskClient, fleet: Fleet) -> None:
    at = fleet.start_ms

    def values(start: str, end: str) -> list[float]:
        answer = client.get(f"/api/v1/gpus/host-b:7/telemetry?start_time={start}&end_time={end}")
        return [row["value"] for row in answer.get_json()["telemetry"]]

    assert values(format_ms(at), format_ms(at + 666)) == [1, 1, 2, 2, 2, 2, 3, 3]
    assert values(format_ms(at + 1), format_ms(at + 665)) == [2, 2, 2, 2]
    assert values(format_ms(at + 333), format_ms(at + 333)) == [2, 2, 2, 2]
    assert values(f"{(at + 333) / 1000:.3f}", f"{(at + 333) / 1000:.3f}") == [2, 2, 2, 2]
    # Finer than stored: 333.000001 ms is after the sample at 333 ms, and 665.9 ms before the one at 666.
    tail = format_ms(at + 333)[:-1]
    assert values(f"{tail}001Z", format_ms(at + 666)) == [3, 3]
    assert values(format_ms(at + 1), f"{format_ms(at + 665)[:-1]}9Z") == [2, 2, 2, 2]


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("size", [1, 3, 7, 100])
@pytest.mark.parametrize("gpu", ["GPU-a0", "host-b:7"])
def test_a_walk_by_cursor_gives_every_sample_once_in_order(
    client: FlaskClient, gpu: str, size: int, order: str
) -> None:
    """Samples with equal times, equal keys and equal values must neither be lost nor given twice at a page's edge."""
    if gpu == "GPU-a0" and size < 7:
        size *= 10
    whole = client.get(f"/api/v1/gpus/{gpu}/telemetry?page_size=1000&order={order}").get_json()["telemetry"]
    walked = []
    url = f"/api/v1/gpus/{gpu}/telemetry?page_size={size}&order={order}"
    answer = client.get(url)
    while True:
        page = answer.get_json()
        walked += page["telemetry"]
        if page["next_cursor"] is None:
            break
        answer = client.get(f"{url}&cursor={page['next_cursor']}")
        assert answer.status_code == 200
        assert ("next" in answer.headers.get("Link", "")) == (answer.get_json()["next_cursor"] is not None)
    assert walked == whole


def test_a_foreign_cursor_is_refused(client: FlaskClient) -> None:
    for cursor in ("", "x", "WzFd", "WyJhc2MiLDFd", "bm9wZQ", "%00"):
        answer = client.get(f"{TELEMETRY}?cursor={cursor}")
        assert answer.status_code == 422, cursor


def test_samples_across_gpus_are_filtered_by_gpu_host_and_pod(client: FlaskClient) -> None:
    def total(query: str) -> int:
        return client.get(f"/api/v1/telemetry?metric_name=gpu_temp&{query}").get_json()["total"]

    assert total("gpu_id=GPU-a0,GPU-b1") == 2 * SECONDS
    assert total("hostname=host-b") == 2 * SECONDS + 8
    assert total("pod=train-0") == SECONDS
    assert total("namespace=ml") == 2 * SECONDS
    assert total("namespace=nobody") == 0
    assert client.get("/api/v1/telemetry?gpu_id=GPU-a0,GPU-none").status_code == 404


def test_a_series_keeps_a_spike_that_its_average_hides(client: FlaskClient, fleet: Fleet) -> None:
    answer = client.get(
        "/api/v1/gpus/GPU-b1/series?metric_name=DCGM_FI_DEV_SM_CLOCK&start_time=now-3h&max_points=100"
    ).get_json()
    (series,) = answer["series"]
    assert answer["downsampled"] is True
    assert 1 < len(series["points"]) <= 100
    assert series["unit"] == "MHz"
    assert max(point["max"] for point in series["points"]) == 1000
    assert max(point["value"] for point in series["points"]) < 1000
    assert min(point["min"] for point in series["points"]) == 1


def test_a_series_of_few_samples_is_the_samples_themselves(client: FlaskClient, fleet: Fleet) -> None:
    answer = client.get("/api/v1/gpus/GPU-a0/series?metric_name=DCGM_FI_DEV_GPU_TEMP&max_points=500").get_json()
    assert (answer["step_seconds"], answer["resolution"]) == (0, "raw")
    assert [point["value"] for point in answer["series"][0]["points"]] == [float(n) for n in range(SECONDS)]


@pytest.mark.parametrize(
    ("agg", "expected"),
    [
        ("avg", 4.5), ("min", 0), ("max", 9), ("sum", 45), ("count", 10), ("last", 9), ("p50", 4.5), ("p95", 8.55),
        ("p99", 8.91), ("rate", 1),
    ],
)  # fmt: skip
def test_a_step_is_aggregated_as_asked(client: FlaskClient, fleet: Fleet, agg: str, expected: float) -> None:
    """Ten seconds with the values of consecutive seconds; what an operator works out by hand."""
    begin = -(-fleet.start_ms // 10_000) * 10_000
    offset = (begin - fleet.start_ms) / 1000
    url = (
        f"/api/v1/gpus/GPU-a0/series?metric_name=DCGM_FI_DEV_GPU_TEMP&step=10s&agg={agg}"
        f"&start_time={begin / 1000}&end_time={begin / 1000 + 9}"
    )
    (point,) = client.get(url).get_json()["series"][0]["points"]
    shift = {"sum": offset * 10, "count": 0, "rate": 0}.get(agg, offset)
    tolerance = 0.51 if agg in ("p50", "p95", "p99") else 1e-9
    assert point["value"] == pytest.approx(expected + shift, abs=tolerance)
    assert (point["min"], point["max"]) == (offset, offset + 9)
    assert point["timestamp"] == format_ms(begin)


@pytest.mark.parametrize("step", ["1s", "2s", "7s", "60s"])
def test_a_rate_is_per_second_whatever_the_step(client: FlaskClient, fleet: Fleet, step: str) -> None:
    """A step that holds a single sample, or that the range cuts in two, is no slower for it."""
    begin = fleet.start_ms / 1000
    url = (
        f"/api/v1/gpus/GPU-a0/series?metric_name=DCGM_FI_DEV_GPU_TEMP&agg=rate&start_time={begin}&end_time={begin + 90}"
    )
    points = client.get(f"{url}&step={step}").get_json()["series"][0]["points"]
    assert len(points) >= 2
    assert [point["value"] for point in points] == pytest.approx([1.0] * len(points))


@pytest.mark.parametrize("agg", ["avg", "min", "max", "sum", "count", "last"])
@pytest.mark.parametrize("step", ["60s", "10m", "1h"])
def test_a_rollup_answers_the_same_as_the_raw_rows(client: FlaskClient, fleet: Fleet, agg: str, step: str) -> None:
    """Ends that cut a minute in two, and minutes that are not rolled up yet, come from raw."""
    start, end = fleet.end_ms - 7_200_000 + 61_234, fleet.end_ms - 3_600_000 - 77_777
    url = f"/api/v1/gpus/GPU-b1/series?metric_name=sm_clock&agg={agg}&step={step}&start_time={start}&end_time={end}"
    raw = client.get(f"{url}&resolution=raw").get_json()
    auto = client.get(url).get_json()
    minutes = client.get(f"{url}&resolution=1m").get_json()
    assert (raw["resolution"], minutes["resolution"]) == ("raw", "1m")
    assert auto["resolution"] == ("1h" if step == "1h" else "1m")
    assert raw["series"] == minutes["series"] == auto["series"]
    assert len(raw["series"][0]["points"]) > 0
    assert client.get(f"{url.replace(step, '90s')}&resolution=1m").status_code == 422
    live = f"/api/v1/gpus/GPU-a0/series?metric_name=gpu_temp&agg={agg}&step=60s&start_time=now-1h"
    assert client.get(f"{live}&resolution=raw").get_json()["series"] == client.get(live).get_json()["series"]


def test_too_many_points_are_refused_with_the_step_that_would_do(client: FlaskClient) -> None:
    answer = client.get("/api/v1/gpus/GPU-a0/series?metric_name=gpu_temp&start_time=now-7d&step=1s")
    assert answer.status_code == 400
    step = answer.get_json()["detail"].split("a step of ")[1].split(" ")[0]
    assert (
        client.get(f"/api/v1/gpus/GPU-a0/series?metric_name=gpu_temp&start_time=now-7d&step={step}").status_code == 200
    )


def test_the_fleet_answer_has_every_gpu_by_host_and_adds_up(client: FlaskClient) -> None:
    answer = client.get("/api/v1/fleet?metric_name=DCGM_FI_DEV_GPU_TEMP").get_json()
    assert [host["hostname"] for host in answer["hosts"]] == ["host-a", "host-b"]
    assert [gpu["id"] for gpu in answer["hosts"][1]["gpus"]] == ["GPU-b0", "GPU-b1", "host-b:7"]
    assert answer["hosts"][0]["gpus"][0]["value"] == SECONDS - 1
    totals = answer["totals"]
    assert totals["gpus"] == totals["reporting"] + totals["stale"] + totals["lost"] == 5
    assert totals["hosts"] == 2


def test_hosts_and_one_host(client: FlaskClient) -> None:
    answer = client.get("/api/v1/hosts").get_json()
    assert [(host["name"], host["gpus"]) for host in answer["hosts"]] == [("host-a", 2), ("host-b", 3)]
    detail = client.get("/api/v1/hosts/host-b").get_json()
    assert [gpu["id"] for gpu in detail["gpu_list"]] == ["GPU-b0", "GPU-b1", "host-b:7"]
    assert {entry["metric_name"] for entry in detail["gpu_list"][0]["latest"]} == set(METRICS)
    assert client.get("/api/v1/hosts/nowhere").status_code == 404


def test_an_xid_is_one_event_however_long_its_gauge_keeps_it(client: FlaskClient, fleet: Fleet) -> None:
    events = client.get("/api/v1/events?kind=xid").get_json()["events"]
    assert [(event["code"], event["severity"]) for event in events] == [(31, "warning"), (79, "critical")]
    assert events[1]["timestamp"] == format_ms(fleet.start_ms + 2000)
    assert events[1]["gpu_id"] == "GPU-a0"
    assert "reboot" in events[1]["action"]


def test_metrics_tell_units_and_which_were_seen(client: FlaskClient) -> None:
    metrics = {metric["name"]: metric for metric in client.get("/api/v1/metrics").get_json()["metrics"]}
    assert metrics["DCGM_FI_DEV_GPU_TEMP"]["unit"] == "C"
    assert metrics["DCGM_FI_DEV_GPU_TEMP"]["seen"] is True
    assert metrics["DCGM_FI_DEV_FAN_SPEED"]["seen"] is False


def test_stats_count_what_is_stored(client: FlaskClient, fleet: Fleet) -> None:
    answer = client.get("/api/v1/stats").get_json()
    assert answer["stored"] == fleet.rows
    assert answer["rejected"] == 0
    assert answer["sent"] is None, "the broker is away, so this is not known"
    assert answer["store"]["uptime_seconds"] >= 0
    assert [part["part"] for part in answer["parts"]] == ["broker", "store", "api"]


def _rows(client: FlaskClient, how: str) -> list[tuple[str, str, float]]:
    answer = client.get(f"/api/v1/telemetry?hostname=host-b&order=asc&{how}")
    assert answer.status_code == 200
    body = b"".join(answer.response)
    if "csv" in how:
        return [
            (row["timestamp"], row["gpu_id"], float(row["value"])) for row in csv.DictReader(io.StringIO(body.decode()))
        ]
    if "ndjson" in how:
        parsed = [json.loads(line) for line in body.splitlines()]
    elif "arrow" in how:
        parsed = pa.ipc.open_stream(body).read_all().to_pylist()
    else:
        parsed = pq.read_table(io.BytesIO(body)).to_pylist()
    return [
        (
            row["timestamp"]
            if isinstance(row["timestamp"], str)
            else row["timestamp"].isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            row["gpu_id"],
            row["value"],
        )
        for row in parsed
    ]


def test_every_format_holds_the_same_rows_in_time_order(client: FlaskClient) -> None:
    formats = [_rows(client, f"format={name}") for name in ("csv", "ndjson", "arrow", "parquet")]
    # 2 GPUs x 3 metrics x 120 s, the odd one's 8, and an hour of clocks.
    assert len(formats[0]) == 2 * 3 * SECONDS + 8 + 3600
    assert formats[0] == formats[1] == formats[2] == formats[3]
    assert [row[0] for row in formats[0]] == sorted(row[0] for row in formats[0])


def test_the_format_follows_accept_and_an_unknown_one_is_406(client: FlaskClient) -> None:
    answer = client.get(TELEMETRY, headers={"Accept": "text/csv"})
    assert answer.mimetype == "text/csv"
    assert answer.headers["Content-Disposition"] == 'attachment; filename="GPU-a0-telemetry.csv"'
    assert client.get(TELEMETRY, headers={"Accept": "text/html;q=0.5, */*;q=0.1"}).mimetype == "application/json"
    assert client.get(TELEMETRY, headers={"Accept": "image/png"}).status_code == 406


def test_an_unchanged_answer_is_304(client: FlaskClient) -> None:
    url = f"{TELEMETRY}?metric_name=gpu_temp&page_size=5"
    first = client.get(url)
    assert first.headers["ETag"]
    again = client.get(url, headers={"If-None-Match": first.headers["ETag"]})
    assert again.status_code == 304
    assert not again.data
    other = client.get(f"{url}&page=2", headers={"If-None-Match": first.headers["ETag"]})
    assert other.status_code == 200


def test_answers_are_compressed_for_those_who_take_it(client: FlaskClient) -> None:
    answer = client.get(TELEMETRY, headers={"Accept-Encoding": "gzip"})
    assert answer.headers["Content-Encoding"] == "gzip"
    assert "Accept-Encoding" in answer.headers["Vary"]


def test_a_query_that_would_read_too_much_is_422_and_says_how_to_narrow_it(fleet: Fleet) -> None:
    from tests.helpers.api import app_on, pool

    with pool(fleet.url) as store:
        answer = app_on(store, scan_rows_max=100).test_client().get("/api/v1/telemetry")
    assert answer.status_code == 422
    assert "shorten start_time" in answer.get_json()["detail"]


@pytest.mark.parametrize(
    "text", ["x' OR 1=1 --", "');DROP TABLE samples;--", "{gpu:UInt64}", "%s", "\\", "ü\u2028", "a" * 400]
)
def test_what_a_client_sends_never_becomes_sql(client: FlaskClient, fleet: Fleet, text: str) -> None:
    query = {"metric_name": text, "hostname": text, "pod": text, "namespace": text}
    answer = client.get("/api/v1/telemetry", query_string=query)
    assert answer.status_code == 200
    assert answer.get_json()["total"] == 0
    answer = client.get(TELEMETRY, query_string={"metric_name": text})
    assert answer.get_json()["total"] == 0
    assert client.get("/api/v1/rejects", query_string={"reason": text}).get_json()["total"] == 0
    assert client.get("/api/v1/stats").get_json()["stored"] == fleet.rows

"""The pipeline, alerts and uploads: what an operator does."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import Page, Route, expect

from clickhouse.insert import SampleColumns
from tests.helpers.fleet_stack import FleetStack, insert


def stage(page: Page, title: str) -> Any:
    return page.locator(".stage", has=page.get_by_role("heading", name=re.compile(f"^{title}")))


def test_the_pipeline_shows_every_part_with_state_rates_and_uptime(go: Any) -> None:
    page = go("#/pipeline")
    for part in ("Streamers", "Broker", "Collectors", "Store", "API"):
        expect(stage(page, part).locator(".badge")).to_contain_text("healthy")
    expect(stage(page, "Streamers").locator(".big")).to_contain_text(re.compile(r"\d+ rows/s in"))
    for part in ("Broker", "Store"):
        expect(stage(page, part)).to_contain_text(re.compile(r"Up for\s*\d"))
    for part in ("Streamers", "Collectors"):
        expect(stage(page, part)).to_contain_text(re.compile(r"Connected for\s*\d"))
    processes = page.get_by_role("region", name="Processes of the pipeline")
    for part in ("streamer", "broker", "collector", "store", "api"):
        row = processes.locator("tr", has=page.get_by_role("rowheader", name=part, exact=True))
        expect(row.first).to_contain_text(re.compile(r"healthy.*\d+ (ms|s|min|h)"))
    expect(stage(page, "Broker")).to_contain_text(re.compile(r"Credit out\s*.* of 64 MiB"))
    expect(page.locator(".verdict")).to_contain_text("Nothing holds the pipeline up")
    topics = page.get_by_role("region", name="Topics of the broker")
    expect(topics).to_contain_text("gpu-telemetry")
    expect(page.get_by_role("region", name="Groups of collectors")).to_contain_text("gpu-telemetry / clickhouse")
    expect(page.get_by_role("region", name="Tables of the store")).to_contain_text("samples")
    expect(page.get_by_role("region", name="Rows that were refused last")).to_be_visible()
    expect(page.locator(".panel", has_text="Rows a second").first.locator("canvas")).to_be_visible()


def test_the_bottleneck_is_named_with_its_evidence(go: Any) -> None:
    page = go("#/pipeline")
    verdicts = page.evaluate(
        """async () => {
          const { bottleneck } = await import(new URL("static/js/bottleneck.js", document.baseURI));
          const topic = { name: "t", rows: 0, oldest_age_seconds: 0, subscribers: 2, groups: { g: { free_credit: 2 } } };
          const fine = { health: { checks: {} }, topics: [topic], broker: { reachable: true }, newestAge: 1, rates: { in: 5 } };
          const late = (changes) => ({ ...fine, topics: [{ ...topic, rows: 900, oldest_age_seconds: 60, ...changes }] });
          return [
            fine, late({ subscribers: 0 }), late({ groups: { g: { free_credit: 0 } } }), late({ groups: { g: { paused: true } } }),
            { ...fine, broker: { reachable: false } }, { ...fine, topics: [{ ...topic, disk_full: true, disk_bytes: 1 }] },
            { ...fine, broker: { reachable: true, credit_outstanding_bytes: 95, credit_pool_bytes: 100 } },
            { ...fine, newestAge: 600, rates: { in: 0 } }, { ...fine, health: { checks: { store: { status: "unhealthy", reason: "refused" } } } },
          ].map((facts) => bottleneck(facts).what);
        }"""
    )
    assert verdicts == [
        "Nothing holds the pipeline up", "No collector", "Collectors or the store", "A paused group",
        "The broker", "The broker's disk", "The broker's log", "Streamers", "The store",
    ]  # fmt: skip


def test_a_pipeline_that_does_not_answer_is_an_error_and_no_empty_page(go: Any, page: Page, watch: Any) -> None:
    watch.allowed.append("503")
    page.route(
        "**/api/v1/stats",
        lambda route: route.fulfill(
            status=503, json={"title": "away", "detail": "the store does not answer", "status": 503}
        ),
    )
    go("#/pipeline")
    expect(page.locator(".verdict")).to_contain_text("Bottleneck: ")
    expect(page.locator(".verdict")).to_contain_text("the store does not answer")
    expect(page.get_by_role("button", name="Try again").first).to_be_visible()


def hot(stack: FleetStack, number: int = 4) -> str:
    """Make one GPU hot for long enough that a rule fires; its id."""
    device = stack.played.devices[number]
    now_ms = time.time_ns() // 1_000_000
    ts = list(range(now_ms - 600_000, now_ms, 10_000))
    with stack.store.connect() as conn:
        insert(conn, SampleColumns(
            gpu=np.full(len(ts), device.gpu_key, dtype=np.uint64), labels=np.full(len(ts), device.labels_key, dtype=np.uint64),
            metric_code=np.zeros(len(ts), dtype=np.uint16), metric_names=["DCGM_FI_DEV_XID_ERRORS"], ts_ms=np.array(ts, dtype=np.int64),
            value=np.where(np.arange(len(ts)) < 30, 0.0, 79.0), session=np.full(len(ts), 9, dtype=np.uint64), seq=np.arange(len(ts), dtype=np.uint64),
        ))  # fmt: skip
    return device.gpu_id


def test_an_alert_shows_its_evidence_and_can_be_silenced_and_heard_again(go: Any, stack: FleetStack) -> None:
    gpu_id = hot(stack)
    page = go("#/alerts")
    row = page.locator(".alert .subject", has=page.locator(f"a[href*='{gpu_id}']"))
    expect(row.first).to_contain_text(re.compile("codes 79"))
    expect(page.locator(".alert", has=page.locator(f"a[href*='{gpu_id}']")).first).to_contain_text("Do:")
    row.first.get_by_role("button", name=re.compile("^Silence")).click()
    page.get_by_label("Comment").fill("known, being drained")
    page.get_by_role("dialog").get_by_role("button", name="Silence", exact=True).click()
    quiet = page.locator(".alert .subject", has_text="being drained")
    expect(quiet).to_contain_text("silent until")
    quiet.get_by_role("button", name=re.compile("^End the silence")).click()
    expect(quiet).to_have_count(0)
    page = go(f"#/gpus/{gpu_id}")
    expect(page.get_by_role("region", name="XIDs and throttling")).to_contain_text("XID 79")


def test_a_dropped_csv_is_sent_and_its_rows_are_told(go: Any, tmp_path: Path, stack: FleetStack) -> None:
    device = stack.played.devices[0]  # One that is there already: other tests count the fleet.
    about = f"0,nvidia0,{device.uuid},{device.model},{device.hostname},,{device.pod},{device.namespace}"
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    lines = ["timestamp,metric_name,gpu_id,device,uuid,modelName,Hostname,container,pod,namespace,value,labels_raw"]
    lines += [f"{now},DCGM_FI_DEV_GPU_TEMP,{about},{40 + i % 9}," for i in range(500)]
    lines.append(f"{now},DCGM_FI_DEV_GPU_TEMP,{about},not-a-number,")
    file = tmp_path / "export.csv"
    file.write_text("\n".join(lines) + "\n")
    page = go("#/upload")
    transfer = page.evaluate_handle(
        "([name, text]) => { const t = new DataTransfer(); t.items.add(new File([text], name, { type: 'text/csv' })); return t; }",
        [file.name, file.read_text()],
    )
    page.locator(".drop").dispatch_event("drop", {"dataTransfer": transfer})
    row = page.locator(".upload", has_text="export.csv")
    expect(row.locator(".badge")).to_have_text("done")
    expect(row).to_contain_text("500 rows are durable at the broker, 1 were refused")
    page.get_by_label("CSV files").set_input_files(file)
    expect(page.locator(".upload")).to_have_count(2)
    expect(page.locator(".upload .badge").first).to_have_text("done")


def test_an_upload_that_is_refused_says_why(go: Any, page: Page, tmp_path: Path, watch: Any) -> None:
    watch.allowed.append("413")

    def refuse(route: Route) -> None:
        route.fulfill(
            status=413, json={"title": "too large", "detail": "the file is larger than --upload-max", "status": 413}
        )

    page.route("**/api/v1/csv/upload", refuse)
    go("#/upload")
    (tmp_path / "large.csv").write_text("timestamp,value\n")
    page.get_by_label("CSV files").set_input_files(tmp_path / "large.csv")
    expect(page.locator(".upload")).to_contain_text("larger than --upload-max")

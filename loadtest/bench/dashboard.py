"""dashboard: how long people wait in a browser: 10,000 GPUs at first sight and updated, a day at 1 Hz of one GPU drawn.

The store, telemetry-api and headless Chromium are processes of their own on the same machine. Times are taken in the
page, to the frame after the last canvas was painted. First view: a new tab with an empty cache, from the navigation
on. Update: new values for all cells, until the pixels can be read back. Day: from the change of address to the drawn
chart of one metric, and to the drawn charts of all ten, 86,400 samples each, on a page that is open already.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from typing import Any, Final

from clickhouse.client import StoreAddress, StoreConnection
from clickhouse.insert import insert_devices, insert_samples
from clickhouse.rollup import Rollup
from loadtest.bench.fleet_rows import METRICS, Fleet
from loadtest.bench.frame import Figure, Settings, compare
from loadtest.bench.processes import Program, free_port, programs

GPUS: Final = 10_000
DAY_SECONDS: Final = 86_400
FLAGS: Final = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")

_SINCE_NAVIGATION: Final = """async (gpus) => {
  const frame = () => new Promise(requestAnimationFrame);
  while (!document.querySelector(`[aria-label^="Heatmap of ${gpus} GPUs"]`)) await frame();
  await frame();
  return performance.now();
}"""

_UPDATE: Final = """async () => {
  const { Heatmap } = await import(new URL("static/js/heatmap.js", document.baseURI));
  const fleet = await (await fetch("api/v1/fleet")).json();
  const map = new Heatmap({ onPick() {}, onHost() {} });
  document.querySelector("main").prepend(map.element);
  map.setHosts(fleet.hosts);
  map.setScale({ low: 0, high: 100, unit: "%" });
  const one = Object.assign(document.createElement("canvas"), { width: 1, height: 1 });
  const probe = one.getContext("2d", { willReadFrequently: true });
  const times = [];
  for (let turn = 0; turn < 15; turn += 1) {
    const values = fleet.hosts.flatMap((host) => host.gpus.map((gpu) => [gpu.id, Math.random() * 100]));
    const began = performance.now();
    map.update(values);
    probe.drawImage(map.canvas, 0, 0);
    probe.getImageData(0, 0, 1, 1); // Until it is really painted.
    times.push(performance.now() - began);
  }
  map.element.remove();
  return times.sort((a, b) => a - b)[7];
}"""

_OPEN_GPU: Final = """async ([hash, charts]) => {
  const frame = () => new Promise(requestAnimationFrame);
  const drawn = () => document.querySelectorAll(".charts .chart canvas").length;
  const began = performance.now();
  location.hash = hash;
  while (!drawn()) await frame();
  await frame();
  const first = performance.now() - began;
  while (drawn() < charts) await frame();
  await frame();
  return [first, performance.now() - began];
}"""


def run(settings: Settings) -> Iterator[Figure]:
    """First view, update, and a day."""
    from playwright.sync_api import sync_playwright

    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if chromium is None:
        raise RuntimeError("chromium is not installed: apt-get install chromium, or set CHROMIUM=path")
    directory = settings.directory / "dashboard"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    gpus = settings.scaled(GPUS, 80)
    with programs() as started, sync_playwright() as playwright:
        store_port, api_port = free_port(), free_port()
        store = f"http://127.0.0.1:{store_port}"
        arguments = ["serve", "--migrate", "--data-dir", str(directory / "store")]
        started.append(Program("store", "clickhouse.cli", arguments, directory, store_port))
        started[-1].wait_ready()
        gpu_id = _fill(store, gpus, settings.scaled(DAY_SECONDS, 600))
        started.append(Program("api", "api.cli", ["--clickhouse", store], directory, api_port))
        started[-1].wait_ready()
        browser = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
        times: dict[str, list[float]] = {}
        for _ in range(settings.runs + 1):
            _report_now(store, gpus)
            for name, value in _look(browser, f"http://127.0.0.1:{api_port}/", gpus, gpu_id).items():
                times.setdefault(name, []).append(value)
        browser.close()
    settings.notes["single_runs_ms"] = {name: [round(value, 1) for value in values] for name, values in times.items()}
    for name, values in times.items():
        yield compare("dashboard", name, "ms", values[1:])  # The first one also warms the API up.
    shutil.rmtree(directory, ignore_errors=True)


def _look(browser: Any, url: str, gpus: int, gpu_id: str) -> dict[str, float]:
    """Times in ms of one visitor with an empty cache, by metric."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.goto(url, wait_until="commit")
    found = {"first_view_10000_gpus_ms": page.evaluate(_SINCE_NAVIGATION, f"{gpus:,}")}
    found["heatmap_update_10000_gpus_ms"] = page.evaluate(_UPDATE)
    first, whole = page.evaluate(_OPEN_GPU, [f"#/gpus/{gpu_id}?range=1d", len(METRICS)])
    page.goto("about:blank")
    began = time.perf_counter()
    page.goto(f"{url}?cold#/gpus/{gpu_id}?range=1d", wait_until="commit")
    page.wait_for_function("n => document.querySelectorAll('.charts .chart canvas').length === n", arg=len(METRICS))
    cold = (time.perf_counter() - began) * 1000
    context.close()
    return {**found, "day_chart_ms": first, "day_ten_charts_ms": whole, "day_ten_charts_with_page_load_ms": cold}


def _fill(url: str, gpus: int, seconds: int) -> str:
    """One GPU with every second behind it, rolled up; its id. The fleet itself comes with :func:`_report_now`."""
    now_ms = time.time_ns() // 1_000_000
    one = Fleet(1, now_ms - seconds * 1000)
    with StoreConnection(StoreAddress(url=url, timeout_s=600)) as conn:
        insert_devices(conn, Fleet(gpus, now_ms).devices)
        for number, columns in enumerate(one.deliveries(seconds * len(METRICS))):
            for day, part in columns.by_day():
                insert_samples(conn, part, token=f"dashboard/{number}/{day}")
        Rollup(conn).look()
    return str(one.devices[0].gpu_id)


def _report_now(url: str, gpus: int) -> None:
    """A sample of every metric of every GPU, at this moment."""
    now_ms = time.time_ns() // 1_000_000
    with StoreConnection(StoreAddress(url=url, timeout_s=600)) as conn:
        for columns in Fleet(gpus, now_ms - 2_000).deliveries(gpus * len(METRICS), gpus * len(METRICS)):
            for day, part in columns.by_day():
                insert_samples(conn, part, token=f"dashboard/{now_ms}/{day}")

"""The fleet: every GPU on one canvas, found by pointer, by keys, by text and as a table."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.helpers.fleet_stack import FleetStack

HEATMAP = "[aria-roledescription=heatmap]"


def wait_for_fleet(page: Page, gpus: int = 48) -> None:
    expect(page.get_by_role("img", name=re.compile(f"Heatmap of {gpus:,} GPUs"))).to_be_visible()


def kpi(page: Page, label: str) -> Any:
    return page.locator(".kpi", has=page.locator("dt", has_text=re.compile(f"^{label}$"))).locator("dd")


def test_the_fleet_shows_every_gpu_with_totals_and_the_funnel(go: Any) -> None:
    page = go("")
    wait_for_fleet(page)
    expect(kpi(page, "GPUs")).to_contain_text("48")
    expect(kpi(page, "Reporting")).to_have_text("46" + "1 stale, 1 lost")
    expect(kpi(page, "Power")).to_contain_text("kW")
    steps = [int(text) for text in page.locator(".funnel-line b").all_inner_texts()]
    assert steps[0] == 48
    assert steps[1] == 46
    assert steps == sorted(steps, reverse=True)
    assert 0 < steps[2] < 46
    expect(page.get_by_role("img", name=re.compile("Distribution of .* from 0 % to 100 %"))).to_be_visible()


def test_a_click_on_a_cell_opens_its_gpu_and_one_on_a_name_its_host(go: Any, stack: FleetStack) -> None:
    page = go("#/fleet")
    wait_for_fleet(page)
    canvas = page.locator(".heat-canvas")
    canvas.click(position={"x": 10, "y": 26})
    expect(page).to_have_url(re.compile(f"#/gpus/{stack.played.devices[0].gpu_id}"))
    page.go_back()
    wait_for_fleet(page)
    canvas.click(position={"x": 30, "y": 6})
    expect(page).to_have_url(re.compile("#/hosts/sim-dgx-00000"))


def test_arrow_keys_move_over_the_heatmap_and_enter_opens_the_gpu(go: Any, stack: FleetStack) -> None:
    page = go("#/fleet")
    wait_for_fleet(page)
    page.locator(HEATMAP).focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft"):
        page.keyboard.press(key)
    expect(page.locator(".heat [aria-live]")).to_contain_text("sim-dgx-00000, GPU 1:")
    page.keyboard.press("h")
    expect(page).to_have_url(re.compile("#/hosts/sim-dgx-00000"))
    page.go_back()
    wait_for_fleet(page)
    page.locator(HEATMAP).focus()
    page.keyboard.press("End")
    expect(page.locator(".heat [aria-live]")).to_contain_text("lost")
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile(f"#/gpus/{stack.played.devices[0].gpu_id}"))


@pytest.mark.parametrize(("text", "found"), [("sim-dgx-00002", 8), ("train-0001-3", 1), ("no such thing", 0)])
def test_a_search_finds_hosts_gpus_and_pods_and_the_url_keeps_it(go: Any, text: str, found: int) -> None:
    page = go("#/fleet")
    wait_for_fleet(page)
    page.get_by_label("Search by host, GPU or pod").fill(text)
    expect(page.locator(".controls .found")).to_have_text(f"{found} of 48")
    page.reload()
    expect(page.locator(".controls .found")).to_have_text(f"{found} of 48")


def test_a_search_for_a_pod_leads_to_its_job(go: Any) -> None:
    page = go("#/fleet?q=train-0002")
    expect(page.locator(".controls .found")).to_have_text("8 of 48")
    expect(page.get_by_role("link", name="job research/train-0002")).to_be_visible()
    page.get_by_label("Search by host, GPU or pod").press("Enter")
    expect(page).to_have_url(re.compile("#/jobs/research%2Ftrain-0002"))
    expect(page.get_by_role("heading", name="train-0002")).to_be_visible()


def test_the_ranking_turns_round(go: Any) -> None:
    page = go("#/fleet")
    wait_for_fleet(page)
    page.get_by_role("button", name="Show the lowest instead").click()
    expect(page.get_by_role("heading", name="Lowest")).to_be_visible()
    shown = [float(text.split()[0]) for text in page.locator(".rank").last.locator("li > span").all_inner_texts()]
    assert shown == sorted(shown)


def test_the_chosen_metric_colours_the_fleet_with_its_unit_and_is_in_the_url(go: Any) -> None:
    page = go("#/fleet")
    wait_for_fleet(page)
    page.get_by_label("Colour by").select_option("DCGM_FI_DEV_GPU_TEMP")
    expect(page.get_by_role("heading", name="GPU temperature by host")).to_be_visible()
    expect(page.locator(".legend-scale")).to_contain_text("°C")
    expect(page).to_have_url(re.compile("metric=DCGM_FI_DEV_GPU_TEMP"))


def test_the_fleet_as_a_table_says_the_same_and_sorts(go: Any) -> None:
    page = go("#/fleet?view=table")
    rows = page.locator(".panel-table tbody tr")
    expect(rows).to_have_count(48)
    page.get_by_role("button", name="Value", exact=True).click()
    values = page.locator(".panel-table tbody tr td:nth-child(4)").all_inner_texts()
    numbers = [float(text.split()[0]) for text in values if text != "–"]
    assert numbers == sorted(numbers, reverse=True)
    expect(page.locator(".panel-table th[aria-sort=descending]")).to_have_count(1)


def test_a_panel_downloads_as_csv_and_as_png(go: Any, tmp_path: Path) -> None:
    page = go("#/fleet")
    wait_for_fleet(page)
    with page.expect_download() as download:
        page.get_by_role("button", name=re.compile("by host: download CSV")).click()
    rows = list(csv.reader(io.StringIO(Path(download.value.path()).read_text())))
    assert rows[0][:4] == ["Host", "GPU", "Id", "Value"]
    assert len(rows) == 49
    for name in ("by host: download PNG", "From total to active: download PNG"):
        with page.expect_download() as download:
            page.get_by_role("button", name=re.compile(name)).click()
        assert Path(download.value.path()).read_bytes().startswith(b"\x89PNG")


def test_live_values_change_without_a_reload(go: Any) -> None:
    page = go("#/fleet")
    wait_for_fleet(page)
    expect(page.locator(".live-button")).to_have_attribute("data-state", "live")
    # The picture itself changes, and between two answers of /api/v1/fleet.
    shot = "() => document.querySelector('.heat-canvas').toDataURL()"
    before = page.evaluate(shot)
    page.wait_for_function("before => document.querySelector('.heat-canvas').toDataURL() !== before", arg=before)


def test_a_pause_stops_everything_that_asks_and_is_kept_in_the_url(go: Any, page: Page) -> None:
    page.clock.install()
    go("#/fleet")
    wait_for_fleet(page)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.clock.run_for(30_000)
    assert asked, "the page asks all the time"
    page.get_by_role("button", name=re.compile("Pause live updates")).click()
    expect(page).to_have_url(re.compile("live=off"))
    expect(page.locator(".live-button")).to_have_attribute("data-state", "paused")
    page.wait_for_load_state("networkidle")
    asked.clear()
    page.clock.run_for(120_000)
    assert asked == []

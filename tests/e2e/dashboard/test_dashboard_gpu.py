"""GPU and host pages: every metric over time, live, zoomed, compared; and what is not there is said."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import Page, expect

from tests.helpers.fleet_stack import METRICS, FleetStack

CHARTS = ".charts > .panel"


def gpu(stack: FleetStack, number: int = 1) -> str:
    return stack.played.devices[number].gpu_id


def chart(page: Page, title: str) -> Any:
    return page.locator(CHARTS, has=page.get_by_role("heading", name=title, exact=True))


def query_of(url: str) -> dict[str, list[str]]:
    return parse_qs(urlsplit(url).query)


def test_a_gpu_has_a_chart_of_every_metric_with_its_unit(go: Any, stack: FleetStack) -> None:
    page = go(f"#/gpus/{gpu(stack)}")
    expect(page.locator(f"{CHARTS} canvas")).to_have_count(len(METRICS))
    expect(page.get_by_role("heading", name="sim-dgx-00000 · GPU 1")).to_be_visible()
    expect(chart(page, "GPU temperature").locator(".chart-legend")).to_contain_text(
        re.compile(r"\d+ °C · min .* mean .* max")
    )
    expect(chart(page, "Framebuffer used").locator(".chart-legend")).to_contain_text(re.compile("[GM]iB"))
    expect(chart(page, "Clock throttle reasons").locator(".chart-legend")).to_contain_text("0x")
    # A counter of energy is drawn as what it means: power.
    expect(chart(page, "Total energy consumption").locator(".chart-legend")).to_contain_text(re.compile(r"\d W"))
    latest = page.get_by_role("region", name="Latest value of every metric")
    expect(latest.locator("tbody tr")).to_have_count(len(METRICS))
    expect(latest).to_contain_text("°C")


def test_live_samples_move_the_charts_and_the_latest_values(go: Any, stack: FleetStack) -> None:
    page = go(f"#/gpus/{gpu(stack)}?range=5m")
    expect(page.locator(".live-button")).to_have_attribute("data-state", "live")
    power = page.locator(".kpi", has_text="Power usage").locator("dd")
    before = power.inner_text()
    expect(power).not_to_have_text(before, use_inner_text=True)
    rows = "() => document.querySelector('.charts canvas').toDataURL()"
    page.wait_for_function(f"before => ({rows})() !== before", arg=page.evaluate(rows))


def test_dragging_over_a_chart_zooms_all_of_them_and_asks_for_finer_data(go: Any, stack: FleetStack) -> None:
    page = go(f"#/gpus/{gpu(stack)}?range=2d")
    expect(page.locator(f"{CHARTS} canvas")).to_have_count(len(METRICS))
    note = chart(page, "GPU utilisation").locator(".panel-note")
    expect(note).to_contain_text("per ")
    coarse = note.inner_text()
    box = chart(page, "GPU utilisation").locator(".u-over").bounding_box()
    assert box is not None
    # The last tenth: the hour at ten seconds is in it.
    with page.expect_request(lambda request: "/series" in request.url and "agg=avg" in request.url) as asked:
        page.mouse.move(box["x"] + box["width"] * 0.9, box["y"] + 50)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.995, box["y"] + 60, steps=5)
        page.mouse.up()
    expect(page).to_have_url(re.compile(r"from=\d+&to=\d+"))
    wanted = query_of(asked.value.url)
    assert wanted["start_time"] < wanted["end_time"]
    expect(note).not_to_have_text(coarse)
    page.go_back()
    expect(note).to_have_text(coarse)


def test_a_chart_is_read_and_zoomed_by_keys(go: Any, stack: FleetStack) -> None:
    page = go(f"#/gpus/{gpu(stack)}")
    plot = chart(page, "GPU temperature").locator(".chart")
    expect(plot.locator("canvas")).to_be_visible()
    plot.focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    said = chart(page, "GPU temperature").locator("[aria-live]")
    expect(said).to_contain_text(re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d.*\d °C"))
    page.keyboard.press("+")
    expect(page).to_have_url(re.compile(r"from=\d+"))


def test_several_gpus_and_several_metrics_share_a_chart(go: Any, stack: FleetStack) -> None:
    page = go(f"#/gpus/{gpu(stack)}")
    expect(page.locator(f"{CHARTS} canvas")).to_have_count(len(METRICS))
    page.get_by_label("Compare with").fill(gpu(stack, 9))
    page.get_by_role("button", name="Add").click()
    expect(page).to_have_url(re.compile(f"with={gpu(stack, 9)}"))
    legend = chart(page, "Power usage").locator(".chart-legend")
    expect(legend).to_contain_text("sim-dgx-00000 GPU 1")
    expect(legend).to_contain_text("sim-dgx-00001 GPU 1")
    for name in ("GPU temperature", "Power usage"):
        page.get_by_role("group", name="Draw several metrics in one chart").get_by_role(
            "button", name=name, exact=True
        ).click()
    both = chart(page, "Compared").locator(".chart-legend")
    expect(both).to_contain_text("°C")
    expect(both).to_contain_text(" W")
    page.reload()
    expect(both).to_contain_text("sim-dgx-00001 GPU 1")


def test_a_silent_gpu_says_since_when_instead_of_drawing_on(go: Any, stack: FleetStack) -> None:
    page = go(f"#/gpus/{gpu(stack, -2)}?range=15m")
    expect(chart(page, "GPU utilisation").locator(".badge.warn")).to_contain_text(
        re.compile(r"no data since \d\d:\d\d:\d\d")
    )
    expect(page.locator(".page-head .badge")).to_contain_text("stale")
    page = go(f"#/gpus/{gpu(stack, -1)}?range=15m")
    expect(chart(page, "GPU utilisation").locator(".state")).to_contain_text("No data in the last 15 min")
    expect(page.locator(".page-head .badge")).to_contain_text("lost")


def test_an_unknown_gpu_is_told_in_words(go: Any, watch: Any) -> None:
    watch.allowed.append("404")
    page = go("#/gpus/GPU-does-not-exist")
    expect(page.get_by_role("heading", name="Not found")).to_be_visible()
    expect(page.get_by_role("alert")).to_contain_text("GPU-does-not-exist")


def test_a_trend_over_days_gives_its_slope(go: Any, stack: FleetStack) -> None:
    page = go(f"#/gpus/{gpu(stack)}?trend=DCGM_FI_DEV_POWER_USAGE")
    trend = page.locator(".panel", has=page.get_by_role("heading", name="Trend over days"))
    expect(trend.locator(".panel-note")).to_contain_text(re.compile(r"[+−].* W a day"))
    expect(trend.locator("canvas")).to_be_visible()


def test_times_switch_between_utc_and_local_and_the_url_says_which(go: Any, stack: FleetStack) -> None:
    page = go(f"#/gpus/{gpu(stack)}")
    facts = page.locator(".page-head .facts")
    expect(facts).to_contain_text("first seen")
    local = facts.inner_text()
    page.get_by_text("Display", exact=True).click()
    page.get_by_role("button", name="UTC").click()
    expect(page).to_have_url(re.compile("tz=utc"))
    expect(facts).not_to_have_text(local)


def test_the_range_picker_offers_relative_and_fixed_ranges(go: Any, stack: FleetStack) -> None:
    page = go(f"#/gpus/{gpu(stack)}")
    page.locator("summary[aria-label^='Time range']").click()
    page.get_by_role("button", name="6 hours").click()
    expect(page).to_have_url(re.compile("range=6h"))
    expect(page.locator("summary[aria-label^='Time range']")).to_contain_text("Last 6 h")
    page.locator("summary[aria-label^='Time range']").click()
    page.get_by_label("From", exact=True).fill("2026-01-02T10:00:00")
    page.get_by_label("To", exact=True).fill("2026-01-02T09:00:00")
    page.get_by_role("button", name="Show this range").click()
    expect(page.get_by_role("alert")).to_contain_text("before")
    page.get_by_label("To", exact=True).fill("2026-01-02T11:00:00")
    page.get_by_role("button", name="Show this range").click()
    expect(page).to_have_url(re.compile(r"from=\d+&to=\d+"))
    expect(chart(page, "GPU utilisation").locator(".state")).to_contain_text("No data in this range")


def test_a_chart_is_a_table_on_request_and_a_csv_with_units(go: Any, stack: FleetStack) -> None:
    page = go(f"#/gpus/{gpu(stack)}?range=15m")
    temperature = chart(page, "GPU temperature")
    temperature.get_by_role("button", name="GPU temperature: view as table").click()
    expect(temperature.locator("tbody tr").nth(5)).to_be_visible()
    with page.expect_download() as download:
        temperature.get_by_role("button", name="GPU temperature: download CSV").click()
    lines = Path(download.value.path()).read_text().splitlines()
    assert lines[0] == "time,value (°C),min,max"
    assert re.match(r"\d{4}-\d\d-\d\dT.*Z,\d+", lines[1])


def test_a_host_shows_its_gpus_side_by_side(go: Any, stack: FleetStack) -> None:
    page = go("#/hosts/sim-dgx-00001")
    expect(page.get_by_role("heading", name="sim-dgx-00001")).to_be_visible()
    table = page.get_by_role("region", name="GPUs of this host")
    expect(table.locator("tbody tr")).to_have_count(8)
    expect(page.locator(f"{CHARTS} canvas")).to_have_count(len(METRICS))
    expect(chart(page, "GPU temperature").locator(".chart-legend .swatch")).to_have_count(8)
    page.get_by_role("button", name="GPU 3", exact=True).click()
    expect(chart(page, "GPU temperature").locator(".chart-legend .swatch")).to_have_count(7)
    expect(page).to_have_url(re.compile("gpus=0,1,2,4,5,6,7"))
    table.get_by_role("link", name="GPU 5", exact=True).click()
    expect(page).to_have_url(re.compile(f"#/gpus/{gpu(stack, 13)}"))


@pytest.mark.parametrize("context", [{"timezone_id": "Asia/Kolkata"}], indirect=True)
def test_a_link_shows_what_its_sender_saw(go: Any, stack: FleetStack) -> None:
    page = go(
        f"#/gpus/{gpu(stack)}?range=15m&with={gpu(stack, 2)}&metrics=DCGM_FI_DEV_GPU_TEMP,DCGM_FI_DEV_POWER_USAGE&tz=utc&live=off"
    )
    expect(chart(page, "Compared").locator(".chart-legend")).to_contain_text("GPU 2")
    expect(page.locator("summary[aria-label^='Time range']")).to_contain_text("15 min")
    expect(page.locator(".live-button")).to_have_attribute("data-state", "paused")


def test_the_keyboard_stays_where_it_is_while_values_change_around_it(go: Any, stack: FleetStack) -> None:
    """A table that is drawn again every second once threw away the link that somebody had tabbed to."""
    page = go("#/hosts/sim-dgx-00001")
    link = page.get_by_role("region", name="GPUs of this host").get_by_role("link", name="GPU 5", exact=True)
    link.focus()
    before = page.locator(".kpi", has_text="Power").locator("dd").inner_text()
    expect(page.locator(".kpi", has_text="Power").locator("dd")).not_to_have_text(before, use_inner_text=True)
    expect(link).to_be_focused()

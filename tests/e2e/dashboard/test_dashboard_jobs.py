"""Jobs: who holds the GPUs, and which GPU the others of a job wait for."""

from __future__ import annotations

import re
from typing import Any

from playwright.sync_api import expect

from tests.helpers.fleet_stack import METRICS, FleetStack


def test_jobs_are_listed_with_what_they_hold_and_make_of_it(go: Any) -> None:
    page = go("#/jobs")
    rows = page.get_by_role("region", name="Jobs that hold GPUs").locator("tbody tr")
    expect(rows).to_have_count(5)  # Every fourth host is free.
    expect(rows.first).to_contain_text(re.compile(r"train-000\d\s*research\s*8\s*1\s*8"))
    page.get_by_label("Search by job, pod or namespace").fill("train-0002-3")
    expect(rows).to_have_count(1)
    page.get_by_role("link", name="train-0002").click()
    expect(page).to_have_url(re.compile("#/jobs/research%2Ftrain-0002"))


def test_a_job_shows_all_its_gpus_beside_each_other(go: Any, stack: FleetStack) -> None:
    page = go("#/jobs/research%2Ftrain-0001?range=15m")
    expect(page.get_by_role("heading", name="train-0001")).to_be_visible()
    table = page.get_by_role("region", name="GPUs of this job")
    expect(table.locator("tbody tr")).to_have_count(8)
    expect(page.locator(".charts canvas")).to_have_count(len(METRICS))
    expect(page.locator(".verdict")).to_contain_text(re.compile("No straggler|stragglers?.*median"))
    table.get_by_role("link", name="sim-dgx-00001 · GPU 5").click()
    expect(page).to_have_url(re.compile(f"#/gpus/{stack.played.devices[13].gpu_id}"))
    page.get_by_role("link", name="research/train-0001-5").click()
    expect(page).to_have_url(re.compile("#/jobs/research%2Ftrain-0001"))


def test_an_unknown_job_is_told_in_words(go: Any) -> None:
    page = go("#/jobs/research%2Fnobody")
    expect(page.get_by_role("alert")).to_contain_text("No GPU is held by a pod of research/nobody")


def test_pods_of_one_workload_are_one_job_and_its_stragglers_are_found(go: Any) -> None:
    page = go("#/jobs")
    found = page.evaluate(
        """async () => {
          const { jobOf, stragglers } = await import(new URL("static/js/jobs.js", document.baseURI));
          const pods = ["bert-3", "bert-0-x7k2p", "bert-6d5f9c7b8-zx2vq", "bert-worker-12", "bert-master-0", "bert", "42"];
          const of = (...values) => stragglers(values.map((value) => ({ value })));
          return {
            jobs: pods.map((pod) => jobOf({ namespace: "ml", pod }).id),
            slow: of(97, 12, 98, 70, 99, NaN).stragglers.map(({ value }) => value),
            even: of(97, 98, 96).stragglers.length,
            idle: of(0, 1, 6).stragglers.length,
            nothing: of().stragglers.length,
          };
        }"""
    )
    assert found["jobs"] == ["ml/bert"] * 6 + ["ml/42"]
    assert found["slow"] == [12, 70]
    assert (found["even"], found["idle"], found["nothing"]) == (0, 0, 0)

"""The benchmark frame: the lines that others script against, from a run that is too small to mean anything."""

from __future__ import annotations

import json
import random
import select
import subprocess
import sys
import time
from pathlib import Path

from crc32c import crc32c

from loadtest.bench import curves, report
from loadtest.bench.fleet import dealt_at_random
from loadtest.bench.fleet_agent import Agent
from loadtest.bench.frame import Figure, compare, machine, modules
from tests.helpers.processes import ROOT
from zmqbroker.testing import running_broker, topic_stats


def bench(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "loadtest.bench", *args]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)


def test_relay_prints_one_json_line_a_figure_with_its_baseline_beside_it(tmp_path: Path) -> None:
    done = bench("relay", "--json", "--scale", "0.01", "--runs", "1", "--dir", str(tmp_path))
    assert done.returncode == 0, done.stderr
    figures = [json.loads(line) for line in done.stdout.splitlines()]
    assert [figure["metric"] for figure in figures] == ["batches_20kB_per_s", "messages_100B_per_s"]
    for figure in figures:
        assert set(figure) == {"bench", "metric", "value", "unit", "baseline", "baseline_value", "ratio"}
        assert figure["bench"] == "relay"
        assert figure["value"] > 0
        assert figure["baseline_value"] > 0
        assert figure["ratio"] > 0
    assert list(tmp_path.iterdir()) == []


def test_an_agent_of_the_fleet_is_acknowledged_over_a_connection_without_a_zeromq_socket(tmp_path: Path) -> None:
    payload = b"x" * 1000  # more than fits a short frame
    with running_broker(tmp_path) as broker:
        agent = Agent(broker.endpoints[0], random.Random(1), time.monotonic())
        poll = select.poll()
        poll.register(agent.fileno, select.POLLIN)
        try:
            deadline = time.monotonic() + 30
            published = False
            while not agent.acks_s and time.monotonic() < deadline:
                if poll.poll(100):
                    agent.take(time.monotonic())
                if agent.conversation.connected and not published:
                    published = True
                    agent.publish(payload, 7, crc32c(payload), time.monotonic())
            assert len(agent.acks_s) == 1
            assert topic_stats(broker, "fleet")["rows"] == 7
        finally:
            agent.close()


def test_the_slowest_agent_by_chance_has_waits_that_somebody_had() -> None:
    dealt = dealt_at_random([[0.001, 0.002, 0.003], [0.004]])
    assert len(dealt) == 2
    assert set(dealt) <= {1.0, 2.0, 3.0, 4.0}


def test_every_benchmark_says_what_it_measures_in_its_first_line() -> None:
    found = modules()
    assert {"relay", "pipeline"} <= set(found)
    for name, module in found.items():
        assert len((module.__doc__ or "").splitlines()[0]) > 20, name


def test_an_unknown_benchmark_is_one_line_and_exit_code_2() -> None:
    done = bench("relai")
    assert done.returncode == 2
    assert done.stderr.startswith("bench: 'relai' is none of ")
    assert done.stderr.count("\n") == 1


def test_a_figure_is_a_median_beside_the_baselines_median() -> None:
    figure = compare("b", "m", "1/s", [1.0, 100.0, 10.0], "other", [5.0, 4.0, 90.0])
    assert figure == Figure("b", "m", 10.0, "1/s", "other", 5.0, 2.0)
    assert compare("b", "m", "1/s", [2.0]) == Figure("b", "m", 2.0, "1/s")


def test_the_machine_is_described_with_its_disk(tmp_path: Path) -> None:
    found = machine(tmp_path)
    assert found["cores"] >= 1
    assert 0 < found["fdatasync_64kB_p50_ms"] <= found["fdatasync_64kB_p99_ms"]
    assert found["disk_write_mb_per_s"] > 0
    assert list(tmp_path.iterdir()) == []


def test_the_report_puts_results_between_its_marks_and_nowhere_else(tmp_path: Path) -> None:
    result = {
        "bench": "relay",
        "taken": "2026-11-21T00:00:00+00:00",
        "runs": 3,
        "machine": machine(tmp_path),
        "figures": [vars(Figure("relay", "batches_20kB_per_s", 12345.0, "1/s", "bare", 24690.0, 0.5))],
    }
    (tmp_path / "relay.json").write_text(json.dumps(result))
    page = tmp_path / "performance.md"
    page.write_text(f"# Before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.main(tmp_path, tmp_path)
    text = page.read_text()
    assert "| `batches_20kB_per_s` | 12,345 1/s | bare | 24,690 | 0.5 |" in text
    assert "old" not in text
    assert text.startswith("# Before\n")
    assert text.endswith(f"{report.END}\nafter\n")


def test_the_curves_of_the_options_are_tables_and_charts() -> None:
    points = [
        {"batch_rows": 100, "rows_per_s": 650_500.0, "p99_ms": 9.25},
        {"batch_rows": 300, "rows_per_s": 1e6, "p99_ms": 8},
    ]
    lines = list(curves.sections({"notes": {"curves": {"batch_rows": points}}}))
    assert "| 100 | 650,500 | 9.25 |" in lines
    assert '    x-axis "batch rows" [100, 300]' in lines
    assert "    bar [650, 1000]" in lines

"""Reading what exporters serve: both label generations, times, staleness, and the look-alike that tests scraping."""

import logging
import random
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from producers.dcgm import metrics_url
from producers.exporter import FleetExporter
from producers.exposition import ExpositionReader
from producers.fleet import DEFAULT_METRICS, FleetSpec
from producers.identities import Identities
from producers.scrape import ScrapeSource
from telemetry.options import UsageError

NOW_NS = 1_763_640_000_000_000_000
CLASSIC = """# HELP DCGM_FI_DEV_SM_CLOCK SM clock frequency (in MHz).
# TYPE DCGM_FI_DEV_SM_CLOCK gauge
DCGM_FI_DEV_SM_CLOCK{gpu="0",UUID="GPU-1",pci_bus_id="00000000:8D:00.0",device="nvidia0",modelName="NVIDIA H100 80GB HBM3",Hostname="node-1",DCGM_FI_DRIVER_VERSION="550.1",container="c",namespace="default",pod="p"} 1980
go_goroutines 12
"""
NEWER = """# HELP DCGM_FI_DEV_SM_CLOCK SM clock frequency (in Hz).
DCGM_FI_DEV_SM_CLOCK{gpu="0",uuid="GPU-1",device="nvidia0",modelName="NVIDIA H100 80GB HBM3",hostname="node-1",DCGM_FI_SYSTEM_DRIVER_VERSION="580.1",pod="p",hpc_job="4711"} 1.98e+09
"""


def read(text, **options):
    identities = Identities()
    scrape = ExpositionReader(identities, **options).read(text, NOW_NS)
    columns = scrape.columns
    rows = [
        (identities.devices[d], identities.metrics[m], v, t)
        for d, m, v, t in zip(
            columns.device.tolist(),
            columns.metric.tolist(),
            columns.value.tolist(),
            columns.timestamp_ns.tolist(),
            strict=True,
        )
    ]
    return rows, scrape.skipped


def test_both_label_generations_give_one_series_in_classic_units():
    ((old, metric, value, time),) = read(CLASSIC)[0]
    ((new, metric_new, value_new, _),) = read(NEWER)[0]
    assert (metric, value, time) == ("DCGM_FI_DEV_SM_CLOCK", 1980.0, NOW_NS)
    assert (metric_new, value_new) == (metric, pytest.approx(1980.0))
    assert (old.uuid, old.hostname, old.gpu_index, old.pod) == (new.uuid, new.hostname, new.gpu_index, new.pod)
    assert (old.namespace, old.container, new.job) == ("default", "c", "4711")


def test_an_exporters_own_metrics_are_not_the_gpus():
    rows, skipped = read(CLASSIC)
    assert len(rows) == 1
    assert skipped == {}


def test_samples_without_a_gpu_and_values_that_are_none_are_counted():
    text = 'DCGM_FI_DEV_CPU_TEMP{cpu="0"} 60\nDCGM_FI_DEV_GPU_TEMP{UUID="G"} warm\nDCGM_FI_DEV_GPU_TEMP{UUID="G"} NaN\n'
    rows, skipped = read(text)
    assert skipped == {"no_gpu": 1, "not_a_number": 1}
    assert np.isnan(rows[0][2])


def test_samples_with_times_of_their_own_are_taken_once_and_not_when_stale():
    reader = ExpositionReader(Identities(), stale_after_s=60)
    line = 'DCGM_FI_DEV_GPU_TEMP{UUID="G"} 60 %d\n'
    now_ms = NOW_NS // 10**6
    first = reader.read(line % (now_ms - 1000), NOW_NS)
    assert first.columns.timestamp_ns.tolist() == [NOW_NS - 10**9]
    assert reader.read(line % (now_ms - 1000), NOW_NS).skipped == {"repeated": 1}
    assert reader.read(line % (now_ms - 61_000), NOW_NS).skipped == {"stale": 1}


def test_another_exporter_at_the_same_address_changes_the_unit():
    reader = ExpositionReader(Identities())
    series = 'DCGM_FI_DEV_SM_CLOCK{UUID="G"} %s\n'
    assert reader.read("# HELP DCGM_FI_DEV_SM_CLOCK x (in MHz).\n" + series % 1980, NOW_NS).columns.value[0] == 1980
    changed = reader.read("# HELP DCGM_FI_DEV_SM_CLOCK x (in Hz).\n" + series % 1.98e9, NOW_NS)
    assert changed.columns.value[0] == pytest.approx(1980)


def test_garbage_is_read_without_an_exception():
    rng = random.Random(5)
    for _ in range(300):
        text = "".join(rng.choice('DCGM_a{}="\\,1 \n#é') for _ in range(200))
        read(text)
        read(CLASSIC[: rng.randrange(len(CLASSIC))])


@pytest.mark.parametrize("generation", ["classic", "4.9"])
def test_the_look_alike_is_read_back_to_the_simulated_values(generation):
    exporter = FleetExporter(FleetSpec(hosts=2), generation)
    rows, skipped = read(exporter.text())
    assert skipped == {}
    values = {(device.uuid, metric): value for device, metric, value, _ in rows}
    assert len(rows) == len(values) == 16 * len(DEFAULT_METRICS)
    for i, name in enumerate(DEFAULT_METRICS):
        for device, expected in zip(exporter._fleet.devices(), exporter._values[i], strict=True):
            assert values[device.uuid, name] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("node-1", "http://node-1:9400/metrics"),
        ("node-1:9401", "http://node-1:9401/metrics"),
        ("http://node-1:9400", "http://node-1:9400/metrics"),
        ("https://node-1/gpu/metrics", "https://node-1/gpu/metrics"),
    ],
)
def test_an_address_is_completed(text, url):
    assert metrics_url(text) == url


def test_an_address_that_is_none_is_refused():
    with pytest.raises(UsageError):
        metrics_url("ftp://node-1")


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        text = self.server.text
        body = (text or "").encode()
        self.send_response(200 if text is not None else 500)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def exporter():
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.text = CLASSIC
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_targets_are_scraped_on_their_period_and_one_that_fails_is_told(exporter):
    urls = [f"http://127.0.0.1:{exporter.server_port}/metrics", "http://127.0.0.1:9/metrics"]
    source = ScrapeSource(urls, Identities(), interval_s=0.1, timeout_s=1, jitter=0, log=logging.getLogger("test"))
    rows = 0
    for _ in range(30):
        rows += sum(columns.rows for columns in source.collect(0.05))
        if rows >= 3 and source.targets[1].failures:
            break
    good, bad = source.targets
    assert rows >= 3
    assert (good.up, bad.up, source.up) == (True, False, 1)
    assert "refused" in bad.reason
    exporter.text = None
    for _ in range(30):
        source.collect(0.05)
        if good.up is False:
            break
    assert good.reason == "HTTP 500"
    source.close()

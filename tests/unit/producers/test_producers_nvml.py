"""NVML without an NVIDIA library: a recorded one stands below the real binding."""

import logging

import pynvml
import pytest

from producers.identities import Identities
from producers.nvml import NvmlSource
from telemetry.catalogue import CATALOGUE
from telemetry.options import UsageError
from tests.helpers.nvml_library import Library
from tests.helpers.waiting import eventually


@pytest.fixture
def library(monkeypatch):
    recorded = Library()
    monkeypatch.setattr(pynvml, "nvmlLib", recorded)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    monkeypatch.setattr(pynvml, "_LoadNvmlLibrary", lambda: None)
    return recorded


@pytest.fixture
def source(library):
    made = NvmlSource(
        pynvml,
        Identities(),
        interval_s=0.01,
        log=logging.getLogger("test"),
        hostname="node-1",
        labels=[("cluster", "lab")],
    )
    yield made
    made.close()


def values(source, columns):
    return {
        (source._identities.devices[d].gpu_index, source._identities.metrics[m]): v
        for part in columns
        for d, m, v in zip(part.device.tolist(), part.metric.tolist(), part.value.tolist(), strict=True)
    }


def test_readings_have_the_catalogues_names_and_units(source):
    found = values(source, source.collect(1))
    assert found["0", "DCGM_FI_DEV_POWER_USAGE"] == 412.345
    assert found["0", "DCGM_FI_DEV_POWER_USAGE_INSTANT"] == 415.0
    assert found["0", "DCGM_FI_DEV_SM_CLOCK"] == 1755
    assert found["1", "DCGM_FI_DEV_GPU_TEMP"] == 55
    assert found["0", "DCGM_FI_DEV_MEMORY_TEMP"] == 61
    assert found["0", "DCGM_FI_DEV_FB_USED"] == 40500
    assert found["0", "DCGM_FI_DEV_FB_USED_PERCENT"] == 0.5
    assert found["0", "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"] == 5_123_456_789_012
    assert found["0", "DCGM_FI_DEV_ROW_REMAP_PENDING"] == 1
    assert found["0", "DCGM_FI_DEV_POWER_VIOLATION"] == 123_000_000
    assert found["0", "DCGM_FI_DEV_XID_ERRORS"] == 0
    assert {metric for _, metric in found} <= set(CATALOGUE)
    device = source._identities.devices[0]
    assert (device.uuid, device.hostname, device.cluster) == ("GPU-recorded-0", "node-1", "lab")


def test_gpm_gives_ratios_and_bytes_from_the_second_reading_on(source):
    assert ("0", "DCGM_FI_PROF_SM_ACTIVE") not in values(source, source.collect(1))
    found = values(source, source.collect(1))
    assert found["0", "DCGM_FI_PROF_SM_ACTIVE"] == pytest.approx(0.835)
    assert found["0", "DCGM_FI_PROF_PCIE_TX_BYTES"] == 2 * 1048576
    assert ("0", "DCGM_FI_PROF_DRAM_ACTIVE") not in found


def test_what_a_device_lacks_is_asked_once_and_not_at_every_reading(source, library):
    for _ in range(5):
        source.collect(1)
    assert library.calls["nvmlDeviceGetFanSpeed"] == 2  # once a GPU
    assert library.calls["nvmlDeviceGetPowerUsage"] == 10


def test_an_xid_is_a_row_at_once_and_stays_as_the_gauge(source, library):
    source.collect(1)
    library.raise_xid(1, 79)
    rows = eventually(lambda: source._events(), 5, "the event arrives")
    assert values(source, rows) == {("1", "DCGM_FI_DEV_XID_ERRORS"): 79}
    found = values(source, source.collect(1))
    assert (found["0", "DCGM_FI_DEV_XID_ERRORS"], found["1", "DCGM_FI_DEV_XID_ERRORS"]) == (0, 79)


def test_a_lost_gpu_leaves_the_others_alone(source, library):
    library.lost.add(0)
    found = values(source, source.collect(1))
    assert {metric for gpu, metric in found if gpu == "0"} == {"DCGM_FI_DEV_XID_ERRORS"}
    assert found["1", "DCGM_FI_DEV_GPU_UTIL"] == 97
    assert source.up == 1


def test_a_host_without_a_driver_is_told_in_one_line(monkeypatch):
    def missing():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", missing)
    with pytest.raises(UsageError, match="NVIDIA driver"):
        NvmlSource(pynvml, Identities(), interval_s=1, log=logging.getLogger("test"))

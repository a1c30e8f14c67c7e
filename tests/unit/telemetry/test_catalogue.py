"""The metric catalogue: names, units and blanks."""

import math

import numpy as np
import pytest

from telemetry.catalogue import CATALOGUE, canonical, is_blank, normalize, scale, unit_in


def test_every_name_and_alias_belongs_to_one_metric():
    owners: dict[str, str] = {}
    for metric in CATALOGUE.values():
        for name in (metric.name, *metric.renamed_to, *(alias for alias, _ in metric.aliases)):
            assert owners.setdefault(name.lower(), metric.name) == metric.name, name
    ids = [metric.field_id for metric in CATALOGUE.values() if metric.field_id is not None]
    assert len(ids) == len(set(ids))


def test_every_metric_has_a_help_text_and_every_changed_unit_a_factor():
    for metric in CATALOGUE.values():
        assert metric.help
        assert bool(metric.unit_4_9) == (metric.factor_4_9 != 1.0)


@pytest.mark.parametrize(
    ("name", "version", "expected", "factor"),
    [
        ("DCGM_FI_DEV_SM_CLOCK", None, "DCGM_FI_DEV_SM_CLOCK", 1.0),
        ("DCGM_FI_DEV_SM_CLOCK", "4.8.4", "DCGM_FI_DEV_SM_CLOCK", 1.0),
        ("DCGM_FI_DEV_SM_CLOCK", "4.9.0", "DCGM_FI_DEV_SM_CLOCK", 1e-6),
        ("DCGM_FI_DEV_SM_CLOCK", "4.10.1", "DCGM_FI_DEV_SM_CLOCK", 1e-6),
        ("DCGM_FI_DEV_GPU_UTIL_RATIO", "4.9.0", "DCGM_FI_DEV_GPU_UTIL", 100.0),
        ("DCGM_FI_DEV_GPU_UTIL_RATIO", "4.7.0", "DCGM_FI_DEV_GPU_UTIL", 1.0),
        ("DCGM_FI_DEV_GPU_UTIL_RATIO", None, "DCGM_FI_DEV_GPU_UTIL", 100.0),
        ("DCGM_FI_DEV_BOARD_POWER_WATTS", "4.9.0", "DCGM_FI_DEV_POWER_USAGE", 1.0),
        ("DCGM_FI_PROF_TENSOR_UTIL_RATIO", "4.9.0", "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE", 1.0),
        ("memory_used_mb", None, "DCGM_FI_DEV_FB_USED", 1.0),
        ("utilization.gpu [%]", None, "DCGM_FI_DEV_GPU_UTIL", 1.0),
        ("hw.gpu.utilization", None, "DCGM_FI_DEV_GPU_UTIL", 100.0),
        ("gpu_energy_consumed", None, "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", 1e-3),
        ("DCGM_FI_DEV_SOMETHING_NEW", "5.0", "DCGM_FI_DEV_SOMETHING_NEW", 1.0),
        ("my_own_metric", None, "my_own_metric", 1.0),
    ],
)
def test_the_pair_of_name_and_exporter_version_decides_name_and_unit(name, version, expected, factor):
    assert canonical(name, exporter_version=version) == (expected, pytest.approx(factor))


def test_a_stated_unit_wins_over_the_version():
    assert canonical("DCGM_FI_DEV_SM_CLOCK", unit_hint="Hz") == ("DCGM_FI_DEV_SM_CLOCK", 1e-6)
    assert canonical("DCGM_FI_DEV_SM_CLOCK", exporter_version="4.9.0", unit_hint="MHz")[1] == 1.0
    assert canonical("DCGM_FI_DEV_FB_USED", unit_hint="bytes")[1] == pytest.approx(1 / 1048576)


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("SM clock frequency (in MHz).", "MHz"),
        ("GPU utilization (in %).", "%"),
        ("memory.used [MiB]", "MiB"),
        ("Value of the last XID error encountered.", None),
        ("Framebuffer memory free (in bytes).", "bytes"),
        ("Ratio of time (in furlongs)", None),
    ],
)
def test_a_help_text_states_its_unit_in_brackets(text, unit):
    assert unit_in(text) == unit


def test_headings_are_compared_without_case_punctuation_and_unit():
    assert normalize(" clocks.current.sm [MHz]") == "clocks_current_sm"


@pytest.mark.parametrize("blank", [9223372036854775792 + i for i in range(4)] + [2147483632 + i for i in range(4)])
def test_integer_blanks_are_recognised(blank):
    assert is_blank(np.array([1.0, float(blank)])).tolist() == [False, True]


def test_float_blanks_are_recognised():
    assert is_blank(np.array([140737488355328.0 + i for i in range(4)])).all()


def test_large_counters_and_odd_values_are_no_blanks():
    """An energy counter in mJ and a PCIe rate in B/s pass 2^31 in daily use."""
    values = np.array([2147483631.0, 2147483648.0, 5e12, 1.5e14, 2147483633.5, -9.3e18, math.nan, math.inf])
    assert is_blank(values).tolist() == [False] * 8
    assert is_blank(np.array([])).tolist() == []


def test_scaling_leaves_blanks_as_they_are():
    blank = float(9223372036854775794)
    assert scale(np.array([1410e6, blank]), 1e-6).tolist() == [1410.0, blank]

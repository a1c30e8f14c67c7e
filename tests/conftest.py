"""Fixtures for every layer."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent
REAL_CSV = ROOT.parent / "shared" / "data" / "dcgm_metrics_20250718_134233.csv"

# A failure prints the blob that replays it; machines are shared, so time is no reason to fail.
settings.register_profile(
    "default", deadline=None, max_examples=60, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("ci", settings.get_profile("default"), max_examples=200)
settings.load_profile("ci" if os.environ.get("CI") else "default")


# No collector of a test asks the broker that may run on the default port of this machine for anything.
os.environ.setdefault("COLLECTOR_BROKER_ADMIN", "off")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In CI a test of real processes that fails gets one second chance, and the summary names it (RERUN).

    Such tests wait for sockets, disks and browsers of a machine that others load. Logic (unit, contract) and the
    accounts of rows (simulation, chaos) get none: there a failure is a defect, however rare.
    """
    if os.environ.get("CI"):
        for item in items:
            if item.path.is_relative_to(ROOT / "tests" / "integration") or item.path.is_relative_to(
                ROOT / "tests" / "e2e"
            ):
                item.add_marker(pytest.mark.flaky(reruns=1))


@pytest.fixture(autouse=True, scope="module")
def processes_that_are_measured(request: pytest.FixtureRequest) -> Iterator[None]:
    """Under coverage the processes of integration tests count; those of e2e and chaos run at their own speed."""
    with pytest.MonkeyPatch.context() as patch:
        if not request.path.is_relative_to(ROOT / "tests" / "integration"):
            patch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
        yield


@pytest.fixture
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture
def real_csv() -> Path:
    """A real DCGM export: 2,470 rows, 247 GPUs, 10 metrics. It is not part of the repository."""
    if not REAL_CSV.exists():
        pytest.skip(f"{REAL_CSV.name} is not beside the repository")
    return REAL_CSV

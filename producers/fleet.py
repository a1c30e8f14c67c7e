"""A plausible fleet of GPUs, seeded and vectorised: one array operation a metric and tick, whatever the size.

What it plays: jobs begin and end on whole hosts; GPUs heat up with their load and throttle when hot or at the power
cap; some sit idle though a job holds their memory; one GPU in a few hundred fails, first with corrected errors, then
with XIDs, and falls off the bus (blanks) until its host is repaired; now and then any field is blank.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from telemetry.batch import Device

BLANK: Final = 9223372036854775794.0
"""DCGM_INT64_NOT_SUPPORTED as float64."""
BLANK_SHARE: Final = 2e-5
FAILING_SHARE: Final = 1 / 400

WARM_UP_STEPS: Final = 20
WARM_UP_STEP_S: Final = 15.0
"""A fleet has been running for five minutes when it is first looked at: warm, and with a fault or two behind it."""

POWER_CAP_W: Final = 700.0
HOT_C: Final = 84.0
FB_TOTAL_MIB: Final = 81_559.0
FB_RESERVED_MIB: Final = 551.0

DEFAULT_METRICS: Final = (
    "DCGM_FI_DEV_GPU_UTIL",
    "DCGM_FI_DEV_MEM_COPY_UTIL",
    "DCGM_FI_DEV_FB_USED",
    "DCGM_FI_DEV_FB_FREE",
    "DCGM_FI_DEV_GPU_TEMP",
    "DCGM_FI_DEV_MEMORY_TEMP",
    "DCGM_FI_DEV_POWER_USAGE",
    "DCGM_FI_DEV_SM_CLOCK",
    "DCGM_FI_DEV_MEM_CLOCK",
    "DCGM_FI_DEV_XID_ERRORS",
)
MODEL: Final = "NVIDIA H100 80GB HBM3"
DRIVER: Final = "550.144.03"


@dataclass(frozen=True, slots=True)
class FleetSpec:
    """Which fleet: the same spec is the same fleet, GPU by GPU, whoever plays which part of it."""

    hosts: int = 4
    gpus_per_host: int = 8
    metrics: tuple[str, ...] = DEFAULT_METRICS
    seed: int = 1
    interval_s: float = 1.0
    """Simulated time between ticks."""
    first_host: int = 0
    """This part of the fleet begins at that host."""

    @property
    def gpus(self) -> int:
        return self.hosts * self.gpus_per_host

    @property
    def rows_a_tick(self) -> int:
        return self.gpus * len(self.metrics)


class Fleet:
    """Plays one spec tick by tick. Values have the resolution that DCGM gives them."""

    def __init__(self, spec: FleetSpec) -> None:
        self.spec = spec
        # The generator depends on the part that is played: parts of one fleet must not move in step.
        self._random = np.random.default_rng([spec.seed, spec.first_host])
        n = spec.gpus
        self._host = np.repeat(np.arange(spec.hosts), spec.gpus_per_host)
        self._busy = np.zeros(spec.hosts, dtype=bool)
        self._left_s = np.zeros(spec.hosts)
        self._job_util = np.zeros(spec.hosts)
        self._job_memory = np.zeros(spec.hosts)
        self._lazy = np.zeros(n, dtype=bool)
        self._cooling = self._random.normal(1.0, 0.06, n)
        self._util = np.zeros(n)
        self._temp = 30 + self._random.random(n) * 6
        self._power = np.full(n, 70.0)
        self._throttle = np.zeros(n, dtype=np.int64)
        self._sm_clock = np.full(n, 345.0)
        self._energy_mj = np.floor(self._random.random(n) * 5e12)
        self._xid = np.zeros(n)
        self._sbe = np.zeros(n)
        self._dbe = np.zeros(n)
        self._violation_ns = np.zeros(n)
        failing = self._random.random(n) < FAILING_SHARE
        if not failing.any():
            # Even the smallest fleet has a GPU to look after.
            failing[int(self._random.integers(n))] = True
        self._failing = failing
        self._gone_s = np.zeros(n)
        self._begin_jobs(np.ones(spec.hosts, dtype=bool))
        self._left_s *= self._random.random(spec.hosts)
        for _ in range(WARM_UP_STEPS):
            self._go_on(WARM_UP_STEP_S)

    def devices(self) -> list[Device]:
        """The GPUs, host by host."""
        spec = self.spec
        return [
            self.device(spec.first_host + host, gpu) for host in range(spec.hosts) for gpu in range(spec.gpus_per_host)
        ]

    def device(self, host: int, gpu: int) -> Device:
        """One GPU; its uuid is made from seed, host and index."""
        digest = hashlib.blake2b(f"{self.spec.seed}/{host}/{gpu}".encode(), digest_size=16).hexdigest()
        name = hostname(host)
        return Device(
            uuid=f"GPU-{digest[:8]}-{digest[8:12]}-{digest[12:16]}-{digest[16:20]}-{digest[20:]}",
            hostname=name,
            gpu_index=str(gpu),
            device=f"nvidia{gpu}",
            model=MODEL,
            job="simulated",
            labels=(("DCGM_FI_DRIVER_VERSION", DRIVER), ("instance", f"{name}:9400")),
        )

    def tick(self) -> np.ndarray:
        """Go on by one interval; float64 of shape (metrics, GPUs)."""
        self._go_on(self.spec.interval_s)
        values = np.empty((len(self.spec.metrics), self.spec.gpus))
        for i, name in enumerate(self.spec.metrics):
            values[i] = _FIELDS[name](self) if name in _FIELDS else 0.0
        gone = self._gone_s > 0
        if gone.any():
            still_told = np.array([name == "DCGM_FI_DEV_XID_ERRORS" for name in self.spec.metrics])
            values[np.ix_(~still_told, gone)] = BLANK
        blanks = self._random.binomial(values.size, BLANK_SHARE)
        if blanks:
            values.ravel()[self._random.integers(values.size, size=blanks)] = BLANK
        return values

    def _go_on(self, seconds: float) -> None:
        self._left_s -= seconds
        self._begin_jobs(self._left_s <= 0)
        self._load(seconds)
        self._fail(seconds)

    def _begin_jobs(self, ended: np.ndarray) -> None:
        """Hosts whose job (or rest) ended begin the next one."""
        count = int(ended.sum())
        if not count:
            return
        random = self._random
        busy = random.random(count) < 0.75
        self._busy[ended] = busy
        self._left_s[ended] = random.exponential(np.where(busy, 900.0, 180.0)) + 5
        self._job_util[ended] = np.where(busy, np.clip(random.normal(90, 12, count), 5, 100), 0)
        self._job_memory[ended] = np.where(busy, random.uniform(0.3, 0.95, count), 0)
        gpus = np.repeat(ended, self.spec.gpus_per_host)
        # Held and idle: the job has its memory and does nothing with it.
        self._lazy[gpus] = random.random(int(gpus.sum())) < 0.05

    def _load(self, seconds: float) -> None:
        random, n = self._random, self.spec.gpus
        wanted = np.where(self._lazy, 0.0, self._job_util[self._host])
        noise = random.standard_normal((3, n))
        self._util = np.clip(wanted + noise[0] * 3 * (wanted > 0), 0, 100)
        busy = self._busy[self._host] & ~self._lazy
        self._power += ((70 + 6.5 * self._util * np.where(busy, 1.0, 0.1) + noise[1] * 4) - self._power) * min(
            1.0, 0.6 * seconds
        )
        capped = self._power > POWER_CAP_W
        self._power = np.minimum(self._power, POWER_CAP_W)
        goal = 27 + self._power * 0.075 * self._cooling
        self._temp += (goal - self._temp) * min(1.0, 0.05 * seconds) + noise[2] * 0.2
        hot = self._temp > HOT_C
        self._throttle = np.where(busy, 0, 1) | np.where(capped, 0x4, 0) | np.where(hot, 0x20, 0)
        self._sm_clock = np.where(busy, np.where(hot, 1305.0, np.where(capped, 1755.0, 1980.0)), 345.0)
        self._violation_ns += np.where(hot | capped, seconds * 1e9, 0)
        self._energy_mj += self._power * seconds * 1000

    def _fail(self, seconds: float) -> None:
        random = self._random
        self._gone_s = np.maximum(0.0, self._gone_s - seconds)
        sick = np.flatnonzero(self._failing)
        chance = random.random((3, len(sick)))
        self._sbe[sick] += chance[0] < 0.05 * seconds
        ailing = sick[chance[1] < 0.01 * seconds]
        self._xid[ailing] = random.choice([48.0, 63.0, 94.0], size=len(ailing))
        self._dbe[ailing] += 1
        fallen = sick[chance[2] < 0.002 * seconds]
        self._xid[fallen] = 79.0
        self._gone_s[fallen] = 120.0


def hostname(host: int) -> str:
    """Name of a simulated host."""
    return f"sim-dgx-{host:05d}"


def _ratio(scale: float) -> Callable[[Fleet], np.ndarray]:
    return lambda fleet: np.round(fleet._util / 100 * scale, 6)


def _memory_used(fleet: Fleet) -> np.ndarray:
    return np.floor(4 + (FB_TOTAL_MIB - FB_RESERVED_MIB - 4) * fleet._job_memory[fleet._host])


_FIELDS: Final[dict[str, Callable[[Fleet], np.ndarray]]] = {
    "DCGM_FI_DEV_GPU_UTIL": lambda fleet: np.rint(fleet._util),
    "DCGM_FI_DEV_MEM_COPY_UTIL": lambda fleet: np.rint(fleet._util * 0.55),
    "DCGM_FI_DEV_ENC_UTIL": lambda fleet: np.zeros(fleet.spec.gpus),
    "DCGM_FI_DEV_DEC_UTIL": lambda fleet: np.zeros(fleet.spec.gpus),
    "DCGM_FI_DEV_FB_TOTAL": lambda fleet: np.full(fleet.spec.gpus, FB_TOTAL_MIB),
    "DCGM_FI_DEV_FB_RESERVED": lambda fleet: np.full(fleet.spec.gpus, FB_RESERVED_MIB),
    "DCGM_FI_DEV_FB_USED": _memory_used,
    "DCGM_FI_DEV_FB_FREE": lambda fleet: FB_TOTAL_MIB - FB_RESERVED_MIB - _memory_used(fleet),
    "DCGM_FI_DEV_FB_USED_PERCENT": lambda fleet: np.round(_memory_used(fleet) / (FB_TOTAL_MIB - FB_RESERVED_MIB), 6),
    "DCGM_FI_DEV_GPU_TEMP": lambda fleet: np.rint(fleet._temp),
    "DCGM_FI_DEV_MEMORY_TEMP": lambda fleet: np.rint(fleet._temp + 8),
    "DCGM_FI_DEV_GPU_TEMP_LIMIT": lambda fleet: np.rint(87 - fleet._temp),
    "DCGM_FI_DEV_POWER_USAGE": lambda fleet: np.round(fleet._power, 3),
    "DCGM_FI_DEV_POWER_USAGE_INSTANT": lambda fleet: np.round(fleet._power, 3),
    "DCGM_FI_DEV_POWER_MGMT_LIMIT": lambda fleet: np.full(fleet.spec.gpus, POWER_CAP_W),
    "DCGM_FI_DEV_ENFORCED_POWER_LIMIT": lambda fleet: np.full(fleet.spec.gpus, POWER_CAP_W),
    "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION": lambda fleet: np.floor(fleet._energy_mj),
    "DCGM_FI_DEV_SM_CLOCK": lambda fleet: fleet._sm_clock,
    "DCGM_FI_DEV_MEM_CLOCK": lambda fleet: np.full(fleet.spec.gpus, 2619.0),
    "DCGM_FI_DEV_CLOCK_THROTTLE_REASONS": lambda fleet: fleet._throttle.astype(float),
    "DCGM_FI_DEV_POWER_VIOLATION": lambda fleet: fleet._violation_ns,
    "DCGM_FI_DEV_PSTATE": lambda fleet: np.zeros(fleet.spec.gpus),
    "DCGM_FI_DEV_XID_ERRORS": lambda fleet: fleet._xid,
    "DCGM_FI_DEV_ECC_SBE_VOL_TOTAL": lambda fleet: fleet._sbe,
    "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL": lambda fleet: fleet._dbe,
    "DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS": lambda fleet: np.minimum(fleet._dbe, 8),
    "DCGM_FI_DEV_ROW_REMAP_PENDING": lambda fleet: (fleet._dbe > 0).astype(float),
    "DCGM_FI_DEV_PCIE_LINK_GEN": lambda fleet: np.full(fleet.spec.gpus, 5.0),
    "DCGM_FI_DEV_PCIE_LINK_WIDTH": lambda fleet: np.full(fleet.spec.gpus, 16.0),
    "DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL": lambda fleet: np.rint(fleet._util * 2500),
    "DCGM_FI_PROF_GR_ENGINE_ACTIVE": _ratio(1.0),
    "DCGM_FI_PROF_SM_ACTIVE": _ratio(0.85),
    "DCGM_FI_PROF_SM_OCCUPANCY": _ratio(0.4),
    "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE": _ratio(0.45),
    "DCGM_FI_PROF_DRAM_ACTIVE": _ratio(0.5),
    "DCGM_FI_PROF_PCIE_TX_BYTES": lambda fleet: np.rint(fleet._util * 3e7),
    "DCGM_FI_PROF_PCIE_RX_BYTES": lambda fleet: np.rint(fleet._util * 4e7),
}

SIMULATED_METRICS: Final = tuple(_FIELDS)
"""Every metric the simulator can play."""


def metrics_named(text: str) -> tuple[str, ...]:
    """Metrics for an option: a number (that many of the usual ones), or names separated by commas."""
    if text.isdecimal():
        ordered = (*DEFAULT_METRICS, *(name for name in SIMULATED_METRICS if name not in DEFAULT_METRICS))
        if not 1 <= int(text) <= len(ordered):
            raise ValueError(f"is not between 1 and {len(ordered)}")
        return ordered[: int(text)]
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    unknown = [name for name in names if name not in SIMULATED_METRICS]
    if unknown or not names:
        raise ValueError(f"names no metric that is simulated: {', '.join(unknown) or 'none'}")
    return names

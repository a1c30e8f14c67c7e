"""What the feeder puts into a batch: a pure function of (seed, session, seq), so that the audit can make it again."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import xxhash

from telemetry.batch import Device, DictionaryEncoder, encode

METRICS = (
    "DCGM_FI_DEV_GPU_TEMP", "DCGM_FI_DEV_POWER_USAGE", "DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_DEV_FB_USED",
    "DCGM_FI_DEV_SM_CLOCK", "DCGM_FI_DEV_MEM_CLOCK", "DCGM_FI_DEV_MEMORY_TEMP", "DCGM_FI_DEV_MEM_COPY_UTIL",
)  # fmt: skip
GPUS = 64
DEVICES = (
    *(Device(uuid=f"GPU-{n:04x}", hostname=f"host-{n // 8}", gpu_index=str(n % 8), model="H100") for n in range(GPUS)),
    Device(device="nobody"),  # tells nothing of a GPU: its rows are rejected
)
BLANK = 9223372036854775794.0
_ENCODER = DictionaryEncoder()
_DICTIONARY = _ENCODER.encode(DEVICES, METRICS)


class Contents(NamedTuple):
    """The columns of one batch, and which rows the collector must accept."""

    ts_ms: np.ndarray
    device: np.ndarray
    metric: np.ndarray
    value: np.ndarray
    accepted: np.ndarray


def contents(session: int, seq: int, base_ms: int, rows: int) -> Contents:
    """``base_ms``: the batch's first timestamp, told in the journal, because it is the time of sending."""
    rng = np.random.default_rng((session, seq))
    ts_ms = base_ms + np.sort(rng.integers(0, 1000, rows))
    device = rng.integers(0, GPUS, rows).astype(np.uint16)
    metric = rng.integers(0, len(METRICS), rows).astype(np.uint16)
    value = np.round(rng.random(rows) * 1000, 2)
    accepted = np.ones(rows, dtype=bool)
    for mask, spoil in ((rng.random(rows) < 0.002, kind) for kind in ("nan", "blank", "nobody", "old")):
        accepted &= ~mask
        if spoil == "nan":
            value[mask] = np.nan
        elif spoil == "blank":
            value[mask] = BLANK
        elif spoil == "nobody":
            device[mask] = GPUS
        else:
            ts_ms[mask] -= 30 * 86_400_000
    return Contents(ts_ms, device, metric, value, accepted)


def is_garbage(session: int, seq: int) -> bool:
    """Some batches cannot be decoded: they must come to the dead letters, alone."""
    return (session ^ seq * 2654435761) % 307 == 0


def payload(session: int, seq: int, base_ms: int, rows: int) -> bytes:
    """The batch as it is sent."""
    if is_garbage(session, seq):
        return b"garbage" * 20
    c = contents(session, seq, base_ms, rows)
    return encode(
        session, seq, c.ts_ms * 1_000_000, c.device, c.metric, c.value, _DICTIONARY, created_ns=base_ms * 1_000_000
    )


# A sum of hashes that any loss, repeat, change or exchange of values between rows changes; the same in NumPy and SQL.
_K1, _K2 = 0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F
HASH_SQL = (
    f"sum(bitXor(gpu, toUInt64(toUnixTimestamp64Milli(ts)) * {_K1}) "
    f"* (bitXor(reinterpretAsUInt64(value), xxHash64(toString(metric))) + {_K2}))"
)


def hash_of(c: Contents) -> int:
    """Of the accepted rows: what :data:`HASH_SQL` gives for them."""
    keep = c.accepted
    gpu = np.array([device.gpu_key for device in DEVICES], dtype=np.uint64)[c.device[keep]]
    name = np.array([_xxh64(metric) for metric in METRICS], dtype=np.uint64)[c.metric[keep]]
    ts = c.ts_ms[keep].astype(np.uint64)
    bits = c.value[keep].view(np.uint64)
    with np.errstate(over="ignore"):
        rows = (gpu ^ (ts * np.uint64(_K1))) * ((bits ^ name) + np.uint64(_K2))
        return int(rows.sum(dtype=np.uint64))


def _xxh64(text: str) -> int:
    return xxhash.xxh64_intdigest(text.encode())

"""Step 1, decode: the payloads of a delivery become batches; what cannot be read is named, and the rest goes on.

Decoding is a function of the bytes alone: every collector that meets this range comes to the same batches, so
that a range gives the same rows on every attempt (R2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from telemetry.batch import Batch, BatchDecoder, BatchError


class DeadRecord(NamedTuple):
    """A record of the range that can never be stored. ``offset`` is its place in the log."""

    offset: int
    reason: str


class Decoded(NamedTuple):
    """What a delivery holds. ``batches``, ``appended_ms`` and ``offsets`` run parallel."""

    batches: list[Batch]
    appended_ms: list[int]
    """When the broker appended the record, ms since the epoch, UTC: the clock of validation (R17)."""
    offsets: list[int]
    dead: list[DeadRecord]
    repeats: int
    """Records left out because the same (session, seq) stands earlier in this very range."""


def decode(records: np.ndarray, payloads: Sequence[memoryview | bytes], decoder: BatchDecoder) -> Decoded:
    """Decode each payload of a delivery.

    ``records`` is the delivery's structured array (offset, session, seq, time_ms are read), one element a payload.
    A batch's address is what its own checksummed header says. A broker that lost a producer's session state may
    have logged a resend twice: within one range the first wins, so that no block can hold a row twice (R1).
    """
    batches: list[Batch] = []
    appended_ms: list[int] = []
    offsets: list[int] = []
    dead: list[DeadRecord] = []
    seen: set[tuple[int, int]] = set()
    repeats = 0
    one = decoder.decode
    for offset, time_ms, payload in zip(records["offset"].tolist(), records["time_ms"].tolist(), payloads, strict=True):
        try:
            batch = one(payload)
        except BatchError as e:
            dead.append(DeadRecord(offset, f"undecodable batch: {e}"))
            continue
        address = (batch.session, batch.seq)
        if address in seen:
            repeats += 1
            continue
        seen.add(address)
        batches.append(batch)
        appended_ms.append(time_ms)
        offsets.append(offset)
    return Decoded(batches, appended_ms, offsets, dead, repeats)

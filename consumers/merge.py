"""Step 3, merge: the accepted rows of a delivery become one block of columns a day, the others a list of rejects.

One (range, day) is one INSERT is one block is one part: all of it is stored or nothing (R15), because the raw
table is partitioned by day. Rows keep the order of the log, so a range gives the same block on every attempt.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from clickhouse.insert import SampleColumns
from clickhouse.native import Keys, flat
from consumers.rows import Rows
from consumers.validate import MS_A_DAY


class Address(NamedTuple):
    """A batch's end-to-end id (R1)."""

    session: int
    seq: int


class Probe(NamedTuple):
    """How to ask whether a batch's rows of one day are stored: by the primary key of the first of them (R13)."""

    session: int
    seq: int
    day: int
    gpu: int
    metric: str
    ts_ms: int
    rows: int
    """Rows of the batch in this block: what is there when all is there."""


class DayBlock(NamedTuple):
    """The accepted rows of a range that fall on one UTC day, in the order of the log."""

    day: int
    """Days since the epoch."""
    columns: SampleColumns
    batch: np.ndarray
    """Unsigned integers a row, never decreasing, into ``addresses``."""
    addresses: list[Address]
    """Of every batch of the range."""

    @property
    def rows(self) -> int:
        return self.columns.rows

    def only(self, addresses: Collection[Address]) -> DayBlock:
        """The part of the block that belongs to these batches: for the rest of a partly stored range, or a split."""
        wanted = frozenset(addresses)
        index = np.flatnonzero(np.array([address in wanted for address in self.addresses])[self.batch])
        return self._replace(columns=self.columns.take(index), batch=self.batch[index])

    def probes(self) -> list[Probe]:
        """One probe a batch, in the order of the log."""
        starts = np.concatenate(([0], np.flatnonzero(self.batch[1:] != self.batch[:-1]) + 1))
        sizes = np.diff(np.append(starts, self.rows))
        firsts = self.columns.take(starts)
        return [
            Probe(session, seq, self.day, gpu, firsts.metric_names[code], ts_ms, rows)
            for (session, seq), gpu, code, ts_ms, rows in zip(
                (self.addresses[batch] for batch in self.batch[starts].tolist()),
                flat(firsts.gpu).tolist(),
                firsts.metric_code.tolist(),
                firsts.ts_ms.tolist(),
                sizes.tolist(),
            )
        ]


@dataclass(frozen=True, slots=True)
class Rejected:
    """The rows of a range that are not accepted: ``index`` into the delivery's rows and a reason code for each."""

    rows: Rows
    index: np.ndarray
    reason: np.ndarray

    def __len__(self) -> int:
        return len(self.index)


class Merged(NamedTuple):
    days: list[DayBlock]
    """By day, ascending; none where every row is rejected."""
    rejected: Rejected | None


def merge(rows: Rows, reasons: np.ndarray | None) -> Merged:
    """Split the rows by reason and day. ``reasons``: what :func:`consumers.validate.validate` returned."""
    rejected = None
    keep: np.ndarray | None = None
    if reasons is not None:
        index = np.flatnonzero(reasons)
        rejected = Rejected(rows, index, reasons[index])
        keep = np.flatnonzero(reasons == 0)
        if not len(keep):
            return Merged([], rejected)
    columns, batch = _columns(rows, keep)
    addresses = [Address(one.session, one.seq) for one in rows.batches]
    first, last = int(columns.ts_ms.min()) // MS_A_DAY, int(columns.ts_ms.max()) // MS_A_DAY
    if first == last:
        return Merged([DayBlock(first, columns, batch, addresses)], rejected)
    day = columns.ts_ms // MS_A_DAY
    indices = ((one, np.flatnonzero(day == one)) for one in np.unique(day).tolist())
    return Merged([DayBlock(one, columns.take(index), batch[index], addresses) for one, index in indices], rejected)


def _columns(rows: Rows, keep: np.ndarray | None) -> tuple[SampleColumns, np.ndarray]:
    """Columns of the accepted rows, and the batch of each; ``keep`` None takes every row without a copy if it can."""
    device, metric, value, ts_ms, batch = rows.device, rows.metric, rows.value, rows.ts_ms, rows.batch_of_row()
    if keep is not None:
        device, metric, value, ts_ms, batch = (column[keep] for column in (device, metric, value, ts_ms, batch))
    if rows.scale is not None:
        value = value * rows.scale[metric]
    columns = SampleColumns(
        gpu=Keys(device, rows.gpu),
        labels=Keys(device, rows.labels),
        metric_code=metric if rows.metric_code is None else rows.metric_code[metric],
        metric_names=rows.metric_names,
        ts_ms=ts_ms,
        value=value,
        session=Keys(batch, np.array([one.session for one in rows.batches], dtype=np.uint64)),
        seq=Keys(batch, np.array([one.seq for one in rows.batches], dtype=np.uint64)),
    )
    return columns, batch

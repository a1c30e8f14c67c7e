"""Step 3, merge: the accepted rows of a delivery become one block of columns a day, the others a list of rejects.

One (range, day) is one INSERT is one block is one part: all of it is stored or nothing (R15), because the raw
table is partitioned by day. Rows keep the order of the log, so a range gives the same block on every attempt.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

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
    """The accepted rows of a range that fall on one UTC day: arrays of one length, in the order of the log."""

    day: int
    """Days since the epoch."""
    gpu: np.ndarray
    labels: np.ndarray
    metric_code: np.ndarray
    metric_names: tuple[str, ...]
    ts_ms: np.ndarray
    value: np.ndarray
    session: np.ndarray
    seq: np.ndarray

    @property
    def rows(self) -> int:
        return len(self.value)

    def only(self, addresses: Collection[Address]) -> DayBlock:
        """The part of the block that belongs to these batches: for the rest of a partly stored range, or a split."""
        mask = np.zeros(self.rows, dtype=bool)
        wanted = frozenset(addresses)
        starts = self._starts()
        ends = np.append(starts[1:], self.rows)
        for start, end in zip(starts.tolist(), ends.tolist()):
            if Address(int(self.session[start]), int(self.seq[start])) in wanted:
                mask[start:end] = True
        return self._replace(
            gpu=self.gpu[mask],
            labels=self.labels[mask],
            metric_code=self.metric_code[mask],
            ts_ms=self.ts_ms[mask],
            value=self.value[mask],
            session=self.session[mask],
            seq=self.seq[mask],
        )

    def probes(self) -> list[Probe]:
        """One probe a batch, in the order of the log."""
        starts = self._starts()
        sizes = np.diff(np.append(starts, self.rows))
        return [
            Probe(session, seq, self.day, gpu, self.metric_names[code], ts_ms, rows)
            for session, seq, gpu, code, ts_ms, rows in zip(
                self.session[starts].tolist(),
                self.seq[starts].tolist(),
                self.gpu[starts].tolist(),
                self.metric_code[starts].tolist(),
                self.ts_ms[starts].tolist(),
                sizes.tolist(),
            )
        ]

    def _starts(self) -> np.ndarray:
        """Where each batch starts: rows of a batch stand together and a range holds a batch once."""
        new = (self.session[1:] != self.session[:-1]) | (self.seq[1:] != self.seq[:-1])
        return np.concatenate(([0], np.flatnonzero(new) + 1))


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
    whole = _block(rows, keep)
    first_day, last_day = int(whole.ts_ms.min()) // MS_A_DAY, int(whole.ts_ms.max()) // MS_A_DAY
    if first_day == last_day:
        return Merged([whole._replace(day=first_day)], rejected)
    day = whole.ts_ms // MS_A_DAY
    return Merged([_take(whole, np.flatnonzero(day == d), d) for d in np.unique(day).tolist()], rejected)


def _block(rows: Rows, keep: np.ndarray | None) -> DayBlock:
    """Columns of all accepted rows; ``keep`` None takes every row without a copy where it can."""
    device, metric, value, ts_ms = rows.device, rows.metric, rows.value, rows.ts_ms
    session = np.repeat(np.array([batch.session for batch in rows.batches], dtype=np.uint64), rows.sizes)
    seq = np.repeat(np.array([batch.seq for batch in rows.batches], dtype=np.uint64), rows.sizes)
    if keep is not None:
        device, metric, value, ts_ms, session, seq = (
            column[keep] for column in (device, metric, value, ts_ms, session, seq)
        )
    if rows.scale is not None:
        value = value * rows.scale[metric]
    return DayBlock(
        day=-1,
        gpu=rows.gpu[device],
        labels=rows.labels[device],
        metric_code=metric if rows.metric_code is None else rows.metric_code[metric],
        metric_names=rows.metric_names,
        ts_ms=ts_ms,
        value=value,
        session=session,
        seq=seq,
    )


def _take(block: DayBlock, index: np.ndarray, day: int) -> DayBlock:
    return DayBlock(
        day=day,
        gpu=block.gpu[index],
        labels=block.labels[index],
        metric_code=block.metric_code[index],
        metric_names=block.metric_names,
        ts_ms=block.ts_ms[index],
        value=block.value[index],
        session=block.session[index],
        seq=block.seq[index],
    )

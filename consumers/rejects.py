"""Rows that validation turns away, kept for inspection: by reason, with the address and the columns of the row.

They are inserted by the same once-only insert as the accepted ones (R17): one block a day of *append*, because
the time in the row may be nonsense.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from consumers.merge import Address, Rejected
from consumers.validate import MS_A_DAY


class RejectBlock(NamedTuple):
    """Rejected rows whose batches were appended on one UTC day: arrays of one length, in the order of the log."""

    day: int
    """Days since the epoch, of the time of append."""
    rejected: Rejected
    batch: np.ndarray
    """int64 a row: index of its batch in the delivery."""
    log_uuid: str
    partition: int
    offsets: list[int]
    """Of each batch of the delivery: its place in the log."""

    @property
    def rows(self) -> int:
        return len(self.batch)

    @property
    def expected(self) -> dict[Address, int]:
        """Rejected rows by batch."""
        batches, counts = np.unique(self.batch, return_counts=True)
        all_batches = self.rejected.rows.batches
        return {
            Address(all_batches[b].session, all_batches[b].seq): n for b, n in zip(batches.tolist(), counts.tolist())
        }

    def only(self, addresses: Collection[Address]) -> RejectBlock:
        wanted = frozenset(addresses)
        chosen = [b for b, one in enumerate(self.rejected.rows.batches) if Address(one.session, one.seq) in wanted]
        return self._take(np.isin(self.batch, chosen))

    def _take(self, mask: np.ndarray) -> RejectBlock:
        whole = self.rejected
        part = Rejected(whole.rows, whole.index[mask], whole.reason[mask])
        return self._replace(rejected=part, batch=self.batch[mask])

    def row_in_batch(self) -> np.ndarray:
        """uint32 a row: its place in its batch."""
        sizes = self.rejected.rows.sizes
        starts = np.cumsum(sizes) - sizes
        return (self.rejected.index - starts[self.batch]).astype(np.uint32)


def blocks(rejected: Rejected, log_uuid: str, partition: int, offsets: list[int]) -> list[RejectBlock]:
    """Split by day of append: one block nearly always."""
    rows = rejected.rows
    ends = np.cumsum(rows.sizes)
    batch = np.searchsorted(ends, rejected.index, side="right")
    day = rows.appended_ms[batch] // MS_A_DAY
    whole = RejectBlock(0, rejected, batch, log_uuid, partition, offsets)
    return [whole._take(day == d)._replace(day=d) for d in np.unique(day).tolist()]

"""The shapes that pass between the steps of a streamer."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Columns(NamedTuple):
    """Rows as arrays of one length; codes are those of the reader's :class:`~producers.identities.Identities`."""

    device: np.ndarray
    """int32."""
    metric: np.ndarray
    """int32."""
    value: np.ndarray
    """float64, canonical units, blanks as they came."""
    timestamp_ns: np.ndarray | None
    """int64, UTC; None where rows get the time they are processed."""

    @property
    def rows(self) -> int:
        return len(self.value)

    def part(self, start: int, end: int) -> Columns:
        """Rows ``start`` to ``end - 1``, as views."""
        times = self.timestamp_ns
        return Columns(
            self.device[start:end],
            self.metric[start:end],
            self.value[start:end],
            None if times is None else times[start:end],
        )

    def where(self, keep: np.ndarray) -> Columns:
        """Rows of a mask or an index."""
        times = self.timestamp_ns
        return Columns(self.device[keep], self.metric[keep], self.value[keep], None if times is None else times[keep])


class BadLine(NamedTuple):
    """A line, or a cell of one, that gave no row."""

    line: int
    """Counted from 0 within its block."""
    reason: str
    """ragged, quote, undecodable, no_value, not_a_number, bad_time."""
    column: str
    """Heading of the cell, "" where it is the whole line."""


class Parsed(NamedTuple):
    """What a block gave."""

    columns: Columns
    lines: int
    bad: list[BadLine]

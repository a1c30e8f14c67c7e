"""Sets of log offsets, kept as ranges: what an archive already holds of each partition of each log."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

import numpy as np


class Offsets:
    """A set of whole numbers as sorted, disjoint, closed ranges; neighbours are joined."""

    def __init__(self, ranges: Iterable[tuple[int, int] | list[int]] = ()) -> None:
        self._firsts: list[int] = []
        self._lasts: list[int] = []
        for first, last in ranges:
            self.add(first, last)

    def add(self, first: int, last: int) -> None:
        """Add every offset from ``first`` to ``last``."""
        if last < first:
            raise ValueError(f"a range from {first} to {last} is empty")
        low = bisect_right(self._lasts, first - 2)  # the first range that touches or follows
        high = low
        while high < len(self._firsts) and self._firsts[high] <= last + 1:
            first, last = min(first, self._firsts[high]), max(last, self._lasts[high])
            high += 1
        self._firsts[low:high] = [first]
        self._lasts[low:high] = [last]

    def contains(self, offsets: np.ndarray) -> np.ndarray:
        """bool mask: which of these (uint64) are in the set."""
        if not self._firsts:
            return np.zeros(len(offsets), dtype=bool)
        firsts = np.array(self._firsts, dtype=np.uint64)
        lasts = np.array(self._lasts, dtype=np.uint64)
        at = np.searchsorted(firsts, offsets, side="right")
        return (at > 0) & (offsets <= lasts[np.maximum(at, 1) - 1])

    def ranges(self) -> list[list[int]]:
        return [[first, last] for first, last in zip(self._firsts, self._lasts)]

    def __len__(self) -> int:
        return len(self._firsts)

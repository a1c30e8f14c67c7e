"""What goes back to the broker as dead: the records of a range that can never be stored, with one reason each.

The broker writes them to the dead-letter topic before it settles the range (R26); the rest of the range is
stored and acknowledged in the same message. An operator looks at them and sends them again, or drops them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from consumers.decode import DeadRecord, Decoded
from consumers.merge import Address

REASON_CHARS_MAX = 1_000
"""A reason is for people; what they need stands at its start."""


class DeadLetters:
    """The dead records of one delivery."""

    def __init__(self, undecodable: Iterable[DeadRecord]) -> None:
        self._reasons: dict[int, str] = {record.offset: record.reason for record in undecodable}
        self.rows = 0
        """Rows of dead batches that could be decoded."""

    def refused(self, decoded: Decoded, dead: Mapping[Address, str]) -> None:
        """Add batches that the store refuses, or that are there in part."""
        for batch, offset in zip(decoded.batches, decoded.offsets):
            reason = dead.get(Address(batch.session, batch.seq))
            if reason is not None and offset not in self._reasons:
                self._reasons[offset] = reason
                self.rows += batch.rows

    def __len__(self) -> int:
        return len(self._reasons)

    @property
    def offsets(self) -> list[int]:
        return sorted(self._reasons)

    @property
    def reason(self) -> str:
        """All reasons in one text: those that several records share stand once."""
        by_reason: dict[str, list[int]] = {}
        for offset in self.offsets:
            by_reason.setdefault(self._reasons[offset], []).append(offset)
        if len(by_reason) == 1:
            return next(iter(by_reason))[:REASON_CHARS_MAX]
        return "; ".join(f"{_some(offsets)}: {reason}" for reason, offsets in by_reason.items())[:REASON_CHARS_MAX]


def _some(offsets: list[int]) -> str:
    shown = ", ".join(str(offset) for offset in offsets[:3])
    return f"offset {shown}" + (f" and {len(offsets) - 3} more" if len(offsets) > 3 else "")

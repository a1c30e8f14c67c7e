"""Step 2, validate: which rows are accepted, and why the others are not.

Pure (R17): a function of the batches, the time at which the broker appended them, and the rules; never of the
present. A range that is delivered again, by whatever collector, a minute or a week later, is therefore cut into
the same accepted and rejected rows, which is what lets a block be recognised as a repeat.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from consumers.rows import Rows

Blank = Callable[[np.ndarray], np.ndarray]
"""(float64 values) -> bool mask of the sentinels by which DCGM says that it has no value."""

ACCEPTED: Final = 0
REASONS: Final = (
    "accepted",
    "no_gpu_identity",
    "not_finite",
    "blank",
    "older_than_retention",
    "too_far_past",
    "too_far_future",
)
"""By code. A row that fails several checks has the first of them as its reason."""
NO_GPU_IDENTITY, NOT_FINITE, BLANK, OLDER_THAN_RETENTION, TOO_FAR_PAST, TOO_FAR_FUTURE = range(1, len(REASONS))

MS_A_DAY: Final = 86_400_000


@dataclass(frozen=True)
class Rules:
    """What is accepted, relative to the time of append, in ms.

    Change them only between clean stops, or at least know: a range that was stored under other rules and is asked
    about again may then show more or fewer rows than expected; it is never stored twice for that, but alarmed about.
    """

    past_ms: int = 7 * MS_A_DAY
    future_ms: int = 3_600_000
    retention_ms: int = 7 * MS_A_DAY

    @property
    def version(self) -> str:
        """Names this very configuration, for logs."""
        return f"past={self.past_ms}ms future={self.future_ms}ms retention={self.retention_ms}ms"


def validate(rows: Rows, rules: Rules, is_blank: Blank) -> np.ndarray | None:
    """Return a uint8 reason code a row, or None where every row is accepted (the usual case, and the cheap one)."""
    age_ms = np.repeat(rows.appended_ms, rows.sizes) - rows.ts_ms
    # From the least to the most important reason, so that the first in REASONS is the one that stays.
    failed: list[tuple[int, np.ndarray]] = []
    if int(age_ms.min()) < -rules.future_ms:
        failed.append((TOO_FAR_FUTURE, age_ms < -rules.future_ms))
    oldest_ms = int(age_ms.max())
    if oldest_ms > rules.past_ms:
        failed.append((TOO_FAR_PAST, age_ms > rules.past_ms))
    if oldest_ms > rules.retention_ms:
        failed.append((OLDER_THAN_RETENTION, age_ms > rules.retention_ms))
    blank = is_blank(rows.value)
    if blank.any():
        failed.append((BLANK, blank))
    # What is stored is the scaled value: a factor must not carry a huge number into infinity.
    finite = np.isfinite(rows.value if rows.scale is None else rows.value * rows.scale[rows.metric])
    if not finite.all():
        failed.append((NOT_FINITE, ~finite))
    if rows.nameless is not None:
        failed.append((NO_GPU_IDENTITY, rows.nameless[rows.device]))
    if not failed:
        return None
    reasons = np.zeros(len(rows.value), dtype=np.uint8)
    for code, mask in failed:
        reasons[mask] = code
    return reasons if reasons.any() else None

"""How fast rows go out, and which time they carry."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Literal

import numpy as np

TimestampPolicy = Literal["now", "shift", "original"]


class TokenBucket:
    """At most ``rate`` rows a second, ``burst`` of them at once (default: a quarter second's worth)."""

    def __init__(self, rate: float, burst: float | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate = rate
        self._burst = max(1.0, rate / 4 if burst is None else burst)
        self._clock = clock
        self._tokens = self._burst
        self._at = clock()

    def delay_s(self, rows: int) -> float:
        """Take ``rows`` tokens; seconds to wait before these rows may go. Debt is allowed, so any number fits."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self.rate)
        self._at = now
        self._tokens -= rows
        return max(0.0, -self._tokens / self.rate)

    def wait(self, rows: int, stopping: threading.Event) -> bool:
        """Take ``rows`` tokens and sleep until they are due; False when asked to stop meanwhile."""
        delay = self.delay_s(rows)
        return not (stopping.wait(delay) if delay else stopping.is_set())


def batch_rows_for_rate(batch_rows: int, rate: float) -> int:
    """Rows a batch at ``rate`` rows a second (0: no limit): four batches a second keep a slow stream smooth."""
    return batch_rows if rate <= 0 else max(1, min(batch_rows, int(rate / 4)))


class Stamper:
    """Gives the rows of a batch their times.

    ``now``: the time at which the batch is made. ``original``: those of the file; rows without any get the present.
    ``shift``: those of the file plus a constant that moves ``origin_ns`` to the time at which the pass began.
    """

    def __init__(
        self,
        policy: TimestampPolicy,
        *,
        origin_ns: int = 0,
        fixed_now_ns: int | None = None,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.policy = policy
        self._origin_ns = origin_ns
        self._fixed_now_ns = fixed_now_ns
        self._clock_ns = clock_ns
        self._shift_ns = 0

    def begin_pass(self, began_ns: int) -> None:
        """A pass over the source begins at ``began_ns``."""
        self._shift_ns = began_ns - self._origin_ns

    def times(self, timestamp_ns: np.ndarray | None, rows: int) -> np.ndarray:
        """int64 ns for ``rows`` rows."""
        if timestamp_ns is None or self.policy == "now":
            now = self._clock_ns() if self._fixed_now_ns is None else self._fixed_now_ns
            return np.full(rows, now, dtype=np.int64)
        return timestamp_ns + self._shift_ns if self.policy == "shift" else timestamp_ns

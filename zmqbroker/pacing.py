"""How long the loop rests between two turns, so that a busy broker does more with each.

A turn and the commit it causes cost much the same for one message as for fifty: wake-ups, the hand-over between the
threads, a sync. Thousands of producers that send a little each would have the loop turn for every two or three of their
messages, and spend most of a core on that; any stall then takes long to catch up with. Measured with 10,000 agents on
two cores: 0.7 cores instead of 0.95, and the slowest agent at 1.9 times the median ack instead of 3 to 4 times, for a
median that is 1 ms later (docs/adr/0038-a-busy-loop-rests.md).

An idle broker never rests, so a message that comes alone is taken at once. Nor does one whose turns are full: those are
worth their cost already.
"""

from __future__ import annotations

from typing import Final

REST_S_MAX: Final = 0.002
BUSY_FROM: Final = 0.35
"""The share of the time in turns from which on it rests, the longer the busier."""
FULL_FROM: Final = 64
"""A turn with so many events is full."""
_WINDOW_S: Final = 0.1


class Pacing:
    """Follows how busy the loop is, by the clock: a loop that waits for a core is busy, too."""

    def __init__(self) -> None:
        self._busy = 0.0
        """Share of the last tenth of a second that was spent in turns; it fades."""
        self._rested_s = 0.0

    def rest_s(self, waited_s: float, worked_s: float, events: int) -> float:
        """How long to rest after a turn of ``worked_s`` with so many events, for which the loop ``waited_s``."""
        took_s = self._rested_s + waited_s + worked_s
        if took_s > 0:
            self._busy += min(1.0, took_s / _WINDOW_S) * (worked_s / took_s - self._busy)
        full = events >= FULL_FROM
        self._rested_s = 0.0 if full else REST_S_MAX * max(0.0, self._busy - BUSY_FROM) / (1 - BUSY_FROM)
        return self._rested_s

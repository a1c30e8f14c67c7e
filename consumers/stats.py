"""What a collector has done, for /stats, /metrics and the health checks. All numbers count since the start."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

from consumers.breaker import State
from consumers.validate import REASONS
from telemetry.metrics import Sample

_STATE_NUMBER = {State.CLOSED: 0.0, State.HALF_OPEN: 1.0, State.OPEN: 2.0}


class Stats:
    """Counters of one process; every method may be called from any thread. ``clock_ms`` is wall time."""

    def __init__(self, clock_ms: Callable[[], float]) -> None:
        self._clock_ms = clock_ms
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._rejected: Counter[str] = Counter()
        self._outcomes: Counter[str] = Counter()
        self._step_s: dict[str, float] = {}
        self._inserts = 0
        self._insert_s = 0.0
        self._in_hand: dict[int, float] = {}
        self._lag_s = 0.0
        self.state: Callable[[], State] = lambda: State.CLOSED
        self.opened: Callable[[], int] = lambda: 0

    @classmethod
    def of_wall_clock(cls) -> Stats:
        """Lag is told against this machine's clock; a skew to the broker's shows in it."""
        return cls(lambda: time.time() * 1000)

    def took(self, delivery_id: int, batches: int, rows: int, oldest_ms: float) -> None:
        """A delivery is in hand; ``oldest_ms``: when its oldest batch was appended."""
        with self._lock:
            self._counts["batches"] += batches
            self._counts["received"] += rows
            self._in_hand[delivery_id] = oldest_ms

    def step(self, name: str, seconds: float) -> None:
        with self._lock:
            self._step_s[name] = self._step_s.get(name, 0.0) + seconds

    def inserted(self, seconds: float) -> None:
        with self._lock:
            self._inserts += 1
            self._insert_s += seconds

    def settled(
        self,
        delivery_id: int,
        *,
        stored: int,
        rejected: dict[str, int],
        dead_batches: int,
        dead_rows: int,
        found_rows: int,
        repeats: int,
    ) -> None:
        """A delivery was acknowledged. ``stored``: rows known to be in the store, ``found_rows`` of them by an earlier
        attempt; ``repeats``: batches that stood twice in the range."""
        with self._lock:
            self._outcomes["settled"] += 1
            self._counts["stored"] += stored
            self._counts["dead_batches"] += dead_batches
            self._counts["dead_rows"] += dead_rows
            self._counts["found"] += found_rows
            self._counts["repeated_batches"] += repeats
            self._rejected.update(rejected)
            self._lag_s = max(0.0, (self._clock_ms() - self._in_hand.pop(delivery_id)) / 1000)

    def returned(self, delivery_id: int, outcome: str) -> None:
        """A delivery went back: "given_back", "failed", "lease_over"."""
        with self._lock:
            self._outcomes[outcome] += 1
            self._in_hand.pop(delivery_id, None)

    def doubted(self) -> None:
        with self._lock:
            self._counts["doubtful"] += 1

    def alarmed(self) -> None:
        with self._lock:
            self._counts["alarms"] += 1

    def lag_s(self) -> float:
        """Age of the oldest batch in hand; with nothing in hand, the age at which the last one was settled."""
        with self._lock:
            if self._in_hand:
                return max(0.0, (self._clock_ms() - min(self._in_hand.values())) / 1000)
            return self._lag_s

    def as_dict(self) -> dict[str, object]:
        """The body of /stats."""
        lag_s = round(self.lag_s(), 3)
        with self._lock:
            counts = self._counts
            return {
                "received_rows": counts["received"],
                "received_batches": counts["batches"],
                "stored_rows": counts["stored"],
                "rejected_rows": sum(self._rejected.values()),
                "rejected_by_reason": {reason: self._rejected[reason] for reason in REASONS[1:]},
                "dead_rows": counts["dead_rows"],
                "dead_batches": counts["dead_batches"],
                "duplicates_avoided_rows": counts["found"],
                "repeated_batches": counts["repeated_batches"],
                "doubtful_deliveries": counts["doubtful"],
                "alarms": counts["alarms"],
                "deliveries": dict(self._outcomes),
                "deliveries_in_hand": len(self._in_hand),
                "inserts": self._inserts,
                "insert_seconds": round(self._insert_s, 6),
                "step_seconds": {name: round(seconds, 6) for name, seconds in self._step_s.items()},
                "breaker": self.state().value,
                "breaker_opened": self.opened(),
                "lag_seconds": lag_s,
            }

    def samples(self) -> Iterator[Sample]:
        """The same for /metrics (:func:`telemetry.metrics.on_scrape`)."""
        lag_s = self.lag_s()
        with self._lock:
            counts = dict(self._counts)
            rejected, outcomes, steps = dict(self._rejected), dict(self._outcomes), dict(self._step_s)
            in_hand = len(self._in_hand)
        for name, key in (
            ("collector_rows_received_total", "received"),
            ("collector_batches_received_total", "batches"),
            ("collector_rows_stored_total", "stored"),
            ("collector_rows_found_total", "found"),
            ("collector_rows_dead_total", "dead_rows"),
            ("collector_batches_dead_total", "dead_batches"),
            ("collector_batches_repeated_total", "repeated_batches"),
            ("collector_doubtful_total", "doubtful"),
            ("collector_alarms_total", "alarms"),
        ):
            yield name, (), counts.get(key, 0)
        for reason in REASONS[1:]:
            yield "collector_rows_rejected_total", (reason,), rejected.get(reason, 0)
        for outcome in ("settled", "given_back", "failed", "lease_over"):
            yield "collector_deliveries_total", (outcome,), outcomes.get(outcome, 0)
        for step, seconds in steps.items():
            yield "collector_step_seconds_total", (step,), seconds
        yield "collector_deliveries_in_hand", (), in_hand
        yield "collector_lag_seconds", (), lag_s
        yield "collector_breaker_state", (), _STATE_NUMBER[self.state()]
        yield "collector_breaker_opened_total", (), self.opened()

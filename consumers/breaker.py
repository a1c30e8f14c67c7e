"""The circuit breaker: when to stop taking work because the store is away, and when to go on (R23).

The part that decides; time and chance come in by arguments. One breaker serves all workers of a process, because
they all talk to one store.

    closed     work flows
    open       the store failed: no credit is granted, readiness is false. One worker (the probe) keeps its range,
               tells the broker "waiting for the store" and tries again after a growing wait; every other worker
               gives its range back, which moves no counter of the broker
    half-open  the probe tries. It works: closed. It fails: open again, with a longer wait

A single failure does not open it: a connection that was idle for a while may have been closed by the server.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple


class State(Enum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Retry(NamedTuple):
    """Try again ``after_s`` seconds, keeping what you hold."""

    after_s: float


class Release(NamedTuple):
    """Give back what you hold; another worker is the probe."""


@dataclass(frozen=True)
class BreakerPolicy:
    failures_to_open: int = 2
    wait_s_min: float = 0.25
    wait_s_max: float = 5.0
    """Long enough to leave a struggling server alone, short enough that its return is noticed within seconds."""
    jitter: float = 0.2
    """Waits vary by this share, so that many collectors do not knock together."""


class Breaker:
    """Call :meth:`failed` and :meth:`worked` with what happened; :meth:`may_probe` before trying while it is open.

    Not thread-safe: the engine holds a lock around each call. ``random`` gives numbers in [0, 1).
    """

    def __init__(self, policy: BreakerPolicy, random: Callable[[], float]) -> None:
        self.policy = policy
        self._random = random
        self.state = State.CLOSED
        self.reason = ""
        self.opened = 0
        """How often it has opened."""
        self._failures = 0
        self._probe: Hashable | None = None
        self._next_try_s = 0.0

    @property
    def closed(self) -> bool:
        return self.state is State.CLOSED

    @property
    def troubled(self) -> bool:
        """Has something failed since the store last worked?"""
        return self._failures > 0

    def open(self, now_s: float, reason: str) -> None:
        """Open without a failure: at the start, before the store has answered for the first time."""
        self.state = State.OPEN
        self.reason = reason
        self.opened += 1
        self._failures = 0
        self._next_try_s = now_s

    def failed(self, who: Hashable, now_s: float, reason: str) -> Retry | Release:
        """The store failed ``who``, who may hold a range."""
        self.reason = reason
        if self.closed:
            self._failures += 1
            if self._failures < self.policy.failures_to_open:
                return Retry(0.0)
            self.open(now_s, reason)
            self._probe = who
        elif self._probe is None:
            self._probe = who
        elif self._probe != who:
            return Release()
        self.state = State.OPEN
        wait_s = self._wait_s()
        self._next_try_s = now_s + wait_s
        return Retry(wait_s)

    def worked(self, who: Hashable) -> bool:
        """The store answered ``who``. Returns True if this closed the breaker: credit may flow again."""
        self._failures = 0
        if self.closed:
            return False
        self.state = State.CLOSED
        self.reason = ""
        self._probe = None
        return True

    def may_probe(self, who: Hashable, now_s: float) -> bool:
        """May ``who``, who holds nothing, try the store now? Makes it the probe where there is none."""
        if self.closed:
            return True
        if self._probe is None:
            self._probe = who
        if self._probe != who or now_s < self._next_try_s:
            return False
        self.state = State.HALF_OPEN
        return True

    def left(self, who: Hashable) -> None:
        """``who`` ends, or gave back its range: if it was the probe, the next one to ask becomes it."""
        if self._probe == who:
            self._probe = None
            if self.state is State.HALF_OPEN:
                self.state = State.OPEN

    def _wait_s(self) -> float:
        self._failures += 1
        wait_s = min(self.policy.wait_s_max, self.policy.wait_s_min * 2.0 ** min(self._failures - 1, 30))
        return wait_s * (1 + self.policy.jitter * (2 * self._random() - 1))

"""Time and chance of a simulated world: a heap of events under one seed."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable


class Violation(AssertionError):
    """A promise was broken. The message says which; the world adds the seed."""


class Clockwork:
    """Virtual time. Whatever happens is an event; two events of one time happen in the order they were planned."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.now = 1000.0
        self.steps = 0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._planned = 0

    def after(self, seconds: float, what: Callable[[], None]) -> None:
        self._planned += 1
        heapq.heappush(self._heap, (self.now + seconds, self._planned, what))

    def step(self) -> bool:
        """Let the next event happen. False where nothing is planned."""
        if not self._heap:
            return False
        at, _, what = heapq.heappop(self._heap)
        self.now = max(self.now, at)
        self.steps += 1
        what()
        return True

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.rng.random()

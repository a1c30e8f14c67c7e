"""Questions take turns: as many at a time as there are processors, in the order in which they came."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

SHORT_SECONDS: Final = 0.05
"""A question that runs for longer than this gives its turn away and runs beside the others."""


class Turns:
    """Places for questions that are short. Thread-safe.

    Ten at a time on two processors are all answered late, and cost half as much again each, since they drive one
    another out of the processors' caches. One after another the first is answered when it would be if it were alone.
    A long question must hold up nobody, and nobody knows beforehand which are long: one that is not over after
    ``SHORT_SECONDS`` is not counted any more.
    """

    def __init__(self, places: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._places = places
        self._clock = clock
        self._lock = threading.Lock()
        self._began: dict[object, float] = {}
        self._waiting: deque[threading.Event] = deque()

    @property
    def running(self) -> int:
        """How many have a turn, long ones among them."""
        return len(self._began)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @contextmanager
    def take(self) -> Iterator[None]:
        """Wait for a turn, and have it."""
        turn = object()
        with self._lock:
            woken = None
            if self._waiting or not self._begin(turn):
                woken = threading.Event()
                self._waiting.append(woken)
                self._call_next()
        if woken is not None:
            self._wait(turn, woken)
        try:
            yield
        finally:
            with self._lock:
                del self._began[turn]
                self._call_next()

    def _wait(self, turn: object, woken: threading.Event) -> None:
        wait_seconds: float | None = None
        while True:
            woken.wait(wait_seconds)
            with self._lock:
                woken.clear()
                if self._waiting[0] is not woken:
                    continue
                if self._begin(turn):
                    self._waiting.popleft()
                    self._call_next()
                    return
                wait_seconds = min(self._young()) + SHORT_SECONDS - self._clock()

    def _young(self) -> list[float]:
        """When those began that are counted."""
        oldest = self._clock() - SHORT_SECONDS
        return [began for began in self._began.values() if began > oldest]

    def _begin(self, turn: object) -> bool:
        if len(self._young()) >= self._places:
            return False
        self._began[turn] = self._clock()
        return True

    def _call_next(self) -> None:
        """Let the first in line look whether it may begin, and for how long to wait if not."""
        if self._waiting:
            self._waiting[0].set()

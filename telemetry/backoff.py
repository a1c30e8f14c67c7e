"""Waiting for what a process needs: growing pauses with jitter, and a log line that says for what."""

from __future__ import annotations

import logging
import random as _random
import threading
import time
from collections.abc import Callable
from typing import Final, TypeVar

T = TypeVar("T")

REMIND_EVERY_S: Final = 10.0


class Stopped(Exception):
    """The process was asked to stop while it waited."""


class Backoff:
    """Pauses between attempts: each up to ``factor`` times the last, from ``first_s`` to ``max_s``.

    Half of a pause is fixed and half is random, so that a thousand clients of one restarted broker do not come back
    in one instant.
    """

    def __init__(
        self,
        first_s: float = 0.1,
        max_s: float = 5.0,
        factor: float = 2.0,
        random: Callable[[], float] = _random.random,
    ) -> None:
        self._first_s = first_s
        self._max_s = max_s
        self._factor = factor
        self._random = random
        self._ceiling_s = first_s

    def next_s(self) -> float:
        """The pause before the next attempt, in seconds."""
        ceiling = self._ceiling_s
        self._ceiling_s = min(ceiling * self._factor, self._max_s)
        return ceiling / 2 + self._random() * ceiling / 2

    def reset(self) -> None:
        """An attempt succeeded: start small again."""
        self._ceiling_s = self._first_s


def wait_for(
    what: str,
    attempt: Callable[[], T],
    *,
    stopping: threading.Event,
    log: logging.Logger,
    backoff: Backoff | None = None,
    retry_on: tuple[type[Exception], ...] = (OSError,),
    clock: Callable[[], float] = time.monotonic,
) -> T:
    """Call ``attempt`` until it returns, and return that.

    Exceptions of ``retry_on`` mean "not yet"; others go through. Logs "waiting for WHAT" at once and every ten
    seconds, and how long it took in the end. Raises :class:`Stopped` once ``stopping`` is set.
    """
    backoff = backoff or Backoff()
    started = clock()
    reminded: float | None = None
    while not stopping.is_set():
        try:
            value = attempt()
        except retry_on as error:
            now = clock()
            if reminded is None or now - reminded >= REMIND_EVERY_S:
                reminded = now
                log.warning(f"waiting for {what}", extra={"reason": str(error), "waited_s": round(now - started, 1)})
            stopping.wait(backoff.next_s())
        else:
            if reminded is not None:
                log.info(f"{what} is there", extra={"waited_s": round(clock() - started, 1)})
            return value
    raise Stopped(f"stopped while waiting for {what}")

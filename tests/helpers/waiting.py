"""Waiting for something to become true, instead of sleeping and hoping."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(question: Callable[[], T], timeout: float = 10.0, what: str = "", pause: float = 0.05) -> T:
    """Ask until the answer is true and return it; ``AssertionError`` with the last answer after ``timeout`` seconds.

    An ``OSError`` (a server that is not up yet) or ``AssertionError`` counts as "not yet".
    """
    deadline = time.monotonic() + timeout
    last: object = None
    while True:
        try:
            answer = question()
            if answer:
                return answer
            last = answer
        except (OSError, AssertionError) as error:
            last = error
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {what or question} (last: {last!r})")
        time.sleep(pause)

"""Handles that stand ready: prepared for a question like one that was asked before.

Opening a handle and giving it its settings costs about a millisecond of CPU, half of what a small question takes in
all. Questions change nothing in their session, so the next one with the very same database, rights and settings may
have the handle. One that failed in any way is never used again.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Final

from clickhouse.embedded.engine import Engine, Handle

HANDLES_MAX: Final = 64
"""Idle handles of all kinds, 100 kB each; the longest idle goes first."""


class ReadyHandles:
    """Idle handles by what they were prepared for. Thread-safe."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._idle: OrderedDict[Handle, Hashable] = OrderedDict()
        self._closed = False

    @contextmanager
    def use(self, kind: Hashable, prepare: Callable[[Handle], None]) -> Iterator[Handle]:
        """A handle for this kind of question; ``prepare`` is called with a new one where none stands ready."""
        handle = self._take(kind)
        if handle is None:
            handle = Handle(self._engine)
            try:
                prepare(handle)
            except BaseException:
                handle.close()
                raise
        try:
            yield handle
            handle.on_progress(None)
        except BaseException:
            handle.close()
            raise
        self._keep(kind, handle)

    def _take(self, kind: Hashable) -> Handle | None:
        with self._lock:
            # The newest first: its memory is the warmest.
            for handle in reversed(self._idle):
                if self._idle[handle] == kind:
                    del self._idle[handle]
                    return handle
        return None

    def _keep(self, kind: Hashable, handle: Handle) -> None:
        surplus = None
        with self._lock:
            if self._closed:
                surplus = handle
            else:
                self._idle[handle] = kind
                if len(self._idle) > HANDLES_MAX:
                    surplus, _ = self._idle.popitem(last=False)
        if surplus is not None:
            surplus.close()

    def close(self) -> None:
        """Close what is idle; what is in use is closed when it comes back."""
        with self._lock:
            self._closed = True
            idle, self._idle = list(self._idle), OrderedDict()
        for handle in idle:
            handle.close()

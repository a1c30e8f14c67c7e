"""SIGTERM and SIGINT: the first one asks to stop, a second one ends the process at once.

The interpreter runs Python signal handlers only in the main thread and only between its own steps, so a process whose
main thread sits in a long call into C would not notice. Here the C-level handler writes the number into a pipe
(``signal.set_wakeup_fd``) and a thread reads it: the stop is seen at once whatever the main thread does, and nothing
runs inside a handler that could meet a lock half taken.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Final

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)

SAME_REQUEST_S: Final = 2.0
"""A *different* stop signal this soon after the first is the same wish: Ctrl-C reaches a whole foreground process
group, and the runner that got it too then sends its own SIGTERM."""


class StopRequest:
    """Decides what each signal means. ``first`` runs once; ``again`` when the wish is repeated."""

    def __init__(
        self, first: Callable[[int], None], again: Callable[[int], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._first = first
        self._again = again
        self._clock = clock
        self._number = 0
        self._at = 0.0

    def received(self, number: int) -> None:
        """Take one signal."""
        if not self._number:
            self._number, self._at = number, self._clock()
            self._first(number)
        elif number == self._number or self._clock() - self._at > SAME_REQUEST_S:
            self._again(number)


def watch(request: StopRequest) -> Callable[[], None]:
    """Pass stop signals of this process to ``request``; returns what undoes it. Only from the main thread."""
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    handlers = {number: signal.signal(number, lambda *_: None) for number in STOP_SIGNALS}
    wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    owner = os.getpid()

    def listen() -> None:
        while data := reader.recv(64):
            for number in data:
                if number in STOP_SIGNALS:
                    request.received(number)
        reader.close()

    def undo() -> None:
        if os.getpid() != owner:
            return
        signal.set_wakeup_fd(wakeup)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        writer.close()

    def after_fork() -> None:
        # The child shares the pipe: its signals would stop its parent. It starts as a process of its own.
        if writer.fileno() >= 0:
            signal.set_wakeup_fd(-1)
            for number in STOP_SIGNALS:
                signal.signal(number, signal.SIG_DFL)

    os.register_at_fork(after_in_child=after_fork)
    threading.Thread(target=listen, name="signals", daemon=True).start()
    return undo

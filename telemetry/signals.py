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
    global _pipe
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    handlers = {number: signal.signal(number, lambda *_: None) for number in STOP_SIGNALS}
    wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    _pipe = writer

    def listen() -> None:
        while data := reader.recv(64):
            for number in data:
                if number in STOP_SIGNALS:
                    request.received(number)
        reader.close()

    def undo() -> None:
        global _pipe
        if _pipe is not writer:
            return
        _pipe = None
        signal.set_wakeup_fd(wakeup)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        writer.close()

    threading.Thread(target=listen, name="signals", daemon=True).start()
    return undo


# A forked child shares the pipe: a signal to the child would stop its parent. So the child starts with the system's own
# handling, and no stop signal is taken between the fork and that.
_pipe: socket.socket | None = None
_mask_before_fork: set[int] = set()


def _before_fork() -> None:
    global _mask_before_fork
    if _pipe is not None:
        _mask_before_fork = set(signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS))


def _after_fork_in_parent() -> None:
    if _pipe is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, _mask_before_fork)


def _after_fork_in_child() -> None:
    global _pipe
    if _pipe is not None:
        # Only the main thread may touch handlers, and the thread that forked is the child's main thread.
        signal.set_wakeup_fd(-1)
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        _pipe = None
        signal.pthread_sigmask(signal.SIG_SETMASK, _mask_before_fork)


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)

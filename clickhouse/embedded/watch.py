"""One thread that looks after clients: those who hang up on a query, and those whose body does not come."""

from __future__ import annotations

import logging
import select
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from clickhouse.embedded.engine import Ticket

log = logging.getLogger(__name__)

TICK_SECONDS: Final = 0.2
SLOW_SECONDS: Final = 1.0
"""A body that is not whole by then is shown in system.processes."""


class _Body:
    def __init__(self, sock: socket.socket, deadline: float, on_slow: Callable[[], None]) -> None:
        self.sock = sock
        self.slow_at = time.monotonic() + SLOW_SECONDS
        self.deadline = deadline
        self.on_slow = on_slow
        self.told = False
        self.lock = threading.Lock()


class Watcher:
    """``cancel`` is called with the id of a query whose client has hung up."""

    def __init__(self, cancel: Callable[[str], None]) -> None:
        self._cancel = cancel
        self._lock = threading.Lock()
        self._queries: dict[int, str] = {}
        self._bodies: dict[Ticket, _Body] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="client-watch", daemon=True)
        self._thread.start()

    def watch_query(self, sock: socket.socket, query_id: str) -> None:
        with self._lock:
            self._queries[sock.fileno()] = query_id

    def unwatch_query(self, sock: socket.socket) -> None:
        with self._lock:
            self._queries.pop(sock.fileno(), None)

    def watch_body(self, ticket: Ticket, sock: socket.socket, deadline: float, on_slow: Callable[[], None]) -> None:
        """Call ``on_slow`` once the body is slow; end its reading when the query is killed or the deadline passed."""
        with self._lock:
            self._bodies[ticket] = _Body(sock, deadline, on_slow)

    def unwatch_body(self, ticket: Ticket) -> None:
        """After this ``on_slow`` is not called any more."""
        with self._lock:
            body = self._bodies.pop(ticket, None)
        if body is not None:
            with body.lock:
                body.told = True

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join(2)

    def _run(self) -> None:
        while not self._stopped.wait(TICK_SECONDS):
            try:
                self._look_at_queries()
                self._look_at_bodies()
            except Exception:
                log.exception("watching clients failed and goes on")

    def _look_at_queries(self) -> None:
        with self._lock:
            watched = dict(self._queries)
        if not watched:
            return
        poll = select.poll()
        for descriptor in watched:
            poll.register(descriptor, select.POLLRDHUP)
        for descriptor, _ in poll.poll(0):
            with self._lock:
                query_id = self._queries.get(descriptor, "")
                if not query_id or query_id != watched[descriptor]:
                    continue
                del self._queries[descriptor]
            log.info("cancelled: its client hung up", extra={"query_id": query_id})
            self._cancel(query_id)

    def _look_at_bodies(self) -> None:
        with self._lock:
            bodies = list(self._bodies.items())
        now = time.monotonic()
        for ticket, body in bodies:
            if ticket.killed or now > body.deadline:
                # The reader sees the end of the stream; the answer can still be written.
                with suppress(OSError):
                    body.sock.shutdown(socket.SHUT_RD)
            elif now > body.slow_at:
                with body.lock:
                    if not body.told:
                        body.told = True
                        body.on_slow()

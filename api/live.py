"""Live tails: what a client is owed, kept apart from how it is sent.

A :class:`LiveTail` is one client's bounded buffer. A broker thread puts rows in and never waits; the client takes
them out, by blocking (a WSGI server with a thread for each client) or when woken (the event loop of
:mod:`api.bridge`). What did not fit is counted and told to the client as a ``gap``: a slow client slows nobody.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import orjson

HEARTBEAT_SECONDS: Final = 15.0
RETRY_MS: Final = 2000


class Event(NamedTuple):
    """One thing to tell: ``id`` is where to resume from, ``rows`` what it holds for the count of a gap."""

    id: str
    kind: str
    data: bytes
    rows: int


class LiveTail:
    """The events owed to one client. Safe for one writer and one reader in different threads."""

    def __init__(self, rows_max: int, closed: Callable[[LiveTail], None] | None = None) -> None:
        self._rows_max = rows_max
        self._events: deque[Event] = deque()
        self._rows = 0
        self._missed = 0
        self._condition = threading.Condition()
        self._waker: Callable[[], None] | None = None
        self._on_close = closed
        self.closed = False
        self.missed_rows = 0
        """Rows dropped in all because the client was slow."""

    def put(self, event: Event) -> None:
        """Queue an event; the oldest ones make room for it."""
        with self._condition:
            if self.closed:
                return
            self._events.append(event)
            self._rows += event.rows
            while self._rows > self._rows_max and len(self._events) > 1:
                dropped = self._events.popleft()
                self._rows -= dropped.rows
                self._missed += dropped.rows
                self.missed_rows += dropped.rows
            self._condition.notify()
            waker = self._waker
        if waker is not None:
            waker()

    def gap(self, rows: int) -> None:
        """Tell the client of rows that were lost before they came here."""
        with self._condition:
            self._missed += rows
            self.missed_rows += rows

    def take(self) -> list[Event]:
        """Everything that waits, without waiting; a gap comes first."""
        with self._condition:
            events = list(self._events)
            self._events.clear()
            self._rows = 0
            missed, self._missed = self._missed, 0
        if missed:
            data = orjson.dumps({"missed_rows": missed, "reason": "this client reads more slowly than rows arrive"})
            events.insert(0, Event("", "gap", data, 0))
        return events

    def wait(self, seconds: float) -> list[Event]:
        """As :meth:`take`, but waits up to ``seconds`` for the first."""
        with self._condition:
            if not self._events and not self._missed and not self.closed:
                self._condition.wait(seconds)
        return self.take()

    def on_event(self, waker: Callable[[], None] | None) -> None:
        """Call ``waker`` from the writer's thread after each event."""
        self._waker = waker

    def close(self) -> None:
        """End the tail; idempotent, from any thread."""
        with self._condition:
            if self.closed:
                return
            self.closed = True
            self._condition.notify_all()
            waker = self._waker
        if waker is not None:
            waker()
        if self._on_close is not None:
            self._on_close(self)

    def sse(self) -> Iterator[bytes]:
        """The tail as server-sent events, for a WSGI server: waits in the caller's thread."""
        try:
            yield sse_hello()
            while not self.closed:
                events = self.wait(HEARTBEAT_SECONDS)
                yield b"".join(map(sse_frame, events)) if events else SSE_HEARTBEAT
        finally:
            self.close()


SSE_HEARTBEAT: Final = b": heartbeat\n\n"


def sse_hello() -> bytes:
    """What opens a stream: how long a client waits before it connects again."""
    return b"retry: %d\n\n" % RETRY_MS


def sse_frame(event: Event) -> bytes:
    """One server-sent event."""
    head = b"id: %s\n" % event.id.encode() if event.id else b""
    return b"%sevent: %s\ndata: %s\n\n" % (head, event.kind.encode(), event.data)


def websocket_frame(event: Event) -> str:
    """The same event as a WebSocket text message: ``{"event", "id", "data"}``."""
    return f'{{"event":"{event.kind}","id":"{event.id}","data":{event.data.decode()}}}'


def heartbeat_frame() -> str:
    """A WebSocket message that says nothing but "still here"."""
    return '{"event":"heartbeat","id":"","data":{}}'


LIVE_KEY: Final = "telemetry.live"
"""Where a view leaves its :class:`LiveTail` in the WSGI environment for a server that can wait without a thread."""
ASYNC_KEY: Final = "telemetry.async_live"
"""Set by such a server."""
WEBSOCKET_KEY: Final = "telemetry.websocket"
"""Set by the server when the request asks for a WebSocket."""


def leave(environ: dict[str, Any], tail: LiveTail) -> None:
    """Hand the tail to the server."""
    environ[LIVE_KEY] = tail

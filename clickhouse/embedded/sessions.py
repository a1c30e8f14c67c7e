"""Sessions: a handle that lives from request to request, for SET, USE and temporary tables."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from clickhouse.embedded.engine import Engine, EngineError, Handle

TIMEOUT_SECONDS: Final = 60.0
TIMEOUT_SECONDS_MAX: Final = 3600.0
SESSIONS_MAX: Final = 1000


class _Session:
    def __init__(self, handle: Handle) -> None:
        self.handle = handle
        self.busy = threading.Lock()
        self.expires = 0.0


class Sessions:
    """Sessions by (user, session id). One request at a time in each, as the interface has it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._sessions: dict[tuple[str, str], _Session] = {}

    @contextmanager
    def use(self, user: str, session_id: str, timeout_s: float, must_exist: bool) -> Iterator[Handle]:
        """The session's handle, made where there is none. Raises 372 (not found), 373 (in use) or 201 (too many)."""
        key = (user, session_id)
        with self._lock:
            self._expire()
            session = self._sessions.get(key)
            if session is None:
                if must_exist:
                    raise EngineError.of(372, "SESSION_NOT_FOUND", f"Session {session_id} not found")
                if len(self._sessions) >= SESSIONS_MAX:
                    raise EngineError.of(201, "QUOTA_EXCEEDED", f"There are {SESSIONS_MAX} sessions already")
                session = self._sessions[key] = _Session(Handle(self._engine))
            if not session.busy.acquire(blocking=False):
                raise EngineError.of(373, "SESSION_IS_LOCKED", f"Session {session_id} is locked by a concurrent client")
        try:
            yield session.handle
        finally:
            session.expires = time.monotonic() + min(max(timeout_s, 1.0), TIMEOUT_SECONDS_MAX)
            session.busy.release()

    def _expire(self) -> None:
        now = time.monotonic()
        for key, session in list(self._sessions.items()):
            if session.expires and session.expires < now and session.busy.acquire(blocking=False):
                del self._sessions[key]
                session.handle.close()

    def close(self) -> None:
        with self._lock:
            for session in self._sessions.values():
                session.handle.close()
            self._sessions.clear()

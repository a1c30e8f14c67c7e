"""A worker's way to the store: one connection at a time, opened anew when it is lost, waited for by the breaker."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Protocol

from clickhouse.errors import StoreError, StoreNotReady
from consumers.breaker import Breaker, Release, State
from consumers.ports import StoreSession

SLICE_S = 0.5
"""A wait is cut into slices: after each the broker hears "waiting", and a stop or a lost lease is noticed."""


class GiveBack(Exception):
    """The range goes back to the broker without counting against it."""


class Waiting(Protocol):
    """What holds a range while the store is away."""

    def holds(self) -> bool: ...

    def waiting(self) -> None: ...


class SharedBreaker:
    """The one breaker of a process, for many threads. ``on_change`` is told whether it is closed, under its lock."""

    def __init__(self, breaker: Breaker, clock: Callable[[], float], on_change: Callable[[bool], None]) -> None:
        self._breaker = breaker
        self._clock = clock
        self._lock = threading.Lock()
        self._on_change = on_change

    @property
    def state(self) -> State:
        return self._breaker.state

    @property
    def closed(self) -> bool:
        return self._breaker.closed

    @property
    def reason(self) -> str:
        return self._breaker.reason

    @property
    def opened(self) -> int:
        return self._breaker.opened

    def open(self, reason: str) -> None:
        """Open before the first try."""
        with self._lock:
            self._breaker.open(self._clock(), reason)

    def failed(self, who: Hashable, reason: str) -> float | None:
        """Seconds to wait before another try; None: give back what you hold."""
        with self._lock:
            was_closed = self._breaker.closed
            verdict = self._breaker.failed(who, self._clock(), reason)
            if was_closed and not self._breaker.closed:
                self._on_change(False)
            return None if isinstance(verdict, Release) else verdict.after_s

    def worked(self, who: Hashable) -> None:
        if self._breaker.closed and not self._breaker.troubled:  # the usual case: no lock
            return
        with self._lock:
            if self._breaker.worked(who):
                self._on_change(True)

    def may_probe(self, who: Hashable) -> bool:
        with self._lock:
            return self._breaker.may_probe(who, self._clock())

    def left(self, who: Hashable) -> None:
        with self._lock:
            self._breaker.left(who)


class StoreLink:
    """One worker's connection. ``open_session`` connects once and raises :class:`clickhouse.errors.StoreError`."""

    def __init__(
        self,
        name: str,
        open_session: Callable[[], StoreSession],
        breaker: SharedBreaker,
        stopping: threading.Event,
        wait: Callable[[float], object],
        log: Callable[[str, str], None],
    ) -> None:
        self._name = name
        self._open_session = open_session
        self._breaker = breaker
        self._stopping = stopping
        self._wait = wait
        self._log = log
        self._session: StoreSession | None = None

    @property
    def session(self) -> StoreSession:
        """The open connection; only between a True of :meth:`ready` and the next failure."""
        if self._session is None:
            raise RuntimeError("no connection to the store is open")
        return self._session

    def ready(self) -> bool:
        """For a worker that holds no range: is the way to the store open? Tries, where it may."""
        if self._breaker.closed and self._session is not None:
            return True
        if not self._breaker.may_probe(self._name):
            return False
        if self._session is not None:
            # Open from before the trouble: a fresh one is the probe.
            self.drop()
        error = self._try_to_open()
        if error is None:
            self._breaker.worked(self._name)
            return True
        self._breaker.failed(self._name, error)
        return False

    def again(self, lease: Waiting, reason: str, broken: bool) -> StoreSession:
        """For a worker whose range met a failure: wait as the breaker says and return an open connection.

        Raises :class:`GiveBack` when another worker is the probe, when the process stops, or when the lease is over.
        """
        if broken:
            self.drop()
        failure: str | None = reason
        while failure is not None:
            wait_s = self._breaker.failed(self._name, failure)
            if wait_s is None:
                raise GiveBack(f"the store is away: {failure}")
            self._wait_with(lease, wait_s, failure)
            failure = self._try_to_open() if self._session is None else None
        return self.session

    def worked(self) -> None:
        self._breaker.worked(self._name)

    def release(self) -> None:
        """The range was given back: another worker may become the probe."""
        self._breaker.left(self._name)

    def drop(self) -> None:
        """Close the connection, if any."""
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def _try_to_open(self) -> str | None:
        try:
            self._session = self._open_session()
        except StoreError as e:
            self._log("store not ready" if isinstance(e, StoreNotReady) else "waiting for the store", str(e))
            return str(e)
        return None

    def _wait_with(self, lease: Waiting, wait_s: float, reason: str) -> None:
        while True:
            if self._stopping.is_set() and not self._breaker.closed:
                raise GiveBack(f"stopping while the store is away: {reason}")
            if not lease.holds():
                raise GiveBack("the lease is over")
            lease.waiting()
            if wait_s <= 0:
                return
            self._wait(min(wait_s, SLICE_S))
            wait_s -= SLICE_S

"""A disk that runs full must not cost rows.

The engine (chDB 26.9) reports most writes that find no space, but not those with which it completes a part: with every
byte taken it has answered an INSERT with success and committed merges whose small files were empty. Such a part is read
from memory until the next start, and then put aside as broken (tests/integration/clickhouse/test_full_disk.py).

    little space left          inserts are refused before they begin (error 243), merges are stopped
    an insert met a full disk  its part is read back from disk before it is answered; a broken one is dropped, error 243
    a merge met one            its table is loaded anew, as at a start: the broken part is put aside, and the parts that
                               it was made of, which stay on disk for eight minutes, are back
"""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import Final, NamedTuple

from clickhouse.embedded.engine import Engine, EngineError, Handle, quoted, quoted_name

RESERVE_BYTES: Final = 64 << 20
"""Free space below which nothing is begun: twice the largest delivery, and room for the merges under way."""

LOOK_SECONDS: Final = 0.2
CHECK_SECONDS: Final = 5.0
"""How often parts are checked while space is short."""

_GONE: Final = frozenset({60, 81, 232})
"""No such table, database or part any more: nothing to check."""
_ATTACH_TRIES: Final = 100
_ATTACH_WAIT_SECONDS: Final = 0.1

log = logging.getLogger(__name__)


class _Part(NamedTuple):
    database: str
    table: str
    name: str

    @property
    def place(self) -> str:
        return f"{quoted_name(self.database)}.{quoted_name(self.table)}"


class SpaceGuard:
    """Watches the disk of the data directory. Thread-safe; :meth:`start` begins the watch, :meth:`stop` ends it."""

    def __init__(self, engine: Engine, reserve_bytes: int = RESERVE_BYTES) -> None:
        self._engine = engine
        self._reserve_bytes = reserve_bytes
        self._checking = threading.Lock()
        self._low_at = self._dropped_at = float("-inf")
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="space", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join()

    def low(self) -> bool:
        """Whether less than the reserve is left."""
        found = os.statvfs(self._engine.data.path)
        if found.f_bavail * found.f_frsize >= self._reserve_bytes:
            return False
        self._low_at = time.time()
        return True

    def require(self) -> None:
        """Raise :class:`EngineError` 243 where there is no room to begin an insert."""
        if self.low():
            raise _no_space(f"Less than {self._reserve_bytes >> 20} MiB are left on the disk")

    def confirm(self, began: float) -> None:
        """After an insert that began at this time: raise :class:`EngineError` 243 unless it is surely on disk."""
        if not self.low() and self._low_at < began - LOOK_SECONDS:
            return
        with self._checking, self._engine.handle() as handle:
            for part in _broken(handle, began, "level = 0"):
                # Before it is dropped: whoever is answered from here on hears of it, whosever part it was.
                self._dropped_at = time.time()
                log.error("a part met a full disk: dropped", extra={"part": part.name, "table": part.place})
                handle.run(f"ALTER TABLE {part.place} DROP PART {quoted(part.name)}")
        if self._dropped_at >= began:
            raise _no_space("The disk ran full while rows were written")

    def _watch(self) -> None:
        checked = 0.0
        since: float | None = None
        while not self._stopping.wait(LOOK_SECONDS):
            try:
                low = self.low()
                if low and since is None:
                    log.error("the disk is nearly full: inserts are refused, merges are stopped")
                    since = time.time() - 2 * LOOK_SECONDS
                    self._run("SYSTEM STOP MERGES")
                    checked = 0.0
                if since is not None and (not low or time.monotonic() - checked > CHECK_SECONDS):
                    self._heal(since)
                    checked = time.monotonic()
                if since is not None and not low:
                    self._run("SYSTEM START MERGES")
                    log.info("the disk has space again")
                    since = None
            except (EngineError, OSError) as e:
                log.warning("the disk is full, and a part could not be checked", extra={"reason": str(e)})

    def _run(self, sql: str) -> None:
        with self._engine.handle() as handle:
            handle.run(sql)

    def _heal(self, since: float) -> None:
        """Load anew the tables in which a merge left a part that cannot be read."""
        with self._checking, self._engine.handle() as handle:
            for place in sorted({part.place for part in _broken(handle, since, "level > 0")}):
                log.error("a merge met a full disk: its table is loaded anew", extra={"table": place})
                handle.run(f"DETACH TABLE {place}")
                _attach(handle, place)


def _broken(handle: Handle, since: float, which: str) -> list[_Part]:
    """Active parts written since then that their files on disk do not bear out."""
    rows = handle.run(
        "SELECT database, table, name FROM system.parts WHERE active AND database != 'system' "
        f"AND modification_time >= toDateTime({int(since) - 1}) AND {which}",
        "TSVRaw",
    )
    parts = [_Part(*line.split("\t")) for line in str(rows).splitlines()]
    return [part for part in parts if not _sound(handle, part)]


def _sound(handle: Handle, part: _Part) -> bool:
    try:
        told = str(handle.run(f"CHECK TABLE {part.place} PART {quoted(part.name)}", "TSVRaw"))
    except EngineError as e:
        return e.code in _GONE
    return all(line.split("\t")[1] == "1" for line in told.splitlines())


def _attach(handle: Handle, place: str) -> None:
    """Queries that still read the old one are waited for: until then it cannot be attached."""
    for left in reversed(range(_ATTACH_TRIES)):
        try:
            handle.run(f"ATTACH TABLE {place}")
            return
        except EngineError:
            if not left:
                raise
            time.sleep(_ATTACH_WAIT_SECONDS)


def _no_space(message: str) -> EngineError:
    return EngineError.of(243, "NOT_ENOUGH_SPACE", message)

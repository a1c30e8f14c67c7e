"""The engine: chDB in this process, one handle a request.

A handle is a session of its own (settings, current database) and opens in a quarter of a millisecond, so no request
ever meets another's settings. Handles run in parallel; one handle serialises.

    data directory   locked by this process for as long as it lives; `store/` inside is the engine's own
    query ids        clients choose them; the engine keeps its own, so ours travel in the setting ``log_comment``
    stopping         no new queries; those that run get the drain time, then are killed; the last handle to close
                     shuts the engine down
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple
from xml.sax.saxutils import escape  # nosec B406

import chdb

from telemetry.options import UsageError

_ERROR: Final = re.compile(r"Code: (\d+)\. (DB::\w*Exception: .*)", re.DOTALL)
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


class EngineError(Exception):
    """What the engine, or this server in its manner, answered: ``Code: 60. DB::Exception: ... (UNKNOWN_TABLE)``."""

    def __init__(self, text: str) -> None:
        match = _ERROR.search(text)
        # Wrappers put words of their own before the code.
        super().__init__(
            match.group(0).rstrip() if match else f"Code: 1002. DB::Exception: {text}. (UNKNOWN_EXCEPTION)"
        )
        self.code = int(match.group(1)) if match else 1002

    @classmethod
    def of(cls, code: int, name: str, message: str) -> EngineError:
        return cls(f"Code: {code}. DB::Exception: {message}. ({name})")


class Limits(NamedTuple):
    """Bounds of the engine. Bytes and seconds."""

    memory_bytes: int
    query_memory_bytes: int
    execution_seconds: float
    queries_max: int
    threads: int


class Running(NamedTuple):
    """A query under way."""

    query_id: str
    user: str
    started: float
    is_insert: bool


class Ticket:
    """An announced query: from the moment that its first line was read, before its body came."""

    def __init__(self, query_id: str) -> None:
        self.query_id = query_id
        self.killed = False

    def check(self) -> None:
        """Raise :class:`EngineError` 394 once somebody has killed the query."""
        if self.killed:
            raise EngineError.of(394, "QUERY_WAS_CANCELLED", "Query was cancelled before its body was whole")


class DataDirectory:
    """The directory, held by one process at a time. Raises :class:`UsageError` where it cannot be.

    ``ended_well``: whether the process before this one ended in good order; of a new directory it is true. A file says
    so, and it is gone for good before anything is written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        except OSError as e:
            raise UsageError(f"--data-dir {path}: cannot be used: {e.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(self._lock, 20, 0).decode("ascii", "replace").strip() or "another process"
            os.close(self._lock)
            raise UsageError(
                f"--data-dir {path}: held by process {holder}; stop that one or choose another directory"
            ) from None
        self._good_order = self.path / "ended-in-good-order"
        self.ended_well = self._good_order.exists() or not (self.path / "store").exists()
        self._good_order.unlink(missing_ok=True)
        sync_directory(self.path)
        # The number is for whoever is refused; a disk that is full just now is no reason not to start.
        with suppress(OSError):
            os.ftruncate(self._lock, 0)
            os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)

    def sub(self, name: str) -> Path:
        path = self.path / name
        path.mkdir(exist_ok=True)
        return path

    def ends_well(self) -> None:
        """The engine has shut down in good order."""
        with suppress(OSError):
            self._good_order.touch()

    def release(self) -> None:
        with suppress(OSError):
            os.ftruncate(self._lock, 0)
            os.close(self._lock)


def sync_directory(path: Path) -> None:
    """Make durable which names stand in a directory."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Handle:
    """One session with the engine: settings and current database of its own. One query at a time."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        try:
            self.chdb = chdb.connect(engine.connection_string)
        except Exception as e:
            raise EngineError(str(e)) from None

    def set(self, settings: Mapping[str, str], database: str = "") -> None:
        """Apply settings, and a database to look in, to everything that this handle runs from now on."""
        # One call: each costs a third of a millisecond.
        statements = [f"USE {quoted_name(database)}"] if database else []
        for name in settings:
            if not _NAME.match(name):
                raise EngineError.of(115, "UNKNOWN_SETTING", f"Unknown setting '{name}'")
        if settings:
            statements.append("SET " + ", ".join(f"{name} = {quoted(value)}" for name, value in settings.items()))
        if statements:
            self.run("; ".join(statements))

    def run(self, sql: str, output_format: str = "TabSeparated", params: Mapping[str, str] | None = None) -> Any:
        """The whole result at once. Raises :class:`EngineError`."""
        try:
            return self.chdb.query(sql, output_format, params=dict(params or {}))
        except Exception as e:
            raise EngineError(str(e)) from None

    def stream(self, sql: str, output_format: str, params: Mapping[str, str]) -> Iterator[Any]:
        """The result piece by piece, each a complete piece of ``output_format``. Closing it cancels the query."""
        try:
            result = self.chdb.send_query(sql, output_format, params=dict(params))
        except Exception as e:
            raise EngineError(str(e)) from None
        try:
            while True:
                try:
                    piece = result.fetch()
                except Exception as e:
                    raise EngineError(str(e)) from None
                if piece is None:
                    return
                yield piece
        finally:
            with suppress(Exception):
                result.cancel()

    def insert(
        self,
        sql: str,
        input_format: str,
        data: bytes | memoryview,
        settings: str = "",
        params: Mapping[str, str] | None = None,
    ) -> Any:
        """Insert a whole body. ``sql`` ends before the clauses ``settings`` and FORMAT. Raises :class:`EngineError`.

        The bytes go through a file in memory and the engine's own INFILE. Its streaming insert would spare that
        copy, but it answers "done" for an insert that was killed, timed out or refused with "too many parts"
        (chDB 26.9; docs/adr/0011-embedded-inserts.md): rows would be acknowledged that are not there.
        """
        descriptor = os.memfd_create("insert", os.MFD_CLOEXEC)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            text = f"{sql} FROM INFILE '/proc/self/fd/{descriptor}' {settings} FORMAT {input_format}"
            return self.run(text, params=params)
        finally:
            os.close(descriptor)

    def announce_insert(self, sql: str, input_format: str) -> Callable[[], None]:
        """Let an insert whose body is still on its way be seen in system.processes; the answer ends that."""
        try:
            inserter = self.chdb.send_insert(sql, input_format)
        except Exception as e:
            raise EngineError(str(e)) from None

        def end() -> None:
            with suppress(Exception):
                inserter.cancel()

        return end

    def on_progress(self, tell: Any) -> None:
        self.chdb.set_progress_callback(tell)

    def close(self) -> None:
        with suppress(Exception):
            self.chdb.close()


class Engine:
    """The running engine."""

    def __init__(self, data: DataDirectory, limits: Limits) -> None:
        self.limits = limits
        self.data = data
        config = data.sub("config") / "engine.xml"
        config.write_text(_configuration(data, limits))
        self.connection_string = f"{data.sub('store')}?config-file={config}"
        # Left by a process that was killed.
        shutil.rmtree(data.sub("store") / "tmp", ignore_errors=True)
        self._lock = threading.Lock()
        self._running: dict[str, Running] = {}
        self._tickets: set[Ticket] = set()
        self._idle = threading.Condition(self._lock)
        self._closing = False
        try:
            self._base = Handle(self)
        except EngineError as e:
            raise UsageError(f"--data-dir {data.path}: the engine does not start: {e}") from None
        self.version = str(self._base.run("SELECT version()")).strip()
        self.timezone = str(self._base.run("SELECT timezone()")).strip()
        self.display_name = str(self._base.run("SELECT hostName()")).strip()
        self._settings = {
            line.split("\t")[0] for line in str(self._base.run("SELECT name FROM system.settings")).splitlines()
        }

    def knows(self, setting: str) -> bool:
        return setting in self._settings

    @contextmanager
    def handle(self) -> Iterator[Handle]:
        """A fresh handle for one request."""
        handle = Handle(self)
        try:
            yield handle
        finally:
            handle.close()

    @contextmanager
    def ticket(self, query_id: str) -> Iterator[Ticket]:
        """Announce a query, so that a KILL reaches it even before it runs (R14)."""
        ticket = Ticket(query_id)
        with self._lock:
            self._tickets.add(ticket)
        try:
            yield ticket
        finally:
            with self._lock:
                self._tickets.discard(ticket)
                self._idle.notify_all()

    def kill_announced(self, query_ids: set[str]) -> set[Ticket]:
        """Mark announced queries as killed: none of them starts any more. Those that run are the engine's to kill."""
        with self._lock:
            named = {ticket for ticket in self._tickets if ticket.query_id in query_ids}
            for ticket in named:
                ticket.killed = True
        return named

    def wait_over(self, named: set[Ticket], wait_seconds: float) -> None:
        """Return when these queries are over."""
        deadline = time.monotonic() + wait_seconds
        while True:
            with self._lock:
                left = named & self._tickets
                if not left or time.monotonic() > deadline:
                    return
            for query_id in {ticket.query_id for ticket in left}:
                self.kill(query_id)
            with self._lock:
                if named & self._tickets:
                    self._idle.wait(0.05)

    @contextmanager
    def running(self, query_id: str, user: str, is_insert: bool) -> Iterator[None]:
        """Count a query while it runs. Raises :class:`EngineError` for a repeated id, too many, or while stopping."""
        with self._lock:
            if self._closing:
                raise EngineError.of(236, "ABORTED", "The server is shutting down")
            if query_id in self._running:
                raise EngineError.of(
                    216, "QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING", f"Query with id = {query_id} is already running"
                )
            if len(self._running) >= self.limits.queries_max:
                raise EngineError.of(
                    202,
                    "TOO_MANY_SIMULTANEOUS_QUERIES",
                    f"Too many simultaneous queries. Maximum: {self.limits.queries_max}",
                )
            self._running[query_id] = Running(query_id, user, time.monotonic(), is_insert)
        try:
            yield
        finally:
            with self._lock:
                self._running.pop(query_id, None)
                self._idle.notify_all()

    def queries(self) -> list[Running]:
        with self._lock:
            return list(self._running.values())

    def kill(self, query_id: str) -> None:
        """Ask the engine to end a query; returns at once."""
        with suppress(EngineError), self.handle() as handle:
            handle.run(f"KILL QUERY WHERE Settings['log_comment'] = {quoted(query_id)} ASYNC")

    def close(self, drain_seconds: float) -> int:
        """Wait for what runs, kill the rest, shut the engine down. Returns how many had to be killed."""
        deadline = time.monotonic() + drain_seconds
        with self._lock:
            self._closing = True
            while self._running and time.monotonic() < deadline:
                self._idle.wait(deadline - time.monotonic())
            left = list(self._running)
        for query_id in left:
            self.kill(query_id)
        with self._lock:
            deadline = time.monotonic() + 2
            while self._running and time.monotonic() < deadline:
                self._idle.wait(0.2)
        self._base.close()
        return len(left)


def quoted(value: str) -> str:
    """A string literal."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def quoted_name(name: str) -> str:
    """A quoted identifier."""
    return "`" + name.replace("\\", "\\\\").replace("`", "\\`") + "`"


def _configuration(data: DataDirectory, limits: Limits) -> str:
    """The engine's own configuration. Pools follow the machine: sixteen merges at once would starve two cores."""
    merges = max(2, limits.threads)
    return f"""<clickhouse>
  <max_server_memory_usage>{limits.memory_bytes}</max_server_memory_usage>
  <user_files_path>{escape(str(data.sub("user_files")))}/</user_files_path>
  <background_pool_size>{merges}</background_pool_size>
  <background_merges_mutations_concurrency_ratio>2</background_merges_mutations_concurrency_ratio>
  <merge_tree>
    <number_of_free_entries_in_pool_to_lower_max_size_of_merge>{merges}</number_of_free_entries_in_pool_to_lower_max_size_of_merge>
    <number_of_free_entries_in_pool_to_execute_mutation>{merges}</number_of_free_entries_in_pool_to_execute_mutation>
    <number_of_free_entries_in_pool_to_execute_optimize_entire_partition>{merges}</number_of_free_entries_in_pool_to_execute_optimize_entire_partition>
  </merge_tree>
  <backups>
    <allowed_path>{escape(str(data.sub("backups")))}/</allowed_path>
  </backups>
</clickhouse>
"""

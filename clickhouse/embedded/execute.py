"""One query, from request to response, on a handle of its own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from clickhouse.embedded import codecs, formats
from clickhouse.embedded.engine import Engine, EngineError, Handle, Ticket, quoted, quoted_name
from clickhouse.embedded.ready import ReadyHandles
from clickhouse.embedded.request import Request
from clickhouse.embedded.response import Response
from clickhouse.embedded.sessions import TIMEOUT_SECONDS, Sessions
from clickhouse.embedded.space import SpaceGuard
from clickhouse.embedded.statement import INSERT, Statement, StatementError, cut, literals, without_query_id
from clickhouse.embedded.users import User

_SECONDS_MAX: Final = 24 * 3600

# The engine's own read-only mode lets KILL and SYSTEM through.
_READING: Final = frozenset(
    {"SELECT", "WITH", "FROM", "(", "VALUES", "SHOW", "DESCRIBE", "DESC", "EXPLAIN", "EXISTS", "SET", "USE"}
)


class Executor:
    """Runs statements. Bounds that clients cannot lift: memory, and the time that an insert may take (R12)."""

    def __init__(self, engine: Engine, sessions: Sessions, space: SpaceGuard) -> None:
        self._engine = engine
        self._sessions = sessions
        self._space = space
        self._ready = ReadyHandles(engine)

    def close(self) -> None:
        """Let go of the handles that stand ready."""
        self._ready.close()

    def run(self, request: Request, statement: Statement, user: User, query_id: str, response: Response) -> int:
        """Run and fill the response. Returns the rows inserted. Raises :class:`EngineError`."""
        if user.readonly and statement.verb not in _READING:
            raise EngineError.of(164, "READONLY", f"{user.name}: Cannot execute query in readonly mode")
        began = time.time()
        if statement.verb == INSERT:
            self._space.require()
        killed: set[Ticket] = set()
        if statement.verb == "KILL":
            # Before the engine's own KILL ... SYNC, which waits for what is shown of an insert that is still coming.
            killed = self._engine.kill_announced((literals(statement.sql) | set(request.bound.values())) - {query_id})
        with self._prepared(request, statement, user, query_id) as (handle, statement):
            if statement.data is not None:
                rows = _insert(handle, request, statement, response)
                self._space.confirm(began)
                return rows
            _select(handle, request, statement, response)
        if killed and "SYNC" in statement.sql.upper():
            self._engine.wait_over(killed, self._engine.limits.execution_seconds)
        return 0

    @contextmanager
    def announced(self, request: Request, user: User, query_id: str) -> Iterator[None]:
        """Show an insert in system.processes while its body is on its way, where its statement stands in the URL."""
        try:
            statement = cut(request.params.get("query", "").encode())
        except StatementError:
            statement = None
        if statement is None or statement.data is None or request.params.get("session_id"):
            yield
            return
        with self._prepared(request, statement, user, query_id) as (handle, _):
            end = handle.announce_insert(statement.sql, statement.format)
            try:
                yield
            finally:
                end()

    @contextmanager
    def _handle(self, request: Request, user: User) -> Iterator[Handle]:
        session_id = request.params.get("session_id", "")
        if not session_id:
            with self._engine.handle() as handle:
                yield handle
            return
        timeout = float(request.params.get("session_timeout") or TIMEOUT_SECONDS)
        with self._sessions.use(user.name, session_id, timeout, request.switch("session_check")) as handle:
            yield handle

    @contextmanager
    def _prepared(
        self, request: Request, statement: Statement, user: User, query_id: str
    ) -> Iterator[tuple[Handle, Statement]]:
        """A handle with database and settings of this request, and the statement as it is to be run on it.

        A session gets its own settings back afterwards.
        """
        in_session = bool(request.params.get("session_id"))
        database = request.params.get("database") or request.headers.get("X-ClickHouse-Database", "")
        settings = self._bounds(request, statement)
        reads = user.readonly or (request.method in ("GET", "HEAD") and not in_session)
        strictly = request.params.get("readonly") == "1"
        if statement.streams and not in_session and not strictly and not request.external:
            kind = (database, reads, tuple(sorted(settings.items())))
            with self._ready.use(kind, lambda handle: _prepare(handle, settings, database, reads)) as handle:
                if statement.takes_settings:
                    # Within the question: a statement of its own costs half a millisecond.
                    comment = f"{statement.sql} SETTINGS log_comment = {quoted(query_id)}"
                    yield handle, statement._replace(sql=comment)
                else:
                    handle.set({"log_comment": query_id})
                    yield handle, statement
            return
        settings["log_comment"] = query_id
        with self._handle(request, user) as handle:
            before = self._values(handle, settings) if in_session and not statement.changes_session else {}
            handle.set(settings, database)
            for table in request.external:
                handle.run(f"CREATE TEMPORARY TABLE {quoted_name(table.name)} ({table.structure})")
                handle.insert(f"INSERT INTO {quoted_name(table.name)}", table.format, table.data)
            # Last, because nothing can be set after it. A session keeps its own rights: it belongs to one user.
            if reads and (not in_session or str(handle.run("SELECT getSetting('readonly')")).strip() == "0"):
                handle.set({"readonly": "2"})
            if strictly:
                handle.set({"readonly": "1"})
            try:
                yield handle, statement
            finally:
                if before:
                    handle.set(before)

    def _bounds(self, request: Request, statement: Statement) -> dict[str, str]:
        limits = self._engine.limits
        settings = dict(request.settings)
        seconds = limits.execution_seconds
        try:
            asked = float(settings.get("max_execution_time") or 0)
            memory = int(settings.get("max_memory_usage") or 0)
        except ValueError:
            raise EngineError.of(
                72, "CANNOT_PARSE_NUMBER", "max_execution_time or max_memory_usage is no number"
            ) from None
        longest = seconds if statement.verb == INSERT else _SECONDS_MAX
        settings["max_execution_time"] = f"{min(asked, longest) if asked > 0 else seconds:g}"
        allowed = limits.query_memory_bytes
        settings["max_memory_usage"] = str(min(memory, allowed) if memory > 0 else allowed)
        settings.setdefault("max_threads", str(limits.threads))
        if settings["max_threads"] == "1":
            # Three threads are started to format what one was asked to read: half a millisecond.
            settings.setdefault("output_format_parallel_formatting", "0")
        return settings

    def _values(self, handle: Handle, settings: dict[str, str]) -> dict[str, str]:
        names = ", ".join(f"'{name}'" for name in settings if self._engine.knows(name))
        rows = str(handle.run(f"SELECT name, value FROM system.settings WHERE name IN ({names})", "TSVRaw"))
        return dict(line.split("\t", 1) for line in rows.splitlines())


def _prepare(handle: Handle, settings: dict[str, str], database: str, reads: bool) -> None:
    handle.set(settings, database)
    if reads:
        handle.set({"readonly": "2"})


def _insert(handle: Handle, request: Request, statement: Statement, response: Response) -> int:
    assert statement.data is not None
    result = handle.insert(statement.sql, statement.format, statement.data, statement.settings, request.bound)
    rows, size = result.rows_written(), result.bytes_written()
    response.summary(
        {
            "read_rows": rows,
            "read_bytes": len(statement.data),
            "written_rows": rows,
            "written_bytes": size,
            "result_rows": rows,
            "result_bytes": size,
            "elapsed_ns": round(result.elapsed() * 1e9),
        }
    )
    response.headers["Content-Type"] = "text/plain; charset=UTF-8"
    return int(rows)


def _select(handle: Handle, request: Request, statement: Statement, response: Response) -> None:
    default = request.params.get("default_format") or request.headers.get("X-ClickHouse-Format") or "TabSeparated"
    name = statement.format or default
    sql = without_query_id(statement.sql) if statement.verb == "KILL" else statement.sql
    response.headers["Content-Type"] = formats.content_type(name)
    response.headers["X-ClickHouse-Format"] = name
    response.wait = request.switch("wait_end_of_query") or request.switch("http_wait_end_of_query")
    if request.switch("compress"):
        response.framed = True
    elif request.switch("enable_http_compression"):
        response.coding = codecs.choose(request.headers.get("Accept-Encoding", ""))
        if response.coding:
            response.headers["Content-Encoding"] = response.coding
    if request.switch("send_progress_in_http_headers"):
        response.progress_interval_s = float(request.params.get("http_headers_progress_interval_ms") or 100) / 1000
        # The engine stops for each of these calls: none for a question that is over before the first is due.
        if response.progress_interval_s < float(request.settings.get("max_execution_time") or _SECONDS_MAX):
            handle.on_progress(response.progress)
    if statement.streams and formats.streams(name) and not statement.with_totals and not request.switch("extremes"):
        response.headers["X-ClickHouse-Exception-Tag"] = response.exception_tag
        if _stream(handle, request, sql, name, response):
            return
        response.headers.pop("X-ClickHouse-Exception-Tag", None)
    result = handle.run(sql, name, request.bound)
    response.summary(_told(result))
    response.write(result.bytes())


def _stream(handle: Handle, request: Request, sql: str, name: str, response: Response) -> bool:
    """Send piece by piece. False if there was no row: then the whole, with names and types, is asked for at once."""
    head = -1
    try:
        for piece in handle.stream(sql, name, request.bound):
            data = piece.bytes()
            response.summary(_told(piece))
            if head < 0:
                head = formats.head_bytes(name, data)
            else:
                data = data[head:]
            response.write(data)
    except EngineError as e:
        if e.code == 36 and "Streaming query is not supported" in str(e):
            return False
        raise
    return head >= 0


def _told(result: Any) -> dict[str, int]:
    return {
        "read_rows": result.storage_rows_read(),
        "read_bytes": result.storage_bytes_read(),
        "written_rows": result.rows_written(),
        "written_bytes": result.bytes_written(),
        "result_rows": result.rows_read(),
        "result_bytes": result.bytes_read(),
        "elapsed_ns": round(result.elapsed() * 1e9),
    }

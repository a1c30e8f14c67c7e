"""The only door to ClickHouse: clickhouse-connect over HTTP, whatever stands behind the address.

Two kinds of client, because writers and readers need opposite things:

:class:`StoreConnection` (collectors, migrations, rollups)
    *One* HTTP connection, read its boot id at open, never reconnects, never retries (R12). As long as it lives,
    the server has not restarted since the boot id was read: that is what a deduplication token is bound to. When
    it is lost the object is of no further use; the caller opens another and so learns the new boot id.
    Not thread-safe.

:class:`StorePool` (the API)
    Many threads, read only, as many connections as needed, reads are retried by the driver.

Both raise the exceptions of :mod:`clickhouse.errors` and nothing of the driver's.
"""

from __future__ import annotations

import logging
import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple

import clickhouse_connect
import clickhouse_connect.common
import lz4.frame
import numpy as np
import orjson
import urllib3
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError, NewConnectionError

from clickhouse.address import DEFAULT_DATABASE, DEFAULT_URL, Z_SECONDS, StoreAddress
from clickhouse.errors import OutcomeUnknown, StoreError, StoreNotReady, StoreRefused, StoreUnavailable, from_code
from telemetry.ids import unique_id

if TYPE_CHECKING:
    import pyarrow


INSERT_SETTINGS: Final[dict[str, Any]] = {
    # On by default from 26.3: it would answer before, and merge blocks after, what the token was made for.
    "async_insert": 0,
    # The token, not the content, names the block.
    "insert_deduplicate": 1,
    # Parallel branches number blocks on their own: rows dropped or doubled under one token.
    "max_insert_threads": 1,
    # A cut body parsed in parallel may have committed its first part.
    "input_format_parallel_parsing": 0,
    "max_execution_time": Z_SECONDS,
}
"""Settings of every insert, sent with it: what the server has as its defaults does not matter."""

INSERT_SETTINGS_IF_KNOWN: Final[dict[str, Any]] = {
    # From 26.2 it overrides insert_deduplicate; unknown before.
    "deduplicate_insert": "enable",
    # Keys come as LowCardinality(UInt64) for UInt64 columns.
    "input_format_native_allow_types_conversion": 1,
    # Plain values in a Native block of one go: no second squashing into another block size.
    "min_insert_block_size_rows": 0,
    "min_insert_block_size_bytes": 0,
}

# Every failure is raised and told once, by whoever handles it.
logging.getLogger("clickhouse_connect").setLevel(logging.CRITICAL)
# The driver closes "old" connections by itself by default (10 min), which would be a silent reconnect.
clickhouse_connect.common.set_setting("max_connection_age", 0)
# One client serves many threads and no temporary tables are used: sessions would only serialise them.
clickhouse_connect.common.set_setting("autogenerate_session_id", False)
# A question is named by the server: the driver's way costs each a wait for the interpreter (see telemetry.ids).
clickhouse_connect.common.set_setting("autogenerate_query_id", False)


class InsertSummary(NamedTuple):
    """What the server said about an insert. ``rows`` is as reported and proves nothing about deduplication (R13)."""

    rows: int
    bytes: int
    elapsed_s: float
    query_id: str


class _Fate:
    """What has become of the one connection: shared between its urllib3 classes and the StoreConnection."""

    def __init__(self) -> None:
        self.connected = False
        self.sent = False


def _one_connection_pool(fate: _Fate, address: StoreAddress) -> urllib3.PoolManager:
    """A pool manager that connects once and refuses, before a byte is sent, to do so again."""

    class Once:
        def connect(self) -> None:
            if fate.connected:
                raise NewConnectionError(self, "the connection to the store was lost and is not reopened")  # type: ignore[arg-type]
            super().connect()  # type: ignore[misc]
            fate.connected = True

        def send(self, data: Any) -> None:
            if self.sock is None:  # type: ignore[attr-defined]
                self.connect()
            fate.sent = True
            super().send(data)  # type: ignore[misc]

    http = type("OnceHTTPPool", (HTTPConnectionPool,), {"ConnectionCls": type("OnceHTTP", (Once, HTTPConnection), {})})
    https = type(
        "OnceHTTPSPool", (HTTPSConnectionPool,), {"ConnectionCls": type("OnceHTTPS", (Once, HTTPSConnection), {})}
    )
    manager = urllib3.PoolManager(num_pools=1, maxsize=1, **_tls(address))
    manager.pool_classes_by_scheme = {"http": http, "https": https}
    return manager


def _tls(address: StoreAddress) -> dict[str, Any]:
    if not address.url.startswith("https"):
        return {}
    options: dict[str, Any] = {"cert_reqs": "CERT_REQUIRED" if address.verify else "CERT_NONE"}
    if address.ca_file:
        options["ca_certs"] = address.ca_file
    if address.cert_file:
        options["cert_file"] = address.cert_file
    if address.key_file:
        options["key_file"] = address.key_file
    return options


_COUNTED: Final = {
    "exact_rows_before_limit": 1,
    "output_format_json_quote_64bit_integers": 0,
    # JSON has no numbers for NaN and the infinities; Python's float() reads their names.
    "output_format_json_quote_denormals": 1,
}


class _Reader(ABC):
    """Questions, common to connection and pool. Parameters are always bound by the server: ``{name:Type}``."""

    address: StoreAddress

    def query(
        self, sql: str, params: Mapping[str, Any] | None = None, settings: Mapping[str, Any] | None = None
    ) -> list[tuple[Any, ...]]:
        """Rows of a SELECT as tuples; DateTime values are UTC-aware datetimes."""
        bound, given = _bound(params), dict(settings or {})
        result = self._ask(lambda c: c.query(sql, parameters=bound, settings=given, tz_mode="aware"))
        return list(result.result_rows)

    def query_counted(
        self, sql: str, params: Mapping[str, Any] | None = None, settings: Mapping[str, Any] | None = None
    ) -> tuple[list[tuple[Any, ...]], int]:
        """Rows of a SELECT with LIMIT, and how many there would be without. Numbers and texts only."""
        exactly = {**_COUNTED, **(settings or {})}
        found = orjson.loads(self.query_bytes(sql, params, exactly, "JSONCompact"))
        # Without a LIMIT that took effect the number is left out by some versions.
        return [tuple(row) for row in found["data"]], found.get("rows_before_limit_at_least", found["rows"])

    def query_numbers(
        self, sql: str, params: Mapping[str, Any] | None, settings: Mapping[str, Any] | None, row: np.dtype
    ) -> np.ndarray:
        """Rows of numbers as a structured array: hundreds of them without a Python object a value.

        ``row``: fields as wide as the columns of the SELECT, in their order, none of them nullable.
        """
        return np.frombuffer(self.query_bytes(sql, params, settings, "RowBinary"), row)

    def query_arrow(
        self, sql: str, params: Mapping[str, Any] | None = None, settings: Mapping[str, Any] | None = None
    ) -> pyarrow.Table:
        """The result as an Arrow table: the way to fetch many rows."""
        return self._ask(lambda c: c.query_arrow(sql, parameters=_bound(params), settings=dict(settings or {})))

    def query_bytes(
        self,
        sql: str,
        params: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
        output_format: str = "JSONEachRow",
    ) -> bytes:
        """The result as the server writes it in ``output_format``."""
        found: bytes = self._ask(
            lambda c: c.raw_query(sql, parameters=_bound(params), settings=dict(settings or {}), fmt=output_format)
        )
        return found

    def scalar(self, sql: str, params: Mapping[str, Any] | None = None) -> Any:
        """First column of the first row, or None."""
        rows = self.query(sql, params)
        return rows[0][0] if rows else None

    def command(
        self, sql: str, params: Mapping[str, Any] | None = None, settings: Mapping[str, Any] | None = None
    ) -> Any:
        """A statement without a result table (DDL, KILL, SYSTEM)."""
        return self._ask(lambda c: c.command(sql, parameters=_bound(params), settings=dict(settings or {})))

    def has(self, table: str) -> bool:
        """Whether a table, view or dictionary of this name exists in the store's database."""
        sql = "SELECT count() FROM system.tables WHERE database = {database:String} AND name = {table:String}"
        return bool(self.scalar(sql, {"database": self.address.database, "table": table}))

    @abstractmethod
    def _ask(self, do: Any) -> Any:
        """Run ``do(driver client)`` on a connection; raises :class:`StoreError`."""


def _bound(params: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return dict(params) if params else None


class StoreConnection(_Reader):
    """One HTTP connection to one run of one server; see the module's head. Use :func:`connect`."""

    def __init__(self, address: StoreAddress) -> None:
        self.address = address
        self._fate = _Fate()
        self._client: Client | None = None
        self._pool = _one_connection_pool(self._fate, address)
        self._known_settings: set[str] = set()
        self._lock = threading.Lock()
        arguments = address.driver_arguments()
        try:
            self._client = clickhouse_connect.get_client(**arguments, pool_mgr=self._pool, query_retries=0)
            # urllib3 retries of its own: none, a lost answer must be told and not papered over.
            self._client.http_retries = 0
            self.server_version: str = self._client.server_version
            self._known_settings = set(self._client.server_settings)
        except (ClickHouseError, HTTPError, OSError) as e:
            self.close()
            raise self._translated(e) from None
        self.boot_id = self._read_boot_id()

    @property
    def closed(self) -> bool:
        return self._client is None

    def _read_boot_id(self) -> str:
        try:
            found = self.query(
                f"SELECT toString(dictGet('{self.address.database}.boot', 'id', toUInt64(0)))",
            )
        except StoreRefused as e:
            if e.code not in (36, 60, 81):
                raise
            # No such dictionary, or database: the schema is not there yet. check_boot_id() says so where it matters.
            return ""
        return str(found[0][0])

    def check_boot_id(self) -> None:
        """Raise :class:`StoreNotReady` while there is no schema to insert into."""
        if not self.boot_id:
            raise StoreNotReady(
                f"database {self.address.database} at {self.address.shown} has no schema: "
                "run `telemetry-clickhouse migrate`"
            )

    def insert(
        self,
        table: str,
        native_block: bytes | memoryview,
        columns: Sequence[str],
        *,
        token: str = "",
        query_id: str = "",
        settings: Mapping[str, Any] | None = None,
    ) -> InsertSummary:
        """One INSERT of one Native block, once: no retry whatever happens.

        Raises :class:`StoreUnavailable` (nothing was sent), :class:`OutcomeUnknown` (R13 decides), or
        :class:`StoreRefused` (nothing was stored).
        """
        arguments = dict(INSERT_SETTINGS)
        arguments.update({k: v for k, v in INSERT_SETTINGS_IF_KNOWN.items() if k in self._known_settings})
        if token:
            arguments["insert_deduplication_token"] = token
        arguments.update(settings or {})
        # Twice: the embedded engine keeps ids of its own, and every server shows log_comment (see running()).
        arguments["query_id"] = arguments["log_comment"] = query_id or unique_id()
        compression = None
        body: Any = memoryview(native_block)
        if self.address.compression == "lz4":
            compression = "lz4"
            body = memoryview(lz4.frame.compress(native_block, store_size=False))
        # A memoryview: the driver then sends the statement in the URL and the block as it is, without a copy.
        summary = self._ask(
            lambda c: c.raw_insert(
                f"{self.address.database}.{table}",
                column_names=list(columns),
                insert_block=body,
                fmt="Native",
                compression=compression,
                settings=arguments,
            )
        )
        told = summary.summary
        return InsertSummary(
            rows=int(told.get("written_rows", 0)),
            bytes=int(told.get("written_bytes", 0)),
            elapsed_s=int(told.get("elapsed_ns", 0)) / 1e9,
            query_id=arguments["query_id"],
        )

    def effective_insert_settings(self) -> dict[str, str]:
        """The settings of an insert as the server takes them, asked with those very settings sent along."""
        names = sorted({*INSERT_SETTINGS, *INSERT_SETTINGS_IF_KNOWN, "max_insert_block_size"} & self._known_settings)
        sent = {k: v for k, v in {**INSERT_SETTINGS, **INSERT_SETTINGS_IF_KNOWN}.items() if k in self._known_settings}
        rows = self.query(
            "SELECT name, value FROM system.settings WHERE name IN {names:Array(String)}", {"names": names}, sent
        )
        return {str(name): str(value) for name, value in rows}

    def running(self, prefix: str) -> list[str]:
        """Query ids of the inserts under way on this server that begin with ``prefix``."""
        rows = self.query(
            "SELECT DISTINCT Settings['log_comment'] FROM system.processes "
            "WHERE query_kind = 'Insert' AND startsWith(Settings['log_comment'], {prefix:String})",
            {"prefix": prefix},
        )
        return [str(row[0]) for row in rows]

    def kill(self, query_id: str) -> bool:
        """Fence an older insert (R14): returns when it is dead; True if there was one to kill."""
        rows = self.query("KILL QUERY WHERE query_id = {id:String} SYNC", {"id": query_id})
        return bool(rows)

    def close(self) -> None:
        """Close the connection; idempotent."""
        client, self._client = self._client, None
        if client is not None:
            with suppress(Exception):
                client.close()
        self._pool.clear()

    def __enter__(self) -> StoreConnection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, do: Any) -> Any:
        if self._client is None:
            raise StoreUnavailable(f"the connection to {self.address.shown} is closed; open another")
        if not self._lock.acquire(blocking=False):
            raise RuntimeError("a StoreConnection serves one thread at a time; open one for each thread")
        self._fate.sent = False
        try:
            return do(self._client)
        except (ClickHouseError, HTTPError, OSError) as e:
            error = self._translated(e)
        finally:
            self._lock.release()
        if not error.code:
            # The transport failed: whatever comes next must not travel over a half-read connection.
            self.close()
        raise error from None

    def _translated(self, e: Exception) -> StoreError:
        code = getattr(e, "code", None) or 0
        if code:
            return from_code(_one_line(e), code)
        if self._fate.connected and self._fate.sent:
            return OutcomeUnknown(f"the answer of {self.address.shown} was lost: {_one_line(e)}")
        return StoreUnavailable(f"cannot reach the store at {self.address.shown}: {_reason(e)}")


class StorePool(_Reader):
    """Reads for many threads. Connects at the first question, and again by itself after the store was away."""

    def __init__(
        self, address: StoreAddress, *, connections: int = 16, settings: Mapping[str, Any] | None = None
    ) -> None:
        """``connections``: how many are kept open; more threads than that open short-lived ones.

        ``settings`` go with every question (say ``max_execution_time``, ``max_threads``).
        """
        self.address = address
        self._connections = connections
        self._settings = dict(settings or {})
        self._client: Client | None = None
        self._lock = threading.Lock()

    def _connected(self) -> Client:
        with self._lock:
            if self._client is None:
                manager = urllib3.PoolManager(num_pools=2, maxsize=self._connections, **_tls(self.address))
                client = clickhouse_connect.get_client(
                    **self.address.driver_arguments(), pool_mgr=manager, query_retries=1, settings=self._settings
                )
                # After the driver's own start, so that a database which is not there yet is told by the question.
                client.database = self.address.database
                self._client = client
            return self._client

    def _ask(self, do: Any) -> Any:
        try:
            return do(self._connected())
        except (ClickHouseError, HTTPError, OSError) as e:
            code = getattr(e, "code", None) or 0
            if code:
                raise from_code(_one_line(e), code) from None
            raise StoreUnavailable(f"cannot reach the store at {self.address.shown}: {_reason(e)}") from None

    @contextmanager
    def open_stream(
        self,
        sql: str,
        params: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
        output_format: str = "JSONEachRow",
    ) -> Iterator[IO[bytes]]:
        """The result as the server writes it in ``output_format``, to be read while it comes.

        Raises :class:`StoreUnavailable` where it ends half-way.
        """
        source = self._ask(
            lambda c: c.raw_stream(sql, parameters=_bound(params), settings=dict(settings or {}), fmt=output_format)
        )
        try:
            yield source
        except (HTTPError, OSError) as e:
            raise StoreUnavailable(f"the answer of {self.address.shown} ended half-way: {_reason(e)}") from None
        finally:
            source.close()

    def ping(self) -> bool:
        """Whether the server answers at all."""
        try:
            return bool(self._connected().ping(timeout=2))
        except (ClickHouseError, HTTPError, OSError):
            return False

    def close(self) -> None:
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            with suppress(Exception):
                client.close()

    def __enter__(self) -> StorePool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def connect(
    url: str = DEFAULT_URL,
    *,
    user: str = "default",
    password: str = "",
    database: str = DEFAULT_DATABASE,
    **options: Any,
) -> StoreConnection:
    """Open a :class:`StoreConnection`. ``options``: the further fields of :class:`StoreAddress`."""
    return StoreConnection(StoreAddress(url=url, user=user, password=password, database=database, **options))


def assert_server(conn: StoreConnection, *, rows_max: int = 250_000) -> None:
    """Refuse to insert into a server on which the guarantees would not hold.

    ``rows_max``: rows of the largest delivery; one INSERT must be one block (R15). Raises
    :class:`StoreNotReady` naming the first setting that is wrong and what to do about it.
    """
    conn.check_boot_id()
    effective = conn.effective_insert_settings()
    wanted = {"async_insert": "0", "insert_deduplicate": "1", "max_insert_threads": "1", "deduplicate_insert": "enable"}
    for name, value in wanted.items():
        if name in effective and effective[name] != value:
            raise StoreNotReady(
                f"the server keeps {name} = {effective[name]} where {value} is needed: "
                f"lift the constraint from the profile of user {conn.address.user}"
            )
    limit = int(effective.get("max_execution_time", "0") or 0)
    if not 0 < limit <= Z_SECONDS:
        raise StoreNotReady(f"the server keeps max_execution_time = {limit} s where 1 to {Z_SECONDS} is needed (R12)")
    block = int(effective.get("max_insert_block_size", "0") or 0)
    if block < rows_max:
        raise StoreNotReady(
            f"max_insert_block_size = {block} is below the {rows_max} rows of a delivery: "
            "raise it on the server or lower max_rows of the group (R15)"
        )
    rows = conn.query(
        "SELECT name, engine_full FROM system.tables "
        "WHERE database = {database:String} AND name IN ('samples', 'rejects')",
        {"database": conn.address.database},
    )
    tables = {str(name): str(engine) for name, engine in rows}
    for table in ("samples", "rejects"):
        engine = tables.get(table)
        if engine is None:
            raise StoreNotReady(f"table {conn.address.database}.{table} is missing: run `telemetry-clickhouse migrate`")
        if engine.startswith("Distributed"):
            raise StoreNotReady(f"{table} is a Distributed table: point collectors at one shard's own replica (R18)")
        for setting in ("fsync_after_insert", "fsync_part_directory", "deduplication_window"):
            if not re.search(rf"{setting} = (1|true|[1-9]\d+)\b", engine):
                raise StoreNotReady(f"table {table} lacks {setting}: run `telemetry-clickhouse migrate`")


def _one_line(e: Exception) -> str:
    text = " ".join(str(e).split())
    return text if len(text) <= 500 else text[:497] + "..."


def _reason(e: BaseException) -> str:
    """The innermost cause: the driver wraps "connection refused" three deep."""
    while (inner := getattr(e, "reason", None) or e.__cause__) is not None and isinstance(inner, BaseException):
        e = inner
    # "<urllib3 object at 0x...>: Failed to establish a new connection: [Errno 111] Connection refused"
    return str(e).rpartition(">: ")[2].rpartition("] ")[2] or type(e).__name__


__all__ = [
    "DEFAULT_DATABASE",
    "DEFAULT_URL",
    "INSERT_SETTINGS",
    "INSERT_SETTINGS_IF_KNOWN",
    "Z_SECONDS",
    "InsertSummary",
    "StoreAddress",
    "StoreConnection",
    "StorePool",
    "assert_server",
    "connect",
]

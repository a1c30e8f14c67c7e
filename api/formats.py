"""Other formats than JSON: chosen by Accept or ``format=``, streamed window by window, so that memory stays flat.

CSV and NDJSON are written by the store itself and passed on as they come; Arrow and Parquet are put together here from
the record batches of the store, of some ten thousand rows each. A failure half-way ends the connection short: a cut
file never looks whole (Parquet and Arrow lack their footer, CSV and NDJSON end inside a chunked body that is never
closed).
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
from flask import Response, request
from flask_smorest import Blueprint

from api import context
from api.errors import Problem
from clickhouse.queries import export as questions
from clickhouse.queries.samples import Filter

MEDIA_TYPES: Final = {
    "json": "application/json",
    "csv": "text/csv",
    "ndjson": "application/x-ndjson",
    "arrow": "application/vnd.apache.arrow.stream",
    "parquet": "application/vnd.apache.parquet",
}
_EXTENSION: Final = {"csv": "csv", "ndjson": "ndjson", "arrow": "arrows", "parquet": "parquet"}
_STORE_FORMAT: Final = {"csv": "CSV", "ndjson": "JSONEachRow"}

SCHEMA: Final = pa.schema(
    [
        ("timestamp", pa.timestamp("ms", "UTC")),
        ("gpu_id", pa.string()),
        ("metric_name", pa.string()),
        ("value", pa.float64()),
        ("device", pa.string()),
        ("hostname", pa.string()),
    ]
)
CHUNK_BYTES: Final = 256 << 10
BATCH_ROWS: Final = 16_384
"""Rows of a record batch: 1.5 MB. Threads take turns at an export, and each keeps some memory of what it last held."""
GROUP_BATCHES: Final = 4
"""Record batches of a row group: smaller groups compress worse."""


def chosen(query: dict[str, Any]) -> str:
    """The format asked for; 406 if there is none that the client takes."""
    if query.get("format"):
        return str(query["format"])
    if not request.accept_mimetypes:
        return "json"
    best = request.accept_mimetypes.best_match([*MEDIA_TYPES.values(), "application/problem+json"])
    for name, media_type in MEDIA_TYPES.items():
        if media_type == best:
            return name
    raise Problem(
        406, f"this endpoint speaks {', '.join(MEDIA_TYPES.values())}: name one of them in Accept, or say format="
    )


def documented(blueprint: Blueprint) -> Callable[[Any], Any]:
    """Tell the OpenAPI document of the streamed formats beside JSON."""

    def decorate(view: Any) -> Any:
        for name in ("csv", "ndjson", "arrow", "parquet"):
            schema = {"type": "string"} if name in ("csv", "ndjson") else {"type": "string", "format": "binary"}
            view = blueprint.alt_response(200, schema=schema, content_type=MEDIA_TYPES[name], success=True)(view)
        return view

    return decorate


def export(name: str, wanted: Filter, order: str, filename: str) -> Response:
    """The samples, streamed in format ``name`` (not JSON)."""
    store = context.store()
    limits = {**context.query_limits(seconds=context.settings().export_seconds_max), "max_rows_to_read": 0}
    windows = questions.windows(store, wanted, order=order, settings=context.query_limits())
    # The first window is looked for before the status leaves: a store that is away is a 503 and not a cut body.
    first = next(windows, None)
    parts = _chain(first, windows)
    if name in _STORE_FORMAT:
        pieces = _text(store, parts, order, name, limits)
    elif name == "arrow":
        pieces = _arrow(store, parts, order, limits)
    else:
        pieces = _parquet(store, parts, order, limits)
    response = Response(pieces, content_type=MEDIA_TYPES[name])
    if name == "csv":
        response.headers["Content-Type"] = "text/csv; charset=utf-8; header=present"
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", filename)
    response.headers["Content-Disposition"] = f'attachment; filename="{safe}.{_EXTENSION[name]}"'
    response.headers["Cache-Control"] = "no-store"
    response.vary.add("Accept")
    return response


def _chain(first: Filter | None, rest: Iterator[Filter]) -> Iterator[Filter]:
    if first is not None:
        yield first
        yield from rest


def _text(store: Any, windows: Iterator[Filter], order: str, name: str, limits: dict[str, Any]) -> Iterator[bytes]:
    if name == "csv":
        yield (",".join(questions.COLUMNS) + "\n").encode()
    settings = {**limits, "date_time_output_format": "iso", "output_format_json_quote_64bit_integers": 0}
    for window in windows:
        sql, params = questions.statement(window, order=order)
        with store.open_stream(sql, params, settings, _STORE_FORMAT[name]) as source:
            while piece := source.read(CHUNK_BYTES):
                yield piece


def _tables(
    store: Any, windows: Iterator[Filter], order: str, limits: dict[str, Any], batches: int = 1
) -> Iterator[pa.Table]:
    """Tables of so many record batches, of one window each."""
    settings = {**limits, "output_format_arrow_string_as_string": 1, "max_block_size": BATCH_ROWS}
    for window in windows:
        sql, params = questions.statement(window, order=order)
        with store.open_stream(sql, params, settings, "ArrowStream") as source:
            reader = iter(pa.ipc.open_stream(pa.PythonFile(source, mode="r")))
            while found := list(islice(reader, batches)):
                yield pa.Table.from_batches(found).cast(SCHEMA)


class _Sink(io.RawIOBase):
    """Where a writer writes: hands over what came since the last look, and tells positions as a file would."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._position = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        piece = bytes(data)
        self._pieces.append(piece)
        self._position += len(piece)
        return len(piece)

    def tell(self) -> int:
        return self._position

    def take(self) -> bytes:
        pieces, self._pieces = self._pieces, []
        return b"".join(pieces)


def _arrow(store: Any, windows: Iterator[Filter], order: str, limits: dict[str, Any]) -> Iterator[bytes]:
    sink = _Sink()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(sink, SCHEMA, options=options) as writer:
        for table in _tables(store, windows, order, limits):
            writer.write_table(table)
            yield sink.take()
    yield sink.take()


def _parquet(store: Any, windows: Iterator[Filter], order: str, limits: dict[str, Any]) -> Iterator[bytes]:
    sink = _Sink()
    with pq.ParquetWriter(sink, SCHEMA, compression="zstd") as writer:
        for table in _tables(store, windows, order, limits, GROUP_BATCHES):
            writer.write_table(table)
            yield sink.take()
    yield sink.take()

"""CSV blocks to cells: pyarrow splits and converts a block, Python judges only what differs.

Identity columns arrive dictionary-encoded, so each distinct string of a block is handled once. A row is a line, always.
There are three paths, and each hands what it cannot settle to the next, for that block alone:

    fast       values and times converted by pyarrow; ragged lines skipped by its handler
    tolerant   a cell is no number or no time: the same, with those columns as distinct strings, each judged once
    careful    rows and lines do not tally (a quote left open, an empty line, a lone CR): line by line with Python's csv

All three agree to the row with Python's csv module on each line alone (a test holds them together).
"""

from __future__ import annotations

import csv
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv

from producers.blocks import LINE_BYTES_MAX
from producers.columns import BadLine
from producers.mapping import Mapping
from producers.values import EMPTY_VALUES

# Python's csv refuses fields above 128 KiB unless told; the block reader has bounded the line already.
csv.field_size_limit(LINE_BYTES_MAX)

NO_TIME: Final = -(2**63)
"""A time that is not there."""

_CODES: Final = pa.dictionary(pa.int32(), pa.binary())
_TIME: Final = pa.timestamp("ns", "UTC")
_TAIL_BYTES: Final = 8192

Strings = tuple[np.ndarray, list[bytes]]
"""A column as (codes, distinct byte strings)."""


class Cells(NamedTuple):
    """A block split: the wanted columns as strings to judge, or as ready arrays."""

    rows: int
    lines: int
    line_of: np.ndarray | None
    """Line of each row; None where row i is line i."""
    identity: list[tuple[np.ndarray | None, list[bytes]]]
    """None for the codes: the same string in every row."""
    metric: Strings | None
    values: list[np.ndarray | Strings]
    """One a value column: float64, or cells to judge."""
    absent: list[np.ndarray | None]
    """bool, True where the cell says that there is no value."""
    time: np.ndarray | Strings | None
    """int64 ns (NO_TIME: the cell is empty), or cells to judge."""
    bad: list[BadLine]

    def line(self, row: int) -> int:
        """The line of a row, counted from 0 within the block."""
        return row if self.line_of is None else int(self.line_of[row])


class Splitter:
    """Splits blocks of one file. ``want_times`` False leaves the time column out."""

    def __init__(self, mapping: Mapping, *, want_times: bool) -> None:
        self.mapping = mapping
        self.time_column = mapping.timestamp if want_times else None
        self.value_columns = (
            [mapping.value] if mapping.value is not None else [metric.column for metric in mapping.metrics]
        )
        self._names = [str(column) for column in range(len(mapping.header))]
        self._parse_options = pacsv.ParseOptions(delimiter=mapping.delimiter)
        self._skipping_options = pacsv.ParseOptions(delimiter=mapping.delimiter, invalid_row_handler=self._on_invalid)
        self._invalid: list[int] = []
        self._times_as_text = False
        # By (times as text, values as text): the fast path, the same for other notations of time, the tolerant one.
        self._options: dict[tuple[bool, bool], pacsv.ConvertOptions] = {}
        # Identity columns that had one string throughout the last block, and that string: checking that it still is so
        # costs a comparison of memory, less than encoding. One that changes once is not tried again.
        self._constant: dict[int, bytes] = {}
        self._varying: set[int] = set()

    def split(self, data: bytes | memoryview) -> Cells:
        """The cells of whole lines. Never raises for what the lines contain."""
        return self._by_pyarrow(data) or self._line_by_line(bytes(data))

    def _by_pyarrow(self, data: bytes | memoryview) -> Cells | None:
        """The fast and the tolerant path; None where only line by line will do."""
        if _quote_left_open(data, self.mapping.delimiter):
            return None
        read_options = pacsv.ReadOptions(use_threads=False, block_size=len(data) + 1, column_names=self._names)
        parse_options = self._parse_options
        attempts = [(True, False), (True, True)]
        if not self._times_as_text:
            attempts.insert(0, (False, False))
        while attempts:
            self._invalid = []
            try:
                options = self._options.get(attempts[0])
                if options is None:
                    options = self._options[attempts[0]] = self._convert_options(*attempts[0])
                table = pacsv.read_csv(pa.BufferReader(pa.py_buffer(data)), read_options, parse_options, options)
            except pa.ArrowInvalid as e:
                if "columns, got" in str(e) and parse_options is self._parse_options and _is_utf8(data):
                    # A ragged line: once more, skipping such lines. pyarrow's handler takes text only.
                    parse_options = self._skipping_options
                    continue
                # A time in another notation stays in that notation: do not try the fast path on every block.
                self._times_as_text |= self.time_column is not None and "timestamp" in str(e)
                attempts.pop(0)
                continue
            lines = table.num_rows + len(self._invalid)
            if not _tally(data, lines):
                return None
            if self._still_constant(table):
                return self._from_table(table, lines)
        return None

    def _still_constant(self, table: pa.Table) -> bool:
        changed = [
            column for column, value in self._constant.items() if not _all_equal(self._array(table, column), value)
        ]
        for column in changed:
            del self._constant[column]
            self._varying.add(column)
            self._options.clear()
        return not changed

    def _convert_options(self, times_as_text: bool, values_as_text: bool) -> pacsv.ConvertOptions:
        mapping = self.mapping
        types: dict[int, pa.DataType] = {
            column: pa.binary() if column in self._constant else _CODES for _, column in mapping.identity
        }
        if mapping.metric is not None:
            types[mapping.metric] = _CODES
        for column in self.value_columns:
            types[column] = _CODES if values_as_text else pa.float64()
        if self.time_column is not None:
            types[self.time_column] = _CODES if times_as_text else _TIME
        return pacsv.ConvertOptions(
            include_columns=[self._names[column] for column in types],
            column_types={self._names[column]: kind for column, kind in types.items()},
            null_values=sorted(EMPTY_VALUES),
            strings_can_be_null=False,
        )

    def _on_invalid(self, row: pacsv.InvalidRow) -> str:
        self._invalid.append(row.number)
        return "skip"

    def _from_table(self, table: pa.Table, lines: int) -> Cells:
        line_of = None
        bad = []
        if self._invalid:
            skipped = np.array(self._invalid) - 1
            line_of = np.delete(np.arange(lines), skipped)
            bad = [BadLine(int(line), "ragged", "") for line in skipped]
        mapping = self.mapping
        values: list[np.ndarray | Strings] = []
        absent: list[np.ndarray | None] = []
        for column in self.value_columns:
            value = self._array(table, column)
            if pa.types.is_dictionary(value.type):
                values.append(_strings(value))
                absent.append(None)
            else:
                values.append(value.to_numpy(zero_copy_only=False))
                absent.append(np.asarray(value.is_null()) if value.null_count else None)
        time: np.ndarray | Strings | None = None
        if self.time_column is not None:
            moment = self._array(table, self.time_column)
            if pa.types.is_dictionary(moment.type):
                time = _strings(moment)
            else:
                moment = moment.view(pa.int64())
                time = (moment.fill_null(NO_TIME) if moment.null_count else moment).to_numpy()
        return Cells(
            table.num_rows,
            lines,
            line_of,
            [self._identity(table, column) for _, column in mapping.identity],
            _strings(self._array(table, mapping.metric)) if mapping.metric is not None else None,
            values,
            absent,
            time,
            bad,
        )

    def _array(self, table: pa.Table, column: int) -> pa.Array:
        chunked = table.column(self._names[column])
        return chunked.chunk(0) if chunked.num_chunks == 1 else chunked.combine_chunks()

    def _identity(self, table: pa.Table, column: int) -> tuple[np.ndarray | None, list[bytes]]:
        if column in self._constant:
            return None, [self._constant[column]]
        codes, strings = _strings(self._array(table, column))
        if len(strings) == 1 and column not in self._varying:
            self._constant[column] = strings[0]
            self._options.clear()
        return codes, strings

    def _line_by_line(self, data: bytes) -> Cells:
        """By Python's csv module: slow, for blocks where rows and lines do not tally."""
        mapping = self.mapping
        width = len(mapping.header)
        wanted = [column for _, column in mapping.identity]
        single = [column for column in (mapping.metric, self.time_column) if column is not None]
        columns: dict[int, list[bytes]] = {column: [] for column in (*wanted, *single, *self.value_columns)}
        line_of = []
        bad = []
        lines = data.split(b"\n")
        if lines[-1] == b"":
            lines.pop()
        for number, line in enumerate(lines):
            line = line.removesuffix(b"\r")
            if not line:
                continue
            # Bytes that are no UTF-8 pass through, to be judged by the cell they stand in as on the other paths.
            cells, reason = cells_of_line(line.decode("utf-8", "surrogateescape"), mapping.delimiter)
            if reason or len(cells) != width:
                bad.append(BadLine(number, reason or "ragged", ""))
                continue
            line_of.append(number)
            for column, cell in columns.items():
                cell.append(cells[column].encode("utf-8", "surrogateescape"))
        encoded = {column: _encode(cells) for column, cells in columns.items()}
        return Cells(
            len(line_of),
            len(lines),
            np.array(line_of, dtype=np.int64),
            [encoded[column] for column in wanted],
            encoded[mapping.metric] if mapping.metric is not None else None,
            [encoded[column] for column in self.value_columns],
            [None] * len(self.value_columns),
            encoded[self.time_column] if self.time_column is not None else None,
            bad,
        )


def cells_of_line(text: str, delimiter: str) -> tuple[list[str], str]:
    """(cells, "") of one line, or ([], reason) where it is no row."""
    lines = iter((text, ""))
    try:
        cells = next(csv.reader(lines, delimiter=delimiter))
    except csv.Error:
        # A lone carriage return, or a cell above the module's limit.
        return [], "ragged"
    # With a quote left open the reader has asked for another line.
    return (cells, "") if next(lines, None) is not None else ([], "quote")


def _strings(array: pa.DictionaryArray) -> Strings:
    return array.indices.to_numpy(zero_copy_only=False), array.dictionary.to_pylist()


def _encode(cells: list[bytes]) -> Strings:
    code: dict[bytes, int] = {}
    codes = [code.setdefault(cell, len(code)) for cell in cells]
    return np.array(codes, dtype=np.int32), list(code)


def _is_utf8(data: bytes | memoryview) -> bool:
    data = bytes(data)
    if data.isascii():
        return True
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _quote_left_open(data: bytes | memoryview, delimiter: str) -> bool:
    """Whether the last line has an open quote: the only one that the tally of rows and lines cannot show."""
    tail = bytes(data[-_TAIL_BYTES:]).removesuffix(b"\n")
    if b"\n" not in tail and len(data) > _TAIL_BYTES:
        tail = bytes(data).removesuffix(b"\n")
    last = tail[tail.rfind(b"\n") + 1 :]
    if b'"' not in last:
        return False
    return cells_of_line(last.removesuffix(b"\r").decode("utf-8", "replace"), delimiter)[1] == "quote"


def _tally(data: bytes | memoryview, rows: int) -> bool:
    """Whether each row is one line, exactly: no line without a row, no row over two lines, no line end but LF."""
    octets = np.frombuffer(data, dtype=np.uint8)
    rows -= int(octets[-1]) != 10
    if int(np.count_nonzero(octets == 10)) != rows:
        return False
    # A CR of its own ends a row for pyarrow and not here.
    returns = int(np.count_nonzero(octets == 13))
    return not returns or bytes(data).count(b"\r\n") == returns


def _all_equal(array: pa.BinaryArray, value: bytes) -> bool:
    """Whether every element is ``value``, by comparing memory."""
    size, rows = len(value), len(array)
    _, offsets, data = array.buffers()
    starts = np.frombuffer(offsets, dtype=np.int32, count=rows + 1, offset=array.offset * 4)
    if starts[-1] - starts[0] != size * rows:
        return False
    if not size:
        return True
    if not (np.diff(starts) == size).all():
        return False
    return data.slice(int(starts[0]), size * rows).equals(pa.py_buffer(value * rows))

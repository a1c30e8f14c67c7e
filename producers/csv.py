"""CSV blocks to columns, without a Python object a row.

Theory. pyarrow splits and converts a block; identity columns arrive dictionary-encoded, so Python handles each distinct
string of a block once and NumPy does the rest on codes. A row is a line, always. There are three paths, and each hands
what it cannot settle to the next, for that block alone:

    fast       values and times converted by pyarrow; ragged lines skipped by its handler
    tolerant   a cell is no number or no time: the same, with those columns as distinct strings, each judged once
    careful    rows and lines do not tally (a quote left open, an empty line, a lone CR): line by line with Python's csv

All three agree to the row with Python's csv module on each line alone (a test holds them together).
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv

from producers.blocks import LINE_BYTES_MAX
from producers.columns import BadLine, Columns, Parsed
from producers.identities import Identities, Table
from producers.labels import exporter_generation, make_device, parse_labels
from producers.mapping import Mapping
from producers.values import EMPTY_VALUES, parse_number, parse_time_ns
from telemetry.catalogue import canonical, scale

# Python's csv refuses fields above 128 KiB unless told; the block reader has bounded the line already.
csv.field_size_limit(LINE_BYTES_MAX)

_CODES: Final = pa.dictionary(pa.int32(), pa.binary())
_TIME: Final = pa.timestamp("ns", "UTC")
_TAIL_BYTES: Final = 8192
_KEY_PRODUCT_MAX: Final = 1 << 22
"""Largest table of code pairs that is made instead of sorting: 4 Mi flags of one byte."""


class _Raw(NamedTuple):
    """A block split into cells: per wanted column (codes, distinct byte strings), or ready arrays."""

    rows: int
    lines: int
    line_of: np.ndarray | None
    """Line of each row; None where row i is line i."""
    identity: list[tuple[np.ndarray | None, list[bytes]]]
    """None for the codes: the same string in every row."""
    metric: tuple[np.ndarray, list[bytes]] | None
    values: list[np.ndarray | tuple[np.ndarray, list[bytes]]]
    """One a value column: float64 with NaN-boxed absence in ``absent``, or cells to judge."""
    absent: list[np.ndarray | None]
    """bool, True where the cell says that there is no value."""
    time: np.ndarray | tuple[np.ndarray, list[bytes]] | None
    bad: list[BadLine]


class BlockParser:
    """Parses blocks of one file. Not thread-safe: it remembers what it has met.

    ``want_times`` False skips the time column (rows get the time they are processed).
    """

    def __init__(self, mapping: Mapping, identities: Identities, *, want_times: bool) -> None:
        self.mapping = mapping
        self._identities = identities
        self._time_column = mapping.timestamp if want_times else None
        self._names = [str(column) for column in range(len(mapping.header))]
        self._fields = [field for field, _ in mapping.identity]
        self._tables = [Table() for _ in self._fields]
        self._metric_table = Table()
        # Per metric string: canonical code, factor of old exporters, factor of exporters since 4.9.
        self._metric_code = np.zeros(0, dtype=np.int32)
        self._factors = np.zeros((0, 2))
        self._known: dict[bytes, int] = {}
        self._new_units = np.zeros(0, dtype=np.int8)
        self._generation = identities.generation
        self._parse_options = pacsv.ParseOptions(delimiter=mapping.delimiter)
        self._skipping_options = pacsv.ParseOptions(delimiter=mapping.delimiter, invalid_row_handler=self._on_invalid)
        self._invalid: list[int] = []
        self._value_columns = (
            [mapping.value] if mapping.value is not None else [metric.column for metric in mapping.metrics]
        )
        self._wide_codes = np.array([identities.metric(metric.name) for metric in mapping.metrics], dtype=np.int32)
        self._wide_factors = np.array([metric.factor for metric in mapping.metrics])
        # By (times as text, values as text): the fast path, the same for other notations of time, the tolerant one.
        self._options: dict[tuple[bool, bool], pacsv.ConvertOptions] = {}
        # Identity columns that had one string throughout the last block, and that string: checking that it still is so
        # costs a comparison of memory, less than encoding. One that changes once is not tried again.
        self._constant: dict[int, bytes] = {}
        self._varying: set[int] = set()
        self._times_as_text = False

    def parse(self, data: bytes | memoryview) -> Parsed:
        """Parse whole lines. Never raises for what the lines contain. Keeps nothing of ``data``."""
        if self._identities.full() or self._generation != self._identities.generation:
            self._forget()
        raw = self._split(data)
        if raw is None:
            raw = self._split_carefully(bytes(data))
        return self._assemble(raw, data)

    # Splitting: bytes to cells.

    def _convert_options(self, times_as_text: bool, values_as_text: bool) -> pacsv.ConvertOptions:
        mapping = self.mapping
        types: dict[int, pa.DataType] = {
            column: pa.binary() if column in self._constant else _CODES for _, column in mapping.identity
        }
        if mapping.metric is not None:
            types[mapping.metric] = _CODES
        for column in self._value_columns:
            types[column] = _CODES if values_as_text else pa.float64()
        if self._time_column is not None:
            types[self._time_column] = _CODES if times_as_text else _TIME
        return pacsv.ConvertOptions(
            include_columns=[self._names[column] for column in types],
            column_types={self._names[column]: kind for column, kind in types.items()},
            null_values=sorted(EMPTY_VALUES),
            strings_can_be_null=False,
        )

    def _on_invalid(self, row: pacsv.InvalidRow) -> str:
        self._invalid.append(row.number)
        return "skip"

    def _split(self, data: bytes | memoryview) -> _Raw | None:
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
                self._times_as_text |= self._time_column is not None and "timestamp" in str(e)
                attempts.pop(0)
                continue
            lines = table.num_rows + len(self._invalid)
            if not _tally(data, lines):
                return None
            if not self._still_constant(table):
                continue
            return self._from_table(table, lines)
        return None

    def _still_constant(self, table: pa.Table) -> bool:
        changed = [
            column
            for column, value in self._constant.items()
            if not _all_equal(_one_chunk(table.column(self._names[column])), value)
        ]
        for column in changed:
            del self._constant[column]
            self._varying.add(column)
            self._options.clear()
        return not changed

    def _from_table(self, table: pa.Table, lines: int) -> _Raw:
        line_of = None
        bad = []
        if self._invalid:
            skipped = np.array(self._invalid) - 1
            line_of = np.delete(np.arange(lines), skipped)
            bad = [BadLine(int(line), "ragged", "") for line in skipped]
        mapping = self.mapping

        def codes(column: int) -> tuple[np.ndarray | None, list[bytes]]:
            if column in self._constant:
                return None, [self._constant[column]]
            found = _dictionary(table.column(self._names[column]))
            if len(found[1]) == 1 and column not in self._varying:
                self._constant[column] = found[1][0]
                self._options.clear()
            return found

        values: list[np.ndarray | tuple[np.ndarray, list[bytes]]] = []
        absent: list[np.ndarray | None] = []
        for column in self._value_columns:
            chunked = table.column(self._names[column])
            if pa.types.is_dictionary(chunked.type):
                values.append(_dictionary(chunked))
                absent.append(None)
            else:
                array = _one_chunk(chunked)
                absent.append(np.asarray(array.is_null()) if array.null_count else None)
                values.append(array.to_numpy(zero_copy_only=False))
        time: np.ndarray | tuple[np.ndarray, list[bytes]] | None = None
        if self._time_column is not None:
            chunked = table.column(self._names[self._time_column])
            if pa.types.is_dictionary(chunked.type):
                time = _dictionary(chunked)
            else:
                array = _one_chunk(chunked).view(pa.int64())
                # An empty time becomes null: its smallest number marks it for the judge below.
                time = (array.fill_null(_NO_TIME) if array.null_count else array).to_numpy()
        return _Raw(
            table.num_rows,
            lines,
            line_of,
            [codes(column) for _, column in mapping.identity],
            _dictionary(table.column(self._names[mapping.metric])) if mapping.metric is not None else None,
            values,
            absent,
            time,
            bad,
        )

    def _split_carefully(self, data: bytes) -> _Raw:
        """Line by line with Python's csv module: slow, for blocks where rows and lines do not tally."""
        mapping = self.mapping
        width = len(mapping.header)
        wanted = [column for _, column in mapping.identity]
        single = [column for column in (mapping.metric, self._time_column) if column is not None]
        columns: dict[int, list[bytes]] = {column: [] for column in (*wanted, *single, *self._value_columns)}
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
            cells, reason = _cells_of_line(line.decode("utf-8", "surrogateescape"), mapping.delimiter)
            if reason or len(cells) != width:
                bad.append(BadLine(number, reason or "ragged", ""))
                continue
            line_of.append(number)
            for column, cell in columns.items():
                cell.append(cells[column].encode("utf-8", "surrogateescape"))
        encoded = {column: _encode(cells) for column, cells in columns.items()}
        return _Raw(
            len(line_of),
            len(lines),
            np.array(line_of, dtype=np.int64),
            [encoded[column] for column in wanted],
            encoded[mapping.metric] if mapping.metric is not None else None,
            [encoded[column] for column in self._value_columns],
            [None] * len(self._value_columns),
            encoded[self._time_column] if self._time_column is not None else None,
            bad,
        )

    # Assembling: cells to codes and numbers.

    def _assemble(self, raw: _Raw, data: bytes | memoryview) -> Parsed:
        bad = raw.bad
        line_of = raw.line_of
        keep = np.ones(raw.rows, dtype=bool)

        def reject(mask: np.ndarray, reason: str, column: str) -> None:
            for row in np.flatnonzero(mask & keep):
                bad.append(BadLine(int(row if line_of is None else line_of[row]), reason, column))
            keep[mask] = False

        if raw.rows == 0:
            return Parsed(Columns(_NO_CODES, _NO_CODES, np.zeros(0), None), raw.lines, bad)
        identity = [table.codes(strings) for table, (_, strings) in zip(self._tables, raw.identity, strict=True)]
        for (codes, _), known, (_, column) in zip(raw.identity, identity, self.mapping.identity, strict=True):
            if len(known) and known.min() < 0:
                wrong = np.ones(raw.rows, dtype=bool) if codes is None else known[codes] < 0
                reject(wrong, "undecodable", self.mapping.header[column])
        time = self._times(raw, reject)
        metric = None
        if raw.metric is not None:
            known = self._metrics(raw.metric[1])
            if known.min() < 0:
                reject(known[raw.metric[0]] < 0, "undecodable", self.mapping.header[self.mapping.metric or 0])
            metric = known[raw.metric[0]]
        cells = [_judge_numbers(value, absent) for value, absent in zip(raw.values, raw.absent, strict=True)]
        if metric is not None:
            number, absent, wrong = cells[0]
            heading = self.mapping.header[self._value_columns[0]]
            if absent is not None:
                reject(absent, "no_value", heading)
            if wrong is not None:
                reject(wrong, "not_a_number", heading)
            whole = keep.all()
            device = self._devices(raw, identity, keep, data)
            if not whole:
                device, metric, number = device[keep], metric[keep], number[keep]
                time = None if time is None else time[keep]
            number = self._scaled(number, device, metric)
            return Parsed(Columns(device, self._metric_code[metric], number, time), raw.lines, bad)
        device = self._devices(raw, identity, keep, data)
        return self._wide(raw, cells, device, time, keep)

    def _times(self, raw: _Raw, reject: Callable[[np.ndarray, str, str], None]) -> np.ndarray | None:
        if raw.time is None:
            return None
        heading = self.mapping.header[self._time_column or 0]
        if isinstance(raw.time, np.ndarray):
            missing = raw.time == _NO_TIME
            if missing.any():
                reject(missing, "bad_time", heading)
            return raw.time
        codes, strings = raw.time
        parsed = [parse_time_ns(string.decode("utf-8", "replace")) for string in strings]
        table = np.array([_NO_TIME if time is None else time for time in parsed], dtype=np.int64)
        time = table[codes]
        if None in parsed:
            reject(time == _NO_TIME, "bad_time", heading)
        return time

    def _metrics(self, strings: list[bytes]) -> np.ndarray:
        """Codes into the metric table; new names are looked up in the catalogue."""
        codes = self._metric_table.codes(strings)
        for name in self._metric_table.strings[len(self._metric_code) :]:
            version = self.mapping.exporter_version
            known, old = canonical(name, exporter_version=version)
            _, new = canonical(name, exporter_version=version or "4.9.0")
            self._metric_code = np.append(self._metric_code, np.int32(self._identities.metric(known)))
            self._factors = np.append(self._factors, [[old, new]], axis=0)
        return codes

    def _scaled(self, number: np.ndarray, device: np.ndarray, metric: np.ndarray) -> np.ndarray:
        if (self._factors == 1).all():
            return number
        factor = self._factors[metric, self._new_units[device]]
        return number if (factor == 1).all() else scale(number, factor)

    def _devices(self, raw: _Raw, identity: list[np.ndarray], keep: np.ndarray, data: bytes | memoryview) -> np.ndarray:
        """int32 device codes of all rows (those of rejected rows mean nothing)."""
        varying = [(codes, len(strings)) for codes, strings in raw.identity if codes is not None]
        group, first = _groups(varying, raw.rows)
        keys = np.empty((len(first), len(identity)), dtype=np.int64)
        for i, ((codes, _), known) in enumerate(zip(raw.identity, identity, strict=True)):
            keys[:, i] = known[0] if codes is None else known[codes[first]]
        as_bytes = keys.view(np.dtype((np.void, keys.shape[1] * 8))).ravel().tolist()
        get = self._known.get
        found = [get(key) for key in as_bytes]
        if None in found:
            lines: list[bytes] | None = None
            for i, code in enumerate(found):
                if code is not None:
                    continue
                row = int(first[i])
                if not keep[row] and keys[i].min() < 0:
                    found[i] = 0
                    continue
                if lines is None and self.mapping.labels is not None:
                    lines = bytes(data).split(b"\n")
                line = None if lines is None else lines[row if raw.line_of is None else int(raw.line_of[row])]
                found[i] = self._known[as_bytes[i]] = self._new_device(keys[i], line)
        return np.array(found, dtype=np.int32)[group]

    def _new_device(self, key: np.ndarray, line: bytes | None) -> int:
        fields = dict(self.mapping.constants)
        for field, table, code in zip(self._fields, self._tables, key, strict=True):
            fields[field] = table.strings[code] or fields.get(field, "")
        labels = [(name[6:], fields.pop(name)) for name in list(fields) if name.startswith("label:")]
        told: dict[str, str] = {}
        if line is not None and self.mapping.labels is not None:
            cells, _ = _cells_of_line(line.removesuffix(b"\r").decode("utf-8", "replace"), self.mapping.delimiter)
            told = parse_labels(cells[self.mapping.labels]) if len(cells) > self.mapping.labels else {}
        code = self._identities.device(make_device(fields, [*labels, *told.items()]))
        if code >= len(self._new_units):
            self._new_units = np.append(self._new_units, np.zeros(max(1024, code), dtype=np.int8))
        version = exporter_generation((*told, *(name for name, _ in labels)))
        self._new_units[code] = self.mapping.exporter_version is None and version == "4.9.0"
        return code

    def _wide(
        self,
        raw: _Raw,
        cells: Sequence[tuple[np.ndarray, np.ndarray | None, np.ndarray | None]],
        device: np.ndarray,
        time: np.ndarray | None,
        keep: np.ndarray,
    ) -> Parsed:
        """A sample a numeric cell, row by row; an empty cell is no sample and nothing wrong."""
        value = np.stack([number for number, _, _ in cells], axis=1)
        told = np.repeat(keep[:, None], len(cells), axis=1)
        for i, (_, absent, wrong) in enumerate(cells):
            if absent is not None:
                told[:, i] &= ~absent
            if wrong is not None:
                heading = self.mapping.header[self._value_columns[i]]
                for row in np.flatnonzero(wrong & keep):
                    line = int(row if raw.line_of is None else raw.line_of[row])
                    raw.bad.append(BadLine(line, "not_a_number", heading))
                told[:, i] &= ~wrong
        if (self._wide_factors != 1).any():
            value = scale(value, self._wide_factors)
        flat = told.ravel()
        columns = Columns(
            np.repeat(device, len(cells)),
            np.tile(self._wide_codes, raw.rows),
            value.ravel(),
            None if time is None else np.repeat(time, len(cells)),
        )
        return Parsed(columns if flat.all() else columns.where(flat), raw.lines, raw.bad)

    def _forget(self) -> None:
        if self._generation == self._identities.generation:
            self._identities.forget()
        self._generation = self._identities.generation
        self._known.clear()
        self._tables = [Table() for _ in self._fields]
        self._new_units = np.zeros(0, dtype=np.int8)


_NO_CODES: Final = np.zeros(0, dtype=np.int32)
_NO_TIME: Final = -(2**63)


def _is_utf8(data: bytes | memoryview) -> bool:
    data = bytes(data)
    if data.isascii():
        return True
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _one_chunk(chunked: pa.ChunkedArray) -> pa.Array:
    return chunked.chunk(0) if chunked.num_chunks == 1 else chunked.combine_chunks()


def _dictionary(chunked: pa.ChunkedArray) -> tuple[np.ndarray, list[bytes]]:
    array = _one_chunk(chunked)
    return array.indices.to_numpy(zero_copy_only=False), array.dictionary.to_pylist()


def _encode(cells: list[bytes]) -> tuple[np.ndarray, list[bytes]]:
    code: dict[bytes, int] = {}
    codes = [code.setdefault(cell, len(code)) for cell in cells]
    return np.array(codes, dtype=np.int32), list(code)


def _cells_of_line(text: str, delimiter: str) -> tuple[list[str], str]:
    """(cells, "") of one line, or ([], reason) where it is no row."""
    lines = iter((text, ""))
    try:
        cells = next(csv.reader(lines, delimiter=delimiter))
    except csv.Error:
        # A lone carriage return, or a cell above the module's limit.
        return [], "ragged"
    # With a quote left open the reader has asked for another line.
    return (cells, "") if next(lines, None) is not None else ([], "quote")


def _quote_left_open(data: bytes | memoryview, delimiter: str) -> bool:
    """Whether the last line has an open quote: the only one that the tally of rows and lines cannot show."""
    tail = bytes(data[-_TAIL_BYTES:]).removesuffix(b"\n")
    if b"\n" not in tail and len(data) > _TAIL_BYTES:
        tail = bytes(data).removesuffix(b"\n")
    last = tail[tail.rfind(b"\n") + 1 :]
    if b'"' not in last:
        return False
    return _cells_of_line(last.removesuffix(b"\r").decode("utf-8", "replace"), delimiter)[1] == "quote"


def _judge_numbers(
    value: np.ndarray | tuple[np.ndarray, list[bytes]], absent: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """(numbers, mask of absent ones or None, mask of wrong ones or None)."""
    if isinstance(value, np.ndarray):
        return value, absent, None
    codes, strings = value
    numbers = np.zeros(len(strings))
    state = np.zeros(len(strings), dtype=np.int8)
    for i, string in enumerate(strings):
        text = string.decode("utf-8", "replace")
        if text in EMPTY_VALUES:
            state[i] = 1
            continue
        number = parse_number(text)
        if number is None:
            state[i] = 2
        else:
            numbers[i] = number
    if not state.any():
        return numbers[codes], None, None
    judged = state[codes]
    return numbers[codes], judged == 1, judged == 2


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


def _groups(columns: list[tuple[np.ndarray, int]], rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Group rows by all ``columns`` of (codes, how many): (group of each row, first row of each group).

    Starts from the column with the most distinct values, which in telemetry names the GPU and so decides the others:
    then each of them costs one comparison. Only where it does not are groups refined.
    """
    columns = sorted(columns, key=lambda column: -column[1])
    if not columns:
        return np.zeros(rows, dtype=np.int32), np.zeros(1, dtype=np.int64)
    group, size = columns[0]
    first = _first_rows(group, size)
    for codes, size in columns[1:]:
        if size <= 1 or (codes[first][group] == codes).all():
            continue
        pair = group.astype(np.int64) * size + codes
        product = len(first) * size
        if product <= _KEY_PRODUCT_MAX:
            present = np.zeros(product, dtype=bool)
            present[pair] = True
            dense = np.cumsum(present, dtype=np.int32) - 1
            group = dense[pair]
            first = _first_rows(group, int(dense[-1]) + 1)
        else:
            _, first, group = np.unique(pair, return_index=True, return_inverse=True)
    return group, first


def _first_rows(group: np.ndarray, groups: int) -> np.ndarray:
    first = np.zeros(groups, dtype=np.int64)
    # Written backwards, so that the first row of a group is written last and stays.
    first[group[::-1]] = np.arange(len(group) - 1, -1, -1)
    return first

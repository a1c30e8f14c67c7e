"""CSV blocks to columns, without a Python object a row.

Blocks of lines that repeat but for time and value are read by :mod:`producers.repeats`. Every other block is split into
cells by :mod:`producers.cells` and assembled here: Python judges each distinct string of a block once, NumPy does the
rest on codes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from producers.cells import NO_TIME, Cells, Splitter, Strings, cells_of_line
from producers.columns import BadLine, Columns, Parsed
from producers.identities import Identities, Table
from producers.labels import exporter_generation, make_device, parse_labels
from producers.mapping import Mapping
from producers.repeats import RepeatedLines
from producers.values import EMPTY_VALUES, parse_number, parse_time_ns
from telemetry.catalogue import canonical, scale

_KEY_PRODUCT_MAX: Final = 1 << 22
"""Largest table of code pairs that is made instead of sorting: 4 Mi flags of one byte."""


class BlockParser:
    """Parses blocks of one file. Not thread-safe: it remembers what it has met.

    ``want_times`` False skips the time column (rows get the time they are processed).
    """

    def __init__(self, mapping: Mapping, identities: Identities, *, want_times: bool) -> None:
        self.mapping = mapping
        self._identities = identities
        self._splitter = Splitter(mapping, want_times=want_times)
        self._repeated = RepeatedLines(mapping, want_times=want_times) if RepeatedLines.fits(mapping) else None
        self._fields = [field for field, _ in mapping.identity]
        self._tables = [Table() for _ in self._fields]
        self._metric_table = Table()
        # Per metric string: canonical code, factor of old exporters, factor of exporters since 4.9.
        self._metric_code = np.zeros(0, dtype=np.int32)
        self._factors = np.zeros((0, 2))
        self._known: dict[bytes, int] = {}
        self._new_units = np.zeros(0, dtype=np.int8)
        self._generation = identities.generation
        self._wide_codes = np.array([identities.metric(metric.name) for metric in mapping.metrics], dtype=np.int32)
        self._wide_factors = np.array([metric.factor for metric in mapping.metrics])

    def parse(self, data: bytes | memoryview) -> Parsed:
        """Parse whole lines. Never raises for what the lines contain. Keeps nothing of ``data``."""
        if self._identities.full() or self._generation != self._identities.generation:
            self._forget()
        if self._repeated is not None and (columns := self._repeated.read(data)) is not None:
            return Parsed(columns, columns.rows, [])
        return self._assemble(self._splitter.split(data), data)

    def _assemble(self, cells: Cells, data: bytes | memoryview) -> Parsed:
        bad = cells.bad
        header = self.mapping.header
        keep = np.ones(cells.rows, dtype=bool)

        def reject(mask: np.ndarray, reason: str, column: int) -> None:
            bad.extend(BadLine(cells.line(row), reason, header[column]) for row in np.flatnonzero(mask & keep).tolist())
            keep[mask] = False

        if cells.rows == 0:
            return Parsed(Columns(_NO_CODES, _NO_CODES, np.zeros(0), None), cells.lines, bad)
        identity = [table.codes(strings) for table, (_, strings) in zip(self._tables, cells.identity, strict=True)]
        for (codes, _), known, (_, column) in zip(cells.identity, identity, self.mapping.identity, strict=True):
            if known.min() < 0:
                wrong = np.ones(cells.rows, dtype=bool) if codes is None else known[codes] < 0
                reject(wrong, "undecodable", column)
        time = self._times(cells.time, reject)
        numbers = [_judge_numbers(value, absent) for value, absent in zip(cells.values, cells.absent, strict=True)]
        if cells.metric is None:
            return self._wide(cells, numbers, self._devices(cells, identity, keep, data), time, keep)
        return self._long(cells, numbers[0], identity, time, keep, reject, data)

    def _times(self, time: np.ndarray | Strings | None, reject: Reject) -> np.ndarray | None:
        if time is None:
            return None
        if not isinstance(time, np.ndarray):
            codes, strings = time
            parsed = [parse_time_ns(string.decode("utf-8", "replace")) for string in strings]
            time = np.array([NO_TIME if found is None else found for found in parsed], dtype=np.int64)[codes]
        missing = time == NO_TIME
        if missing.any():
            reject(missing, "bad_time", self.mapping.timestamp or 0)
        return time

    def _long(
        self,
        cells: Cells,
        numbers: Numbers,
        identity: list[np.ndarray],
        time: np.ndarray | None,
        keep: np.ndarray,
        reject: Reject,
        data: bytes | memoryview,
    ) -> Parsed:
        """A sample a line."""
        assert cells.metric is not None
        codes, strings = cells.metric
        known = self._metrics(strings)
        if known.min() < 0:
            reject(known[codes] < 0, "undecodable", self.mapping.metric or 0)
        metric = known[codes]
        number, absent, wrong = numbers
        if absent is not None:
            reject(absent, "no_value", self.mapping.value or 0)
        if wrong is not None:
            reject(wrong, "not_a_number", self.mapping.value or 0)
        device = self._devices(cells, identity, keep, data)
        if not keep.all():
            device, metric, number = device[keep], metric[keep], number[keep]
            time = None if time is None else time[keep]
        factor = self._factor(device, metric)
        columns = Columns(device, self._metric_code[metric], number if factor is None else scale(number, factor), time)
        if self._repeated is not None:
            self._repeated.learn(data, columns, factor, whole=not cells.bad and cells.rows == cells.lines)
        return Parsed(columns, cells.lines, cells.bad)

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

    def _factor(self, device: np.ndarray, metric: np.ndarray) -> np.ndarray | None:
        """What values are multiplied by, by row; None for nothing."""
        if (self._factors == 1).all():
            return None
        factor = self._factors[metric, self._new_units[device]]
        return None if (factor == 1).all() else factor

    def _devices(
        self, cells: Cells, identity: list[np.ndarray], keep: np.ndarray, data: bytes | memoryview
    ) -> np.ndarray:
        """int32 device codes of all rows (those of rejected rows mean nothing)."""
        varying = [(codes, len(strings)) for codes, strings in cells.identity if codes is not None]
        group, first = _groups(varying, cells.rows)
        keys = np.empty((len(first), len(identity)), dtype=np.int64)
        for i, ((codes, _), known) in enumerate(zip(cells.identity, identity, strict=True)):
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
                line = None if lines is None else lines[cells.line(row)]
                found[i] = self._known[as_bytes[i]] = self._new_device(keys[i], line)
        return np.array(found, dtype=np.int32)[group]

    def _new_device(self, key: np.ndarray, line: bytes | None) -> int:
        fields = dict(self.mapping.constants)
        for field, table, code in zip(self._fields, self._tables, key, strict=True):
            fields[field] = table.strings[code] or fields.get(field, "")
        labels = [(name[6:], fields.pop(name)) for name in list(fields) if name.startswith("label:")]
        told: dict[str, str] = {}
        if line is not None and self.mapping.labels is not None:
            cells, _ = cells_of_line(line.removesuffix(b"\r").decode("utf-8", "replace"), self.mapping.delimiter)
            told = parse_labels(cells[self.mapping.labels]) if len(cells) > self.mapping.labels else {}
        code = self._identities.device(make_device(fields, [*labels, *told.items()]))
        if code >= len(self._new_units):
            self._new_units = np.append(self._new_units, np.zeros(max(1024, code), dtype=np.int8))
        version = exporter_generation((*told, *(name for name, _ in labels)))
        self._new_units[code] = self.mapping.exporter_version is None and version == "4.9.0"
        return code

    def _wide(
        self,
        cells: Cells,
        numbers: Sequence[Numbers],
        device: np.ndarray,
        time: np.ndarray | None,
        keep: np.ndarray,
    ) -> Parsed:
        """A sample a numeric cell, row by row; an empty cell is no sample and nothing wrong."""
        value = np.stack([number for number, _, _ in numbers], axis=1)
        told = np.repeat(keep[:, None], len(numbers), axis=1)
        for i, (_, absent, wrong) in enumerate(numbers):
            if absent is not None:
                told[:, i] &= ~absent
            if wrong is not None:
                heading = self.mapping.header[self.mapping.metrics[i].column]
                for row in np.flatnonzero(wrong & keep).tolist():
                    cells.bad.append(BadLine(cells.line(row), "not_a_number", heading))
                told[:, i] &= ~wrong
        if (self._wide_factors != 1).any():
            value = scale(value, self._wide_factors)
        flat = told.ravel()
        columns = Columns(
            np.repeat(device, len(numbers)),
            np.tile(self._wide_codes, cells.rows),
            value.ravel(),
            None if time is None else np.repeat(time, len(numbers)),
        )
        return Parsed(columns if flat.all() else columns.where(flat), cells.lines, cells.bad)

    def _forget(self) -> None:
        if self._generation == self._identities.generation:
            self._identities.forget()
        self._generation = self._identities.generation
        self._known.clear()
        self._tables = [Table() for _ in self._fields]
        self._new_units = np.zeros(0, dtype=np.int8)
        if self._repeated is not None:
            self._repeated.forget()


Reject = Callable[[np.ndarray, str, int], None]
"""Leaves the rows of a mask out, for a reason, because of a column."""
Numbers = tuple[np.ndarray, np.ndarray | None, np.ndarray | None]
"""(numbers, mask of absent ones or None, mask of wrong ones or None)."""

_NO_CODES: Final = np.zeros(0, dtype=np.int32)


def _judge_numbers(value: np.ndarray | Strings, absent: np.ndarray | None) -> Numbers:
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

"""Lines that repeat but for their time and value, read by comparing memory.

Theory. An export of a fleet is the same lines scrape after scrape: time and value differ, every other byte of a line is
what it was when that metric of that GPU came last. So lines that were parsed once are kept, and the order in which they
follow each other. A line of a block tells where it is in that order; the lines after it are predicted, and a prediction
that holds costs one comparison of memory instead of splitting, unquoting and looking up a dozen cells. Where it does
not hold, the next line tells where to go on, and the order is taken from what came.

A row is taken only where its bytes are those of a known line around a number and a time. So prediction decides how fast
a block is read and never what it says: what does not agree is left to the usual way, for that block, and learned.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from producers.cells import cells_of_line
from producers.columns import Columns
from producers.mapping import Mapping
from producers.values import parse_time_ns
from telemetry.catalogue import scale

LINES_MAX: Final = 1 << 16
BYTES_MAX: Final = 16 << 20
"""Most that is remembered: a scrape of 4,000 GPUs with ten metrics; files of larger fleets are read the usual way."""
RUNS_MAX: Final = 32
"""A block that breaks the order more often is no faster to read this way."""
_WINDOW_MIN: Final = 64
_PAUSE_BLOCKS_MAX: Final = 64
_LF: Final = 10


class _Run(NamedTuple):
    """Consecutive rows of a block that are known lines."""

    known: np.ndarray
    """Number of the known line, by row."""
    pieces: pa.BinaryArray
    """Four a row: time, what stands between it and the value, value, the rest with the line end."""


class RepeatedLines:
    """What repeats in one file. ``read`` answers None wherever the usual way is needed; ``learn`` follows it then."""

    def __init__(self, mapping: Mapping, *, want_times: bool) -> None:
        self._delimiter = mapping.delimiter.encode()
        self._width = len(mapping.header)
        self._value = mapping.value or 0
        self._want_times = want_times
        self._blocks = 0
        self._failures = 0
        self._pause = 0
        self._tried = False
        self._unknown_row = 0
        self.forget()

    @staticmethod
    def fits(mapping: Mapping) -> bool:
        """Whether lines are a time, something, a value and the rest: what exports in long format look like."""
        return mapping.timestamp == 0 and mapping.value is not None and mapping.delimiter in ",;\t|"

    def forget(self) -> None:
        """Codes mean nothing any more."""
        self._number: dict[tuple[bytes, bytes], int] = {}
        self._bytes = 0
        self._pieces = pa.array([], pa.binary())
        self._lengths = np.zeros((0, 2), dtype=np.int32)
        self._device = self._metric = np.zeros(0, dtype=np.int32)
        self._factor = np.zeros(0)
        self._order(np.zeros(0, dtype=np.int32))

    def read(self, data: bytes | memoryview) -> Columns | None:
        """The rows of a block, one a line; None where any of its lines is not a known one with a number and a time."""
        self._tried = not self._pause
        if self._pause:
            self._pause -= 1
            return None
        octets = np.frombuffer(data, dtype=np.uint8)
        if not self._number or not len(octets) or octets[-1] != _LF:
            return None
        ends = np.flatnonzero(octets == _LF).astype(np.int32) + 1
        runs = self._runs(data, np.concatenate((np.zeros(1, dtype=np.int32), ends)))
        columns = None if runs is None else self._columns(runs)
        if columns is not None:
            self._failures = 0
        return columns

    def learn(self, data: bytes | memoryview, columns: Columns, factor: np.ndarray | None, *, whole: bool) -> None:
        """Remember the lines of a block that was read the usual way.

        ``whole``: each line gave a row; else nothing is learned. ``factor``: what values were multiplied by, by row.
        """
        self._blocks += 1
        # A file of one block has no use for what is learned from it.
        if not self._tried or self._blocks == 1:
            return
        if whole and columns.rows and self._learn(bytes(data), columns, factor):
            self._failures = 0
            return
        self._order(np.arange(len(self._number)))
        self._failures += 1
        self._pause = min(2**self._failures, _PAUSE_BLOCKS_MAX)

    # Reading.

    def _runs(self, data: bytes | memoryview, bounds: np.ndarray) -> list[_Run] | None:
        rows = len(bounds) - 1
        runs: list[_Run] = []
        at, window = 0, rows
        while at < rows:
            run = self._run(data, bounds[at : at + window + 1]) if len(runs) < RUNS_MAX else None
            if run is None:
                self._unknown_row = at
                return None
            runs.append(run)
            at += len(run.known)
            if len(run.known) == window:
                window *= 4
                continue
            # A broken order must not cost a block many times over: about as much is tried as held before it.
            window = max(_WINDOW_MIN, 2 * len(run.known))
            self._take_order(np.concatenate([run.known for run in runs]))
        return runs

    def _take_order(self, came: np.ndarray) -> None:
        """From lines that came: those since the last one came before, which is a scrape where scrapes follow."""
        before = np.flatnonzero(came[:-1] == came[-1])
        if len(before) and before[-1] < len(came) - 2:
            self._order(came[before[-1] + 1 :])

    def _order(self, numbers: np.ndarray) -> None:
        """Known lines follow each other like this, round and round."""
        self._cycle = numbers
        self._place = np.full(len(self._number), -1, dtype=np.int32)
        self._place[numbers] = np.arange(len(numbers), dtype=np.int32)

    def _run(self, data: bytes | memoryview, bounds: np.ndarray) -> _Run | None:
        """As many rows from the first of ``bounds`` on as follow the order; None if the first is not known."""
        first = self._split(data, bounds[0], bounds[1])
        if first is None or (known := self._number.get(first[1:])) is None:
            return None
        rows = len(bounds) - 1
        place = int(self._place[known])
        second = self._split(data, bounds[1], bounds[2]) if rows > 1 else None
        if second is not None and second[1:] == first[1:]:
            # A series written out whole.
            numbers = np.full(rows, known)
        elif place >= 0:
            numbers = self._cycle[(place + np.arange(rows)) % len(self._cycle)]
        else:
            rows, numbers = 1, np.array([known])
        lengths = self._lengths[numbers]
        cuts = np.empty(4 * rows + 1, dtype=np.int32)
        cuts[::4] = bounds[: rows + 1]
        cuts[1::4] = bounds[:rows] + len(first[0])
        cuts[2::4] = cuts[1::4] + lengths[:, 0]
        cuts[3::4] = bounds[1 : rows + 1] - lengths[:, 1]
        rows = _leading(cuts[2::4] <= cuts[3::4])
        pieces = pa.Array.from_buffers(pa.binary(), 4 * rows, [None, pa.py_buffer(cuts), pa.py_buffer(data)])
        found = pieces.take(pa.array(np.arange(1, 4 * rows, 2, dtype=np.int32)))
        wanted = self._pieces.take(pa.array((2 * numbers[:rows, None] + np.arange(2)).ravel()))
        same = pc.equal(found, wanted)
        if same.true_count < len(same):
            rows = _leading(same.to_numpy(zero_copy_only=False)) // 2
        return _Run(numbers[:rows], pieces[: 4 * rows]) if rows else None

    def _columns(self, runs: list[_Run]) -> Columns | None:
        known = np.concatenate([run.known for run in runs])
        values, times = [], []
        time_of: dict[bytes, int | None] = {}
        for run in runs:
            texts = run.pieces.take(pa.array(np.arange(2, len(run.pieces), 4, dtype=np.int32)))
            try:
                values.append(texts.view(pa.string()).cast(pa.float64()).to_numpy())
            except pa.ArrowInvalid:
                return None
            encoded = run.pieces.take(pa.array(np.arange(0, len(run.pieces), 4, dtype=np.int32))).dictionary_encode()
            cells = encoded.dictionary.to_pylist()
            # Where nearly every row has a time of its own, pyarrow converts them faster.
            if len(cells) > _WINDOW_MIN + len(run.known) // 8:
                return None
            found = [time_of[cell] if cell in time_of else time_of.setdefault(cell, self._time(cell)) for cell in cells]
            if None in found:
                return None
            times.append(np.array(found, dtype=np.int64)[encoded.indices.to_numpy()])
        value, factor = np.concatenate(values), self._factor[known]
        return Columns(
            self._device[known],
            self._metric[known],
            value if (factor == 1).all() else scale(value, factor),
            np.concatenate(times) if self._want_times else None,
        )

    def _time(self, raw: bytes) -> int | None:
        """Of a time cell as it stands in its line; where times are not wanted, 0 for whatever is one cell."""
        cells, _ = cells_of_line(raw.decode("utf-8", "surrogateescape"), self._delimiter.decode())
        if len(cells) != 1:
            return None
        return parse_time_ns(cells[0]) if self._want_times else 0

    # Learning.

    def _learn(self, data: bytes, columns: Columns, factor: np.ndarray | None) -> bool:
        """Whether any line was new."""
        ends = np.flatnonzero(np.frombuffer(data, dtype=np.uint8) == _LF) + 1
        if len(ends) != columns.rows:
            return False
        series = columns.device.astype(np.int64) << 32 | columns.metric
        if not _repeats(series):
            return False
        _, rows = np.unique(series, return_index=True)
        new: list[bytes] = []
        new_rows = []
        # What stopped the reading is known as a series, perhaps, with other label text.
        for row in [*np.sort(rows).tolist(), min(self._unknown_row, columns.rows - 1)]:
            pieces = self._split(data, int(ends[row - 1]) if row else 0, int(ends[row]))
            if pieces is None or pieces[1:] in self._number or not self._cells_are_whole(pieces):
                continue
            size = len(pieces[1]) + len(pieces[2])
            if len(self._number) >= LINES_MAX or self._bytes + size > BYTES_MAX:
                break
            self._number[pieces[1:]] = len(self._number)
            self._bytes += size
            new += pieces[1:]
            new_rows.append(row)
        if not new:
            return False
        lengths = np.array([len(piece) for piece in new], dtype=np.int32).reshape(-1, 2)
        self._pieces = pa.concat_arrays([self._pieces, pa.array(new, pa.binary())])
        self._lengths = np.concatenate((self._lengths, lengths))
        self._device = np.append(self._device, columns.device[new_rows])
        self._metric = np.append(self._metric, columns.metric[new_rows])
        self._factor = np.append(self._factor, np.ones(len(new_rows)) if factor is None else factor[new_rows])
        self._order(np.append(self._cycle, np.arange(len(self._number) - len(new_rows), len(self._number))))
        return True

    def _split(self, data: bytes | memoryview, start: int, end: int) -> tuple[bytes, bytes, bytes] | None:
        """A line as (time cell, what stands between it and the value, what stands behind it with the line end).

        Quotes of the value belong to what is around it. None where there are too few delimiters.
        """
        delimiter = self._delimiter
        cells = bytes(data[start:end]).split(delimiter, self._value + 1)
        if len(cells) <= self._value:
            return None
        time, *between, value = cells[: self._value + 1]
        behind = delimiter + cells[-1] if len(cells) > self._value + 1 else value[len(value.rstrip(b"\r\n")) :]
        if len(cells) == self._value + 1:
            value = value.rstrip(b"\r\n")
        quote = b'"' if len(value) > 1 and value[:1] == value[-1:] == b'"' else b""
        return time, delimiter + b"".join(cell + delimiter for cell in between) + quote, quote + behind

    def _cells_are_whole(self, pieces: tuple[bytes, bytes, bytes]) -> bool:
        """Whether the pieces were cut between cells: each is as many as its part of the header, no quote left open.

        Pieces that are, each alone, are so together around any time and number: a line is read from left to right.
        """
        _, between, behind = pieces
        if between.endswith(b'"') and behind.startswith(b'"'):
            between, behind = between[:-1], behind[1:]
        # Each with a cell of its own before it, so that no cells and one empty cell are told apart.
        parts = ((between[:-1], self._value), (behind.rstrip(b"\r\n"), self._width - self._value))
        for text, cells in parts:
            line = "0" + text.decode("utf-8", "surrogateescape")
            if len(cells_of_line(line, self._delimiter.decode())[0]) != cells:
                return False
        return True


def _repeats(series: np.ndarray) -> bool:
    """Whether series follow each other in an order, as far as a block shows: one without two scrapes may."""
    before = np.flatnonzero(series[:-1] == series[-1])
    if not len(before):
        return True
    period = len(series) - 1 - int(before[-1])
    return 2 * int(np.count_nonzero(series[period:] == series[:-period])) >= len(series) - period


def _leading(flags: np.ndarray) -> int:
    """How many are true before the first that is not."""
    return len(flags) if flags.all() else int(np.argmin(flags))

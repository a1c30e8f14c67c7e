"""Playing a lane: blocks to batches to the broker, in order, from any position."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from typing import Any, Final

import numpy as np

from producers.batcher import Batcher, batch_parts
from producers.blocks import Block, FileBlocks, stream_blocks
from producers.columns import Columns
from producers.csv import BlockParser
from producers.errors import BadRow, SourceError
from producers.identities import DEVICES_MAX, Identities
from producers.pacing import Stamper
from producers.rejects import RejectsFile
from producers.run import Run
from producers.source import open_stream, pieces_of
from producers.task import LaneTask, Position, WorkerSettings

REPLAY_BYTES_MAX: Final = 64 << 20
"""A lane of up to this many bytes that is played more than once is parsed once and then replayed from memory."""


class LaneRun(Run):
    """One worker's run over one lane."""

    def __init__(
        self,
        task: LaneTask,
        settings: WorkerSettings,
        producer: Any,
        *,
        stopping: threading.Event,
        report: Callable[[Run], None],
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        super().__init__(task.lane, task.start, settings, producer, stopping=stopping, report=report, clock_ns=clock_ns)
        self.task = task
        self._identities = Identities()
        self._parser = BlockParser(task.source.mapping, self._identities, want_times=task.timestamps != "now")
        self._batcher = Batcher(self._identities, settings.compression, clock_ns)
        self._rejects = RejectsFile(settings.rejects)
        self._line_at = (task.source.data_start, task.source.first_line)
        self._replayed = (
            task.passes != 1
            and task.source.seekable
            and (task.last - task.first) * task.block_bytes <= REPLAY_BYTES_MAX
        )
        self._replay: Columns | None = None
        self._repeats = 1
        self._pass_due_ns = 0
        self._seq = task.start.seq

    def run(self) -> bool:
        """Play all passes; True if the lane came to its end, False if it was stopped."""
        task = self.task
        for number in count(task.start.pass_number):
            if task.passes and number >= task.passes:
                return True
            began_ns = self._wait_for_pass(number)
            if began_ns is None:
                return False
            stamper = Stamper(
                task.timestamps,
                origin_ns=task.source.origin_ns,
                fixed_now_ns=began_ns if task.fixed_now else None,
                clock_ns=self._clock_ns,
            )
            stamper.begin_pass(began_ns)
            start = task.start if number == task.start.pass_number else Position(number, task.first)
            for block, columns in self._blocks(start, first=number == task.start.pass_number):
                first_part = start.part if block == start.block else 0
                if not self._publish_block(number, block, columns, stamper, first_part):
                    return False
            self.passes += self._repeats
            if task.interval_s and self.publisher.drain(self._should_stop):
                return False
        raise AssertionError("unreachable")

    def close(self) -> None:
        """Close the rejects file."""
        self._rejects.close()

    def _wait_for_pass(self, number: int) -> int | None:
        """When pass ``number`` begins (ns), after waiting for it; None if stopped meanwhile."""
        interval_ns = int(self.task.interval_s * 1e9)
        due_ns = self.task.began_ns + number * interval_ns
        if interval_ns and not self.task.fixed_now:
            # Live: periods that were missed (a slow broker, a start that took its time) are not made up for.
            due_ns = max(self._pass_due_ns, self._clock_ns() - interval_ns) if self._pass_due_ns else self._clock_ns()
            self._pass_due_ns = due_ns + interval_ns
        if not (self._wait_until(due_ns) if interval_ns else not self._should_stop()):
            return None
        if self.task.fixed_now:
            return due_ns
        return self._clock_ns() if number or interval_ns else self.task.began_ns

    def _blocks(self, start: Position, *, first: bool) -> Iterator[tuple[int, Columns]]:
        """Parsed blocks of one pass from ``start``; a small lane that is played again is parsed once."""
        if not self._replayed:
            yield from self._parsed(start.block, tell=first)
            return
        if self._replay is None:
            columns = _joined([columns for _, columns in self._parsed(self.task.first, tell=first)])
            self._repeats = self._repeats_of(columns.rows)
            self._replay = columns if self._repeats == 1 else _joined([columns] * self._repeats)
        if start.block == self.task.first:
            yield self.task.first, self._replay

    def _repeats_of(self, rows: int) -> int:
        """How many passes over a tiny lane go into one: else the time goes into headers and acks instead of rows.

        Only where passes follow each other at once and rows get the present time, so that nothing is lost by it.
        """
        task = self.task
        if not rows or task.passes or task.interval_s or task.timestamps != "now" or self._bucket is not None:
            return 1
        return max(1, task.batch_rows // rows)

    def _parsed(self, first: int, *, tell: bool) -> Iterator[tuple[int, Columns]]:
        """(block number, its rows); a block is read and parsed in pieces of the same grid, nested in its own."""
        pieces = pieces_of(self.task.block_bytes) if self.task.source.seekable else 1
        number, parts = first, []
        for piece in self._read(first, pieces):
            if piece.number // pieces != number:
                if parts:
                    yield number, _joined(parts)
                number, parts = piece.number // pieces, []
            generation = self._identities.generation
            columns = self._parse(piece, tell=tell)
            if parts and generation != self._identities.generation:
                path = self.task.title
                raise SourceError(f"{path}: above {DEVICES_MAX:,} devices: leave out what is no label with --map")
            parts.append(columns)
        if parts:
            yield number, _joined(parts)

    def _read(self, first: int, pieces: int) -> Iterator[Block]:
        task = self.task
        source = task.source
        if source.seekable:
            piece_bytes = task.block_bytes // pieces
            with FileBlocks(source.path, piece_bytes, source.data_start, source.size, reuse=True) as blocks:
                self._count_lines = blocks.count_lines
                yield from blocks.read(first * pieces, task.last * pieces)
            return
        with open_stream(source.path, source.head) as stream:
            _skip(stream, source.data_start)
            for block in stream_blocks(stream.read, task.block_bytes, source=source.name, offset=source.data_start):
                if block.number >= first:
                    yield block
                else:
                    self._line_at = (
                        block.offset + len(block.data),
                        self._line_at[1] + bytes(block.data).count(b"\n"),
                    )

    def _parse(self, block: Block, *, tell: bool) -> Columns:
        parsed = self._parser.parse(block.data)
        self.lines += parsed.lines
        self.bytes_read += len(block.data)
        if parsed.bad:
            for bad in parsed.bad:
                self.rejected[bad.reason] = self.rejected.get(bad.reason, 0) + 1
            self._tell(block, parsed.bad, tell=tell)
        if not self.task.source.seekable:
            self._line_at = (block.offset + len(block.data), self._line_at[1] + parsed.lines)
        return parsed.columns

    def _tell(self, block: Block, bad: list, *, tell: bool) -> None:
        """Write bad rows with their line numbers; ``--strict`` stops at the first."""
        offset, line = self._line_at
        if self.task.source.seekable:
            # Lines before this block are counted only now that a number is needed, from where it was needed last.
            line += self._count_lines(offset, block.offset)
            self._line_at = (block.offset, line)
        bad.sort()
        if self._settings.strict:
            first = bad[0]
            where = f", column {first.column}" if first.column else ""
            raise BadRow(f"{self.task.title}: line {line + first.line}{where}: {REASONS[first.reason]}")
        if tell:
            self._rejects.write(self.task.title, line, bytes(block.data), bad)

    def _publish_block(
        self,
        pass_number: int,
        block: int,
        columns: Columns,
        stamper: Stamper,
        first_part: int,
        following_block: int | None = None,
    ) -> bool:
        after = block + 1 if following_block is None else following_block
        parts = batch_parts(columns.rows, self.task.batch_rows)
        for part, (start, end) in enumerate(parts):
            if part < first_part:
                continue
            if self._should_stop():
                return False
            rows = end - start
            self.rows_read += rows
            if not self._wait_for_tokens(rows):
                return False
            chunk = columns.part(start, end)
            self._seq += 1
            following = (
                Position(pass_number, block, part + 1, self._seq)
                if part + 1 < len(parts)
                else Position(pass_number, after, 0, self._seq)
            )
            times = stamper.times(chunk.timestamp_ns, rows)
            pack = partial(self._batcher.pack, chunk, times)
            if not self.publisher.publish(pack, rows, following, self._stopping):
                return False
            self._report(self)
        return True


REASONS: Final = {
    "ragged": "has more or fewer fields than the header",
    "quote": "a quote is not closed",
    "undecodable": "is no UTF-8 text",
    "no_value": "has no value",
    "not_a_number": "the value is no number",
    "bad_time": "the time cannot be read",
}
"""Why a row is bad, for people; the keys are the ``reason`` labels of ``streamer_rows_rejected_total``."""


def _skip(stream: Any, size: int) -> None:
    while size > 0:
        piece = stream.read(min(size, 1 << 20))
        if not piece:
            return
        size -= len(piece)


def _joined(parts: list[Columns]) -> Columns:
    """All rows of ``parts``, in order; timestamps are there in all of them or in none."""
    if len(parts) == 1:
        return parts[0]
    times = [part.timestamp_ns for part in parts if part.timestamp_ns is not None]
    whole = bool(parts) and len(times) == len(parts)
    return Columns(
        np.concatenate([part.device for part in parts] or [np.zeros(0, np.int32)]),
        np.concatenate([part.metric for part in parts] or [np.zeros(0, np.int32)]),
        np.concatenate([part.value for part in parts] or [np.zeros(0)]),
        np.concatenate(times) if whole else None,
    )

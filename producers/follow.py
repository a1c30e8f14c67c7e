"""A file that grows: its lines as they are written, from the beginning on.

Where a piece ends depends on what had been written by then, so a piece is told to the supervisor before any of it is
published: a worker that takes over cuts just the same, and what comes twice has the same address.
"""

from __future__ import annotations

import os
from typing import Final

from producers.batcher import batch_parts
from producers.blocks import LINE_BYTES_MAX, Block
from producers.columns import Columns
from producers.errors import LineTooLong
from producers.lane import LaneRun
from producers.pacing import Stamper
from producers.source import open_source

POLL_S: Final = 0.25


class FollowRun(LaneRun):
    """One worker's run over one growing file. ``Position.block`` is the offset of the next line."""

    def run(self) -> bool:
        """Publish lines until stopped."""
        task = self.task
        path = task.source.path
        stamper = Stamper(task.timestamps, origin_ns=task.source.origin_ns, clock_ns=self._clock_ns)
        stamper.begin_pass(task.began_ns)
        planned = list(task.cuts)
        self._pieces: list[tuple[int, int]] = []
        at, first_part = task.start.block, task.start.part
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            while not self._should_stop():
                size = (planned[0] if planned else os.fstat(fd).st_size) - at
                data = os.pread(fd, min(size, task.block_bytes) if not planned else size, at) if size > 0 else b""
                end = len(data) if planned else data.rfind(b"\n") + 1
                if planned:
                    planned.pop(0)
                if not end:
                    if len(data) > LINE_BYTES_MAX or (data and len(data) == task.block_bytes):
                        raise LineTooLong(f"{path}: no line end within {len(data)} bytes of byte {at}: not a CSV")
                    if _was_replaced(fd, path, at):
                        os.close(fd)
                        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                        # Another file: its own header, from its beginning.
                        at = open_source(path)[0].data_start
                        self._line_at = (at, 2)
                        continue
                    if not self._wait_until(self._clock_ns() + int(POLL_S * 1e9)):
                        return False
                    continue
                block = Block(at, at, data[:end])
                columns = self._parse(block, tell=True)
                self._tell_cut(at + end, len(batch_parts(columns.rows, task.batch_rows)) - first_part)
                self._line_at = (at + end, self._line_at[1] + block.data.count(b"\n"))
                if not self._publish_piece(at, at + end, columns, stamper, first_part):
                    return False
                at, first_part = at + end, 0
            return False
        finally:
            os.close(fd)

    def _count_lines(self, start: int, end: int) -> int:
        # Lines are counted as they are read.
        return 0

    def _tell_cut(self, end: int, batches: int) -> None:
        """``end`` is where a piece ends that is about to be published as so many batches."""
        self.publisher.settle()
        self._pieces.append((self._seq + batches, end))
        self._pieces = [(seq, cut) for seq, cut in self._pieces if seq > self.publisher.floor.seq]
        self.cuts = tuple(cut for _, cut in self._pieces)
        self.urgent = True
        self._report(self)

    def _publish_piece(self, at: int, end: int, columns: Columns, stamper: Stamper, first_part: int) -> bool:
        return self._publish_block(0, at, columns, stamper, first_part, following_block=end)


def _was_replaced(fd: int, path: str, at: int) -> bool:
    """Whether the name stands for another file by now, or for one that was cut short."""
    try:
        now, ours = os.stat(path), os.fstat(fd)
    except OSError:
        return False  # gone for a moment: a rotation under way
    return (now.st_dev, now.st_ino) != (ours.st_dev, ours.st_ino) or ours.st_size < at

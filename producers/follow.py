"""A file that grows: its lines as they are written, from the beginning on, through rotation and truncation."""

from __future__ import annotations

import logging
import os
from collections import deque
from typing import Any, Final

from producers.batcher import batch_parts
from producers.blocks import LINE_BYTES_MAX, Block, count_lines
from producers.csv import BlockParser
from producers.errors import LineTooLong, SourceError
from producers.following import Cut, Following, Kept, Mark, find
from producers.lane import LaneRun
from producers.pacing import Stamper
from producers.source import SAMPLE_BYTES, open_source
from producers.task import LaneTask, Position

POLL_S: Final = 0.25
QUIET_S: Final = 2.0
"""A file that was renamed is left when nothing was written to it for so long: its writer may not have noticed yet."""

_log = logging.getLogger(__name__)


class FollowRun(LaneRun):
    """One worker's run over one growing file. ``Position.block`` is the offset of the next line."""

    def __init__(self, task: LaneTask, *args: Any, **kwargs: Any) -> None:
        super().__init__(task, *args, **kwargs)
        assert task.following is not None
        self.following = task.following
        self._keep_in = task.following.keep_in
        self._planned = deque(cut for cut in task.following.cuts if cut.end > task.start.block)
        self._told: list[tuple[int, Cut]] = []
        """Pieces that are published and not all durable, each with the seq after its last batch."""
        self._kept_seq = 0
        self._fd = -1

    def run(self) -> bool:
        """Publish lines until stopped."""
        task = self.task
        path = task.source.path
        at, first_part = task.start.block, task.start.part
        mark = task.following.mark
        if (name := find(path, mark, at)) is None:
            raise SourceError(f"{path}: was replaced, and the file that was followed is not there any more")
        self._open(name, mark.sample_bytes)
        quiet_s = 0.0
        while not self._should_stop():
            data, cut = self._piece(at, gone=quiet_s >= QUIET_S)
            if cut is not None:
                if not self._publish(at, data, cut, first_part):
                    return False
                at, first_part, quiet_s = cut.end, 0, 0.0
                continue
            if quiet_s >= QUIET_S or not self._mark.fits(self._fd) or os.fstat(self._fd).st_size < at:
                if (start := self._go_on_with_new(path)) is None:
                    return False
                at, quiet_s = start, 0.0
                continue
            quiet_s = quiet_s + POLL_S if _is_another(path, self._fd) else 0.0
            self._keep()
            if not self._wait_until(self._clock_ns() + int(POLL_S * 1e9)):
                return False
        return False

    def close(self) -> None:
        """What is durable by now is written down."""
        if self._fd >= 0:
            self.publisher.settle()
            self._keep()
            os.close(self._fd)
            self._fd = -1
        super().close()

    def _open(self, name: str, sample_bytes: int) -> None:
        """Read on in a file that goes by this name now."""
        source = open_source(
            name,
            map_file=self.task.source.map_file,
            exporter_version=self.task.source.mapping.exporter_version,
            sample_bytes=sample_bytes,
        )[0]
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
        self._mark = Mark.of(self._fd, sample_bytes)
        self._parser = BlockParser(source.mapping, self._identities, want_times=self.task.timestamps != "now")
        self._source = source
        self._line_at = (source.data_start, source.first_line)

    def _piece(self, at: int, *, gone: bool) -> tuple[bytes, Cut | None]:
        """The next whole lines; nothing while there are none. ``gone``: no more comes, so a last line is whole."""
        path = self.task.source.path
        if self._planned:
            cut = self._planned[0]
            data = os.pread(self._fd, cut.end - at, at)
            if len(data) < cut.end - at:
                raise SourceError(f"{path}: was cut short before all of it was durable")
            return data, cut
        size = os.fstat(self._fd).st_size - at
        if size <= 0 or not self._mark.fits(self._fd):
            return b"", None
        data = os.pread(self._fd, min(size, self.task.block_bytes), at)
        end = data.rfind(b"\n") + 1
        if not end and (len(data) == self.task.block_bytes or len(data) > LINE_BYTES_MAX):
            raise LineTooLong(f"{path}: no line end within {len(data)} bytes of byte {at}: not a CSV")
        if not end and gone:
            end = len(data)
        return data[:end], Cut(at + end, self._clock_ns()) if end else None

    def _publish(self, at: int, data: bytes, cut: Cut, first_part: int) -> bool:
        columns = self._parse(Block(at, at, data), tell=True)
        self._tell_cut(cut, len(batch_parts(columns.rows, self.task.batch_rows)) - first_part)
        stamper = Stamper(self.task.timestamps, origin_ns=self.task.source.origin_ns, fixed_now_ns=cut.made_ns)
        stamper.begin_pass(self.task.began_ns)
        return self._publish_block(0, at, columns, stamper, first_part, following_block=cut.end)

    def _count_lines(self, start: int, end: int) -> int:
        return count_lines(self._fd, start, end)

    def _tell_cut(self, cut: Cut, batches: int) -> None:
        """A piece is about to be published as so many batches."""
        self.publisher.settle()
        if self._planned:
            self._planned.popleft()
        self._told.append((self._seq + batches, cut))
        self._keep()
        self.urgent = True
        self._report(self)

    def _keep(self) -> None:
        """What the next reader must know; on disk too where the run is to be resumed."""
        floor = self.publisher.floor
        self._told = [(seq, cut) for seq, cut in self._told if seq > floor.seq]
        cuts = (*(cut for _, cut in self._told), *self._planned)
        following = Following(self._mark, cuts, self._keep_in)
        if following == self.following and floor.seq == self._kept_seq:
            return
        self.following, self._kept_seq = following, floor.seq
        if self._keep_in is not None:
            task = self.task
            Kept(
                file=os.path.abspath(task.source.path),
                mapping=self._source.mapping.digest.hex(),
                session=task.session,
                position=tuple(floor),
                mark=self._mark,
                cuts=cuts,
                batch_rows=task.batch_rows,
                timestamps=task.timestamps,
                began_ns=task.began_ns,
                origin_ns=task.source.origin_ns,
            ).save(self._keep_in)

    def _go_on_with_new(self, path: str) -> int | None:
        """Leave the file for the one that has its name now; where its rows begin, None if stopped before.

        All of the old one is durable first: positions and cuts are those of one file at a time.
        """
        if self.publisher.drain(self._should_stop):
            return None
        while (sample_bytes := _header_bytes(path)) == 0:
            if not self._wait_until(self._clock_ns() + int(POLL_S * 1e9)):
                return None
        _log.info("the file was replaced or cut short; its beginning is read", extra={"file": path})
        self._open(path, sample_bytes)
        at = self._source.data_start
        self._told = []
        self.publisher.floor = Position(0, at, 0, self._seq)
        self._keep()
        self.urgent = True
        self._report(self)
        return at


def _is_another(path: str, fd: int) -> bool:
    """Whether the name stands for another file by now."""
    try:
        return os.stat(path).st_ino != os.fstat(fd).st_ino
    except OSError:
        return False  # gone for a moment: a rotation under way


def _header_bytes(path: str) -> int:
    """How many bytes are there to understand a new file by; 0 before its header and a row are written."""
    try:
        with open(path, "rb") as f:
            head = f.read(SAMPLE_BYTES)
    except OSError:
        return 0
    return len(head) if head.count(b"\n") > 1 else 0

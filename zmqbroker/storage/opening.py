"""Opening a log: which file is what, what was lost, and the state to go on from.

Order matters. Nothing is served before the tail is cut, what was found is written down as GAP records, an OPEN record
says that the log is in use again (so that a crash from here on is not taken for a clean end), and file and directory
are synced (R9).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from crc32c import crc32c

from zmqbroker.storage.active import ActiveSegment
from zmqbroker.storage.filesystem import File, Filesystem
from zmqbroker.storage.index import Summary, index_headers, summarize
from zmqbroker.storage.interface import (
    CONTROL_PARTITION,
    KIND_CONTROL,
    KIND_DATA,
    KIND_GAP,
    KIND_SNAPSHOT,
    Entry,
    Gap,
)
from zmqbroker.storage.record import FLAG_CLEAN, HEADER_BYTES, KIND_OPEN, as_records, gather_headers, valid_headers
from zmqbroker.storage.recovery import Findings, Scan, interpret, scan
from zmqbroker.storage.segment import (
    PAGE_BYTES,
    SegmentHead,
    pack_snapshot,
    read_summary,
    segment_name,
    unpack_snapshot,
    write_footer,
)
from zmqbroker.storage.spare import PREPARING, SpareSegments, file_bytes, reserve_bytes

log = logging.getLogger(__name__)


class SealedFound(NamedTuple):
    head: SegmentHead
    summary: Summary
    size: int


class Opened(NamedTuple):
    sealed: list[SealedFound]
    active: ActiveSegment
    first_offsets: list[int] | None
    """Next offsets where the oldest file begins; None where its first record is damaged."""
    snapshot: bytes | None
    entries: Iterator[Entry]
    clean: bool
    gaps: list[Gap]
    torn_bytes: int
    journal_damaged: bool


class _Replay(NamedTuple):
    """Records of one file that come after the snapshot."""

    path: str
    headers: np.ndarray


class _Active(NamedTuple):
    head: SegmentHead
    found: Scan
    data: bytes


def open_log(
    filesystem: Filesystem, directory: str, partitions: int, spares: SpareSegments, first_limit: int
) -> Opened:
    """See the module's head. Raises OSError, :class:`DiskFull` and :class:`NewerFormat`."""
    return _Opening(filesystem, directory, partitions).run(spares, first_limit)


class _Opening:
    def __init__(self, filesystem: Filesystem, directory: str, partitions: int) -> None:
        self._filesystem = filesystem
        self._directory = directory
        self._partitions = partitions
        self._gaps: dict[tuple[int, int], Gap] = {}
        self._journal_damaged = False
        self._set_aside: list[tuple[int, int]] = []
        """(number, size) of files whose head is damaged."""
        self._lost_bytes = 0
        """Of files at the end of the log that cannot be read at all, or are gone."""

    def run(self, spares: SpareSegments, first_limit: int) -> Opened:
        heads, top = self._heads()
        active = self._find_active(heads)
        sealed = self._sealed([head for head in heads if active is None or head.number < active.head.number], active)
        base = sealed[-1].summary.next_offsets if sealed else [0] * self._partitions
        base = base + [0] * (self._partitions - len(base))
        is_new = active is None and not sealed and top < 0
        torn_bytes = 0
        if active is None:
            # New, or the active file is gone for good: no offset that it can have held is used again (R10).
            room = self._lost_bytes // HEADER_BYTES
            findings = Findings([], [n + room for n in base], not is_new)
            for partition in range(self._partitions) if room else ():
                gap = Gap(
                    partition, base[partition], base[partition] + room - 1, "the last file of the log is unreadable"
                )
                findings.gaps.append(gap)
            head, file = spares.take(top + 1, first_limit)
            opened = self._open_active(head, file, findings.next_offsets, PAGE_BYTES)
        else:
            self._missing_before(active.head, sealed)
            findings = interpret(
                active.data, active.found, base if sealed or active.head.number == 0 else None, self._partitions
            )
            file = self._filesystem.open(self._path(active.head))
            torn_bytes = active.found.torn_bytes
            # A sync that failed leaves pages that read well and count as clean, though the disk does not hold them
            # (R11). Written again they are dirty again, and the sync that ends this recovery means what it says.
            headers = active.found.headers
            synced = int(headers["synced_upto"].max()) if len(headers) else PAGE_BYTES
            if synced < active.found.end:
                file.write([memoryview(active.data)[synced : active.found.end]], synced)
            for position in active.found.stale:
                file.write([bytes(HEADER_BYTES)], position)
            opened = self._open_active(active.head, file, findings.next_offsets, active.found.end)
            # What is written now must not call it synced yet: should this sync fail too, the next recovery would
            # believe it and write nothing again.
            opened.synced = min(synced, active.found.end)
            opened.load(active.found.headers, findings.gaps)
        self._journal_damaged |= findings.journal_damaged
        clean = self._is_clean(active, torn_bytes) if active is not None else is_new
        snapshot, replay = self._replay(sealed, active)
        if snapshot is None and not is_new and ((sealed and sealed[0].head.number > 0) or self._lost_bytes):
            self._journal_damaged = True
        self._write_findings(opened, findings, active)
        self._filesystem.sync_directory(self._directory)
        gaps = list({**self._gaps, **{(g.partition, g.first): g for g in findings.gaps}}.values())
        if gaps or torn_bytes or self._journal_damaged:
            log.warning(
                "recovered with losses: %d gaps, %d bytes of unsynced tail cut, journal damaged: %s: %s",
                len(gaps), torn_bytes, self._journal_damaged, self._directory,
            )  # fmt: skip
        entries = self._entries(replay)
        firsts = self._preamble(sealed[0].head if sealed else opened.head)
        return Opened(sealed, opened, firsts, snapshot, entries, clean, gaps, torn_bytes, self._journal_damaged)

    # -- which file is what

    def _path(self, head: SegmentHead) -> str:
        return f"{self._directory}/{segment_name(head.number)}"

    def _heads(self) -> tuple[list[SegmentHead], int]:
        """Heads of all segment files in order, and the highest number ever seen (-1: none)."""
        found: list[tuple[int, SegmentHead | None, int]] = []
        top = -1
        for name in self._filesystem.list(self._directory):
            stem, _, suffix = name.partition(".")
            if not stem.isdigit() or suffix not in ("log", "bad"):
                continue
            top = max(top, int(stem))
            if suffix == "log":
                path = f"{self._directory}/{name}"
                with self._filesystem.open(path) as file:
                    found.append((int(stem), SegmentHead.decode(file.read(0, PAGE_BYTES), path), file.size()))
        # All heads are read: none is of a later version. Only now anything is changed.
        self._filesystem.remove(f"{self._directory}/{PREPARING}")
        for number, head, size in found:
            if head is None or head.number != number:
                path = f"{self._directory}/{segment_name(number)}"
                log.error("the head of a segment is damaged; the file is set aside: %s", path)
                self._filesystem.rename(path, path.removesuffix(".log") + ".bad")
                self._journal_damaged = True
                self._set_aside.append((number, size))
        return [head for number, head, _ in found if head is not None and head.number == number], top

    def _find_active(self, heads: list[SegmentHead]) -> _Active | None:
        """The last segment with any record. Later ones were prepared and never used: they go."""
        while heads:
            head = heads[-1]
            with self._filesystem.open(self._path(head)) as file:
                data = file.read(0, file.size())
            found = scan(data, head.seed, sealed=False)
            if len(found.headers) or found.damaged or len(found.bad_payloads):
                self._lost_bytes += sum(size for number, size in self._set_aside if number > head.number)
                # What follows it is lost, so it is not the one that was written last: it is not written again.
                return None if self._lost_bytes else _Active(head, found, data)
            self._filesystem.remove(self._path(head))
            heads.pop()
            before = {h.number for h in heads} | {number for number, _ in self._set_aside}
            if head.number - 1 not in before and head.number > 0:
                self._lost_bytes += file_bytes(head.limit)  # it was prepared to follow a file that is gone
        self._lost_bytes += sum(size for _, size in self._set_aside)
        return None

    def _sealed(self, heads: list[SegmentHead], active: _Active | None) -> list[SealedFound]:
        found: list[SealedFound] = []
        for i, head in enumerate(heads):
            follower = heads[i + 1] if i + 1 < len(heads) else active.head if active is not None else None
            with self._filesystem.open(self._path(head)) as file:
                summary = read_summary(file, head)
                if summary is None:
                    summary = self._rebuild(file, head, found, follower)
                part = SealedFound(head, summary, file.size())
            self._missing_before(head, found)
            found.append(part)
            for gap in summary.gaps:
                self._gaps[gap.partition, gap.first] = gap
        return found

    def _rebuild(
        self, file: File, head: SegmentHead, before: list[SealedFound], follower: SegmentHead | None
    ) -> Summary:
        """Scan a sealed segment without a footer, or with a damaged one, and give it a new one."""
        data = file.read(0, file.size())
        found = scan(data, head.seed, sealed=True)
        base = before[-1].summary.next_offsets if before else None
        then = self._preamble(follower) if follower is not None and follower.number == head.number + 1 else None
        findings = interpret(data, found, base, self._partitions, then=then)
        columns = index_headers(found.headers)
        summary = summarize(columns, findings.next_offsets, findings.gaps)
        try:
            write_footer(file, head, found.end, columns, summary)
        except OSError as error:
            log.warning("could not write a rebuilt footer: %s: %s", self._path(head), error)
        return summary

    def _preamble(self, head: SegmentHead) -> list[int] | None:
        """The next offsets that a segment's first record tells; None where it is damaged."""
        with self._filesystem.open(self._path(head)) as file:
            start = file.read(PAGE_BYTES, HEADER_BYTES)
            if len(start) < HEADER_BYTES:
                return None
            header = gather_headers(start, np.zeros(1, dtype=np.int64))
            if not valid_headers(header, head.seed, np.array([PAGE_BYTES]))[0]:
                return None
            payload = file.read(PAGE_BYTES + HEADER_BYTES, int(header["length"][0]))
        if crc32c(payload) != int(header["payload_crc"][0]) or header["kind"][0] not in (KIND_SNAPSHOT, KIND_OPEN):
            return None
        return unpack_snapshot(payload)[0]

    def _missing_before(self, head: SegmentHead, before: list[SealedFound]) -> None:
        """A file that is missing or set aside between two others leaves a gap of known size."""
        if not before or before[-1].head.number + 1 == head.number:
            return
        reached, known = before[-1].summary.next_offsets, self._preamble(head)
        for partition, (a, b) in enumerate(zip(reached, known or reached, strict=False)):
            if b > a:
                self._gaps[partition, a] = Gap(partition, a, b - 1, "a file of the log is missing")

    # -- state

    def _is_clean(self, active: _Active, torn_bytes: int) -> bool:
        last = active.found.headers[-1:]
        ended = len(last) and last["kind"][0] == KIND_SNAPSHOT and last["flags"][0] & FLAG_CLEAN
        return bool(ended) and not torn_bytes and not self._lost_bytes

    def _replay(self, sealed: list[SealedFound], active: _Active | None) -> tuple[bytes | None, list[_Replay]]:
        """The latest good snapshot, and what follows it. Goes back a file for each whose snapshot is lost."""
        replay: list[_Replay] = []
        if active is not None:
            snapshot, rest = self._after_snapshot(active.data, active.found.headers)
            replay.insert(0, _Replay(self._path(active.head), rest))
            if snapshot is not None:
                return snapshot, replay
        for segment in reversed(sealed):
            path = self._path(segment.head)
            with self._filesystem.open(path) as file:
                data = file.read(0, file.size())
            found = scan(data, segment.head.seed, sealed=True)
            self._journal_damaged |= interpret(data, found, None, self._partitions).journal_damaged
            snapshot, rest = self._after_snapshot(data, found.headers)
            replay.insert(0, _Replay(path, rest))
            if snapshot is not None:
                return snapshot, replay
        return None, replay

    def _after_snapshot(self, data: bytes, headers: np.ndarray) -> tuple[bytes | None, np.ndarray]:
        places = np.flatnonzero(headers["kind"] == KIND_SNAPSHOT)
        if not len(places):
            return None, headers
        at = int(places[-1])
        start = int(headers["position"][at]) + HEADER_BYTES
        _, snapshot = unpack_snapshot(data[start : start + int(headers["length"][at])])
        return snapshot, headers[at + 1 :]

    def _open_active(self, head: SegmentHead, file: File, next_offsets: list[int], end: int) -> ActiveSegment:
        return ActiveSegment(
            self._directory, file, head, next_offsets, end=end, reserve_bytes=reserve_bytes(head.limit)
        )

    def _write_findings(self, opened: ActiveSegment, findings: Findings, active: _Active | None) -> None:
        """An OPEN record, and GAP records for what no GAP record tells yet; then everything is made durable."""
        opened.write_single(KIND_OPEN, pack_snapshot(opened.next_offsets, b""))
        recorded: set[tuple[int, int]] = set()
        if active is not None:
            gaps = active.found.headers[active.found.headers["kind"] == KIND_GAP]
            recorded = set(zip(gaps["partition"].tolist(), gaps["offset"].tolist(), strict=True))
        appends = [
            (KIND_GAP, gap.partition, gap.first, 0, 0, gap.last, 0, 0, -1, gap.reason.encode())
            for gap in findings.gaps
            if (gap.partition, gap.first) not in recorded
        ]
        if appends:
            opened.write(opened.encode(appends))
        opened.sync()

    def _entries(self, replay: list[_Replay]) -> Iterator[Entry]:
        for path, headers in replay:
            wanted = headers[np.isin(headers["kind"], (KIND_DATA, KIND_CONTROL))]
            if not len(wanted):
                continue
            with self._filesystem.open(path) as file:
                data = file.read(0, file.size())
            controls = np.flatnonzero(wanted["kind"] == KIND_CONTROL)
            begin = 0
            for control in [*controls.tolist(), len(wanted)]:
                if control > begin:
                    yield from _by_partition(wanted[begin:control])
                if control < len(wanted):
                    start = int(wanted["position"][control]) + HEADER_BYTES
                    yield ("control", data[start : start + int(wanted["length"][control])])
                begin = control + 1


def _by_partition(headers: np.ndarray) -> Iterator[Entry]:
    partitions = headers["partition"]
    for partition in sorted(set(partitions.tolist())):
        yield ("data", partition, as_records(headers[partitions == partition]))


__all__ = ["CONTROL_PARTITION", "Opened", "SealedFound", "open_log"]

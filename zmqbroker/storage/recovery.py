"""What a segment's bytes say after a crash: which records stand, what was lost, where to go on (R10).

Walk the records from the first. Where one is bad, look for the next valid header anywhere behind it. What is bad
*below* the highest ``synced_upto`` of any valid header was good once: that is corruption, it becomes a gap, and the
walk goes on at the next valid header. What is bad *above* it is a torn tail: a write that was never acknowledged and
that the loss of power left half done. The log ends before it, and valid records behind it are cut too, since a
journal must be a prefix of what was written.

One case stays undecidable: the very last commit was synced and acknowledged, nothing was written after it, and then
both power and a sector of it fail. Such a log ends early, and says so (``torn_bytes``).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
from crc32c import crc32c

from zmqbroker.storage.interface import KIND_CONTROL, KIND_DATA, KIND_GAP, KIND_SNAPSHOT, KIND_VOID, Gap
from zmqbroker.storage.record import (
    HEADER,
    HEADER_BYTES,
    KIND_FOOTER,
    KIND_OPEN,
    MAGIC,
    gather_headers,
    stored_bytes,
    valid_headers,
)
from zmqbroker.storage.segment import PAGE_BYTES, unpack_snapshot

JOURNAL: Final = 0xFFFF
"""Partition of a gap in the journal: control records were lost."""
_PEEK: Final = struct.Struct("<HBBI")
_POSITION_AT: Final = 64  # of a header's ``position``
_SEARCH_BYTES: Final = 1 << 20
_CHAIN: Final = 65_536


class Scan(NamedTuple):
    """What one segment holds."""

    headers: np.ndarray
    """dtype HEADER: every record that stands, in file order."""
    damaged: list[tuple[int, int]]
    """File ranges [from, to) below the synced position that hold no valid header though they did once."""
    bad_payloads: np.ndarray
    """dtype HEADER: headers that stand though their payload does not; they are not among ``headers``."""
    end: int
    """Where the next record goes."""
    torn_bytes: int
    """Bytes of an unsynced tail behind ``end`` that are to be cut; 0 where there is none."""
    stale: list[int]
    """Positions of valid headers behind ``end``: to be overwritten, lest they are found again."""


def scan(data: bytes, seed: int, *, sealed: bool) -> Scan:
    """Read a whole segment file. ``sealed``: all of it was synced before the next segment was begun."""
    headers, damaged = _walk(data, seed)
    end = int(headers["position"][-1]) + stored_bytes(int(headers["length"][-1])) if len(headers) else PAGE_BYTES
    bad = _bad_payloads(data, headers)
    if sealed:
        synced = len(data)
    else:
        synced = int(headers["synced_upto"].max()) if len(headers) else PAGE_BYTES
    torn = [a for a, b in damaged if b > synced] + headers["position"][bad & (headers["position"] >= synced)].tolist()
    stale: list[int] = []
    torn_bytes = 0
    if torn and not sealed:
        cut = min(torn)
        behind = headers["position"] >= cut
        torn_bytes = end - cut
        stale = headers["position"][behind].tolist()
        headers, bad = headers[~behind], bad[~behind]
        damaged = [(a, min(b, synced)) for a, b in damaged if a < min(cut, synced)]
        end = max(cut, synced)
    footer = headers["kind"] == KIND_FOOTER
    if footer.any():
        end = int(headers["position"][footer][0])
    return Scan(headers[~bad & ~footer], damaged, headers[bad & ~footer], end, torn_bytes, stale)


def _walk(data: bytes, seed: int) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Every valid header, and the ranges between them that hold none though more follow."""
    parts: list[np.ndarray] = []
    damaged: list[tuple[int, int]] = []
    at, size = PAGE_BYTES, len(data)
    peek = _PEEK.unpack_from
    candidates: np.ndarray | None = None
    while True:
        chain: list[int] = []
        position = at
        while position + HEADER_BYTES <= size and len(chain) < _CHAIN:
            magic, _, _, length = peek(data, position + 4)
            if magic != MAGIC:
                break
            chain.append(position)
            position += (HEADER_BYTES + 7 + length) & -8
        good = 0
        if chain:
            places = np.array(chain, dtype=np.int64)
            headers = gather_headers(data, places)
            valid = valid_headers(headers, seed, places)
            good = len(places) if valid.all() else int(valid.argmin())
            if good:
                parts.append(headers[:good])
                at = int(places[good - 1]) + stored_bytes(int(headers["length"][good - 1]))
            if good == _CHAIN:
                continue
        if candidates is None:
            candidates = _candidates(data, seed, at)
        behind = int(candidates.searchsorted(at))
        if behind == len(candidates):
            return np.concatenate(parts) if parts else np.empty(0, dtype=HEADER), damaged
        damaged.append((at, int(candidates[behind])))
        at = int(candidates[behind])


def _candidates(data: bytes, seed: int, start: int) -> np.ndarray:
    """Positions from ``start`` on of all valid headers, whatever lies between them."""
    found = []
    last = len(data) - HEADER_BYTES  # of a header that still fits
    for begin in range(start, last + 1, _SEARCH_BYTES):
        places = np.arange(begin, min(begin + _SEARCH_BYTES, last + 1), 8, dtype=np.int64)
        words = np.frombuffer(data, dtype="<u4", count=2 * len(places) - 1, offset=begin + _POSITION_AT)[::2]
        places = places[words == places]
        if len(places):
            found.append(places[valid_headers(gather_headers(data, places), seed, places)])
    return np.concatenate(found) if found else np.empty(0, dtype=np.int64)


def _bad_payloads(data: bytes, headers: np.ndarray) -> np.ndarray:
    """Mask: the payload is not what its header says, or runs past the end of the file."""
    view = memoryview(data)
    begin = headers["position"].astype(np.int64) + HEADER_BYTES
    end = begin + headers["length"]
    crcs = [crc32c(view[b:e]) for b, e in zip(begin.tolist(), end.tolist(), strict=True)]
    found: np.ndarray = (np.array(crcs, dtype=np.uint32) != headers["payload_crc"]) | (end > len(data))
    return found


class Findings(NamedTuple):
    """A scan in terms of offsets."""

    gaps: list[Gap]
    next_offsets: list[int]
    journal_damaged: bool


def interpret(
    data: bytes, found: Scan, base: list[int] | None, partitions: int, *, then: list[int] | None = None
) -> Findings:
    """Turn damage into gaps and next offsets.

    ``base``: next offsets before this segment, if known. ``then``: next offsets where the following segment begins, if
    known. Without it, offsets that a damaged range at the end of a partition may have held are never used again (R10).
    """
    headers, bad = found.headers, found.bad_payloads
    gaps = _told(data, headers, bad)
    known, at_start = _preambles(data, headers, partitions)
    start = at_start or base
    used = np.concatenate((headers, bad)) if len(bad) else headers
    used = used[np.isin(used["kind"], (KIND_DATA, KIND_VOID, KIND_GAP))]
    used = used[np.argsort(used["position"], kind="stable")]
    next_offsets = []
    for partition in range(partitions):
        mine = used[used["partition"] == partition]
        first = _at(start, partition)
        reached = max(first or 0, _at(known, partition) or 0, _top(mine))
        for lower, upper in _holes(mine, found.damaged, first, _at(then, partition)):
            _add(gaps, Gap(partition, lower, upper - 1, "records lost to a damaged range of the file"))
            reached = max(reached, upper)
        end = _at(then, partition)
        if end is not None and end > reached:
            _add(gaps, Gap(partition, reached, end - 1, "records missing at the end of a file"))
            reached = end
        next_offsets.append(reached)
    journal = bool(np.isin(bad["kind"], (KIND_CONTROL, KIND_SNAPSHOT)).any()) or bool(found.damaged)
    return Findings(list(gaps.values()), next_offsets, journal)


def _told(data: bytes, headers: np.ndarray, bad: np.ndarray) -> dict[tuple[int, int], Gap]:
    """Gaps that need no inference: GAP records, and data whose header stands though its payload does not."""
    gaps = {}
    for header in np.concatenate((headers[headers["kind"] == KIND_GAP], bad[bad["kind"] == KIND_GAP])):
        begin = int(header["position"]) + HEADER_BYTES
        reason = data[begin : begin + int(header["length"])].decode("utf-8", "replace")
        gap = Gap(int(header["partition"]), int(header["offset"]), int(header["lowest"]), reason)
        gaps[gap.partition, gap.first] = gap
    for header in bad[bad["kind"] == KIND_DATA]:
        partition, offset = int(header["partition"]), int(header["offset"])
        gaps.setdefault((partition, offset), Gap(partition, offset, offset, "the payload's checksum does not match"))
    return gaps


def _preambles(data: bytes, headers: np.ndarray, partitions: int) -> tuple[list[int], list[int] | None]:
    """The highest next offsets that any preamble tells, and those of the segment's very first record, if it stands."""
    known = [0] * partitions
    at_start = None
    for header in headers[np.isin(headers["kind"], (KIND_SNAPSHOT, KIND_OPEN))]:
        begin = int(header["position"]) + HEADER_BYTES
        told, _ = unpack_snapshot(data[begin : begin + int(header["length"])])
        known = [max(k, _at(told, partition) or 0) for partition, k in enumerate(known)]
        if int(header["position"]) == PAGE_BYTES:
            at_start = list(known)
    return known, at_start


def _holes(
    mine: np.ndarray, damaged: list[tuple[int, int]], first: int | None, end: int | None
) -> Iterator[tuple[int, int]]:
    """Offsets [from, to) of one partition that damaged ranges may have held.

    ``mine``: its records, in file order. ``first``, ``end``: next offsets before and after the segment, if known. Where
    a bound is not known, a range cannot have held more than one record for every 72 bytes.
    """
    last = np.where(mine["kind"] == KIND_GAP, mine["lowest"], mine["offset"])
    ranges: dict[int, int] = {}  # index of the record that follows -> bytes damaged since the one before
    for start, stop in damaged:
        at = int(mine["position"].searchsorted(start))
        ranges[at] = ranges.get(at, 0) + stop - start
    for at, size in ranges.items():
        after = mine["offset"][at:][mine["kind"][at:] != KIND_GAP]
        upper = int(after[0]) if len(after) else end
        lower = int(last[:at].max()) + 1 if at else first
        if lower is None:
            lower = max(0, (upper or 0) - size // HEADER_BYTES)
        lower = max(lower, first or 0)
        if upper is None:
            upper = lower + size // HEADER_BYTES
        if upper > lower:
            yield lower, upper


def _top(mine: np.ndarray) -> int:
    return (
        max(int(mine["offset"].max()), int(mine["lowest"][mine["kind"] == KIND_GAP].max(initial=0))) + 1
        if len(mine)
        else 0
    )


def _at(offsets: list[int] | None, partition: int) -> int | None:
    return offsets[partition] if offsets is not None and partition < len(offsets) else None


def _add(gaps: dict[tuple[int, int], Gap], gap: Gap) -> None:
    """Unless a gap that is known covers it."""
    if not any(g.partition == gap.partition and g.first <= gap.first and g.last >= gap.last for g in gaps.values()):
        gaps[gap.partition, gap.first] = gap

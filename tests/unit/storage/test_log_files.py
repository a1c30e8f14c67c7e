"""The log on real files: recycling under readers, bounded memory, what a full life leaves on disk."""

from __future__ import annotations

import random
import threading
from pathlib import Path

from tests.helpers.log_data import control, controls_of, data, offsets_of, payload_for
from zmqbroker.storage.index import ENTRY_BYTES
from zmqbroker.storage.log import DiskLog
from zmqbroker.storage.spare import file_bytes

SEGMENT = 64 << 10


def fill(log: DiskLog, first: int, last: int, size: int = 200) -> None:
    for o in range(first, last, 20):
        appends = [data(p, n, payload_for(p, n, size)) for n in range(o, min(o + 20, last)) for p in range(2)]
        log.commit([*appends, control(b"%d" % o)], roll_snapshot=b"%d" % o if log.wants_roll else None)


def test_readers_of_segments_that_are_dropped_and_recycled_never_see_other_bytes(tmp_path: Path) -> None:
    """A dropped file is written again as another segment while a reader may have it open."""
    log = DiskLog(tmp_path, 2, segment_bytes=SEGMENT)
    log.recover()
    done = threading.Event()
    failures: list[str] = []
    reads = 0

    def follow(seed: int) -> None:
        nonlocal reads
        chance = random.Random(seed)
        try:
            while not done.is_set():
                stats = log.stats()
                partition = chance.randrange(2)
                first = chance.randint(0, stats.synced_offsets[partition])
                chunk = log.read(partition, first, first + 200)
                if chunk.gaps:
                    failures.append(f"gaps: {chunk.gaps[:3]}")
                    return
                at = 0
                for record in chunk.records:
                    length, offset = int(record["length"]), int(record["offset"])
                    if chunk.body[at : at + length] != payload_for(partition, offset, length):
                        failures.append(f"offset {offset} has other bytes")
                        return
                    at += length
                log.cut(partition, first, first + 500, 1000, 1 << 20)
                reads += 1
        except Exception as error:
            failures.append(repr(error))

    threads = [threading.Thread(target=follow, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for first in range(0, 8000, 200):
        fill(log, first, first + 200)
        log.drop_before([first - 300] * 2, 1 << 60)
    done.set()
    for thread in threads:
        thread.join(30)
    assert failures == []
    assert reads > 10
    assert log.stats().first_offsets[0] > 6000
    log.close(b"end")


def test_memory_of_indexes_is_bounded_however_many_segments_there_are(tmp_path: Path) -> None:
    bound = 40 * ENTRY_BYTES * 10
    log = DiskLog(tmp_path, 2, segment_bytes=SEGMENT, index_cache_bytes=bound)
    log.recover()
    fill(log, 0, 4000)
    assert log.stats().segments > 20
    assert offsets_of(log, 0) == list(range(4000))
    log._helper.submit(lambda: None).result()  # footers are written: nothing is held for them any more
    assert offsets_of(log, 1) == list(range(4000))
    largest = max(s.summary.records for s in log._opened()[0]) * ENTRY_BYTES + 1024
    assert log._cache.bytes <= max(bound, largest)
    assert all(s.held is None for s in log._opened()[0])
    log.close(b"end")


def test_a_hardly_used_log_costs_little_disk(tmp_path: Path) -> None:
    log = DiskLog(tmp_path, 2)
    log.recover()
    fill(log, 0, 40)
    assert log.stats().bytes <= file_bytes(4 << 20)
    log.close(b"end")
    assert sum(f.stat().st_blocks * 512 for f in tmp_path.iterdir()) < 8 << 20


def test_a_life_of_many_starts_leaves_only_files_with_a_meaning(tmp_path: Path) -> None:
    log = DiskLog(tmp_path, 2, segment_bytes=SEGMENT)
    log.recover()
    at = 0
    for start in range(6):
        fill(log, at, at + 500)
        at += 500
        log.drop_before([at - 600] * 2, 1 << 60)
        if start % 2:
            log.close(b"%d" % at)
        else:
            log.release()
        log = DiskLog(tmp_path, 2, segment_bytes=SEGMENT)
        found = log.recover()
        assert found.clean == bool(start % 2)
        assert found.gaps == []
        assert found.next_offsets == [at, at]
        controls = controls_of(found.entries)
        assert (controls == []) == bool(start % 2)
    log.close(b"end")
    names = {p.name for p in tmp_path.iterdir()}
    assert {n for n in names if not n.endswith(".log")} <= {"LOCK", "identity.json", "spare"}
    assert len(names) < 20


def test_more_partitions_may_be_asked_for_at_a_later_start(tmp_path: Path) -> None:
    log = DiskLog(tmp_path, 2, segment_bytes=SEGMENT)
    log.recover()
    fill(log, 0, 100)
    log.close(b"end")
    log = DiskLog(tmp_path, 5, segment_bytes=SEGMENT)
    assert log.recover().next_offsets == [100, 100, 0, 0, 0]
    log.commit([data(4, 0, payload_for(4, 0))])
    assert offsets_of(log, 4) == [0]
    assert offsets_of(log, 1) == list(range(100))
    log.close(b"end")

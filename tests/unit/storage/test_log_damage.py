"""What a log does about a disk that changes, loses or refuses bytes (R9, R10, R11)."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys

import numpy as np
import pytest
from crc32c import crc32c

from tests.helpers.log_data import control, controls_of, data, offsets_in, offsets_of, payload_for
from tests.simulation.disk import SECTOR, SimulatedDisk
from zmqbroker.errors import DirectoryLocked, DiskFull, LogStopped
from zmqbroker.storage.interface import Recovered
from zmqbroker.storage.log import DiskLog
from zmqbroker.storage.record import HEADER_BYTES, gather_headers
from zmqbroker.storage.segment import PAGE_BYTES
from zmqbroker.storage.spare import Inline

SEGMENT = 32 << 10


def open_log(disk: SimulatedDisk, *, segment_bytes: int = SEGMENT) -> tuple[DiskLog, Recovered]:
    log = DiskLog(
        "log",
        2,
        filesystem=disk,
        segment_bytes=segment_bytes,
        random=disk.chance.randbytes,
        clock=lambda: 0.0,
        helper=Inline(),
    )
    return log, log.recover()


def fill(log: DiskLog, first: int, last: int, *, size: int = 100) -> None:
    """Offsets ``first`` to ``last - 1`` of both partitions, one commit each, with one control entry in each commit."""
    for o in range(first, last):
        appends = [data(0, o, payload_for(0, o, size)), data(1, o, payload_for(1, o, size)), control(b"entry %d" % o)]
        log.commit(appends, roll_snapshot=b"state before %d" % o if log.wants_roll else None)


def place_of(disk: SimulatedDisk, path: str, partition: int, offset: int, kind: int = 1) -> int:
    """File position of a record's header."""
    content = bytes(disk._names[path].cache)
    places = np.arange(PAGE_BYTES, len(content) - HEADER_BYTES, 8)
    headers = gather_headers(content, places)
    found = (headers["magic"] == 0x5A51) & (headers["position"] == places) & (headers["kind"] == kind)
    found &= (headers["partition"] == partition) & (headers["offset"] == offset)
    return int(places[found][-1])


# -- corruption of what was synced


def test_r10_a_bit_flip_in_a_synced_payload_is_a_gap_of_that_record_alone() -> None:
    disk = SimulatedDisk(1)
    log, _ = open_log(disk)
    fill(log, 0, 20)
    disk.flip_bit(log.active_path, place_of(disk, log.active_path, 0, 7) + HEADER_BYTES + 50)
    disk.kill()
    log, found = open_log(disk)
    assert [(g.partition, g.first, g.last) for g in found.gaps] == [(0, 7, 7)]
    assert not found.clean
    assert not found.journal_damaged
    assert offsets_of(log, 0) == [o for o in range(20) if o != 7]
    assert offsets_of(log, 1) == list(range(20))
    assert found.next_offsets == [20, 20]
    assert log.stats().gaps == 1


def test_r10_a_bit_flip_in_a_synced_header_is_a_gap_and_the_scan_goes_on() -> None:
    disk = SimulatedDisk(1)
    log, _ = open_log(disk)
    fill(log, 0, 20)
    disk.flip_bit(log.active_path, place_of(disk, log.active_path, 1, 7) + 30, 3)
    disk.kill()
    log, found = open_log(disk)
    assert [(g.partition, g.first, g.last) for g in found.gaps] == [(1, 7, 7)]
    assert offsets_of(log, 1) == [o for o in range(20) if o != 7]
    assert found.journal_damaged  # it may have been a control record as well, for all that is known
    assert controls_of(found.entries) == [b"entry %d" % o for o in range(20)]


def test_r10_a_gap_once_found_is_remembered_without_being_found_again() -> None:
    """The GAP record makes the loss durable: it is told after each later start, and once."""
    disk = SimulatedDisk(1)
    log, _ = open_log(disk)
    fill(log, 0, 20)
    disk.flip_bit(log.active_path, place_of(disk, log.active_path, 0, 7) + HEADER_BYTES)
    for _ in range(3):
        disk.kill()
        log, found = open_log(disk)
        assert [(g.partition, g.first, g.last) for g in found.gaps] == [(0, 7, 7)]
    fill(log, 20, 200)
    disk.kill()
    log, found = open_log(disk)
    assert [(g.partition, g.first, g.last) for g in found.gaps] == [(0, 7, 7)]
    assert offsets_of(log, 0) == [o for o in range(200) if o != 7]


def test_r10_offsets_lost_at_the_very_end_of_a_partition_are_never_used_again() -> None:
    """The last record of partition 1 is synced, perhaps delivered, then its header rots: its offset stays used."""
    disk = SimulatedDisk(1)
    log, _ = open_log(disk)
    fill(log, 0, 10)
    log.commit([control(b"later")])  # so that the records before are known to be synced
    path = log.active_path
    disk.flip_bit(path, place_of(disk, path, 1, 9) + 5)
    disk.kill()
    log, found = open_log(disk)
    assert found.next_offsets[1] >= 10
    assert any(g.partition == 1 and g.first <= 9 <= g.last for g in found.gaps)
    assert offsets_of(log, 0) == list(range(10))
    assert offsets_of(log, 1) == list(range(9))


def test_r10_damage_in_a_sealed_segment_is_told_by_the_read_that_meets_it() -> None:
    disk = SimulatedDisk(1)
    log, _ = open_log(disk)
    path = log.active_path
    fill(log, 0, 300)
    assert path != log.active_path
    disk.flip_bit(path, place_of(disk, path, 0, 5) + HEADER_BYTES + 3)
    disk.flip_bit(path, place_of(disk, path, 0, 8) + 40)
    chunk = log.read(0, 0, 20)
    assert [(g.partition, g.first, g.last) for g in chunk.gaps] == [(0, 5, 5), (0, 8, 8)]
    assert chunk.records["offset"].tolist() == [o for o in range(21) if o not in (5, 8)]
    assert len(chunk.body) == int(chunk.records["length"].sum())
    log.commit([(4, 0, 5, 0, 0, 5, 0, 0, -1, b"seen"), (4, 0, 8, 0, 0, 8, 0, 0, -1, b"seen")])
    assert log.read(0, 0, 20).gaps == ()  # written down: no news any more


def test_r10_a_damaged_footer_is_rebuilt_by_scanning() -> None:
    disk = SimulatedDisk(1)
    log, _ = open_log(disk)
    path = log.active_path
    fill(log, 0, 300)
    size = len(disk._names[path].cache)
    for position in (size - 10, size - 40, size - 700):
        disk.flip_bit(path, position)
    assert offsets_of(log, 0) == list(range(300))  # the open log
    disk.kill()
    log, found = open_log(disk)
    assert found.gaps == []
    assert offsets_of(log, 0) == list(range(300))


def test_r10_one_copy_of_a_segments_head_is_enough() -> None:
    disk = SimulatedDisk(1)
    log, _ = open_log(disk)
    fill(log, 0, 10)
    disk.flip_bit(log.active_path, 12)
    disk.kill()
    log, found = open_log(disk)
    assert found.gaps == []
    assert offsets_of(log, 0) == list(range(10))


@pytest.mark.parametrize("which", ["first", "middle", "active"])
def test_r10_a_file_whose_head_is_lost_is_set_aside_and_its_offsets_never_come_back(which: str) -> None:
    disk = SimulatedDisk(1)
    log, _ = open_log(disk)
    fill(log, 0, 300)
    paths = [p for p in disk.paths() if p.endswith(".log") and p <= log.active_path]
    path = {"first": paths[0], "middle": paths[2], "active": paths[-1]}[which]
    before = log.stats()
    disk.flip_bit(path, 12)
    disk.flip_bit(path, 2048 + 12)
    disk.kill()
    log, found = open_log(disk)
    assert path.replace(".log", ".bad") in disk.paths()
    assert not found.clean
    assert all(a >= b for a, b in zip(found.next_offsets, before.next_offsets, strict=True))
    held = offsets_of(log, 0)
    lost = [o for o in range(300) if o not in held]
    assert lost
    if which != "first":
        assert all(any(g.partition == 0 and g.first <= o <= g.last for g in found.gaps) for o in lost)
    fill(log, found.next_offsets[0], found.next_offsets[0] + 50)
    disk.kill()
    log, again = open_log(disk)
    assert offsets_of(log, 0)[: len(held)] == held
    assert again.next_offsets[0] == found.next_offsets[0] + 50


def test_r10_a_lost_snapshot_falls_back_to_the_one_before_and_replays_more() -> None:
    disk = SimulatedDisk(1)
    log, _ = open_log(disk)
    fill(log, 0, 300)
    disk.flip_bit(log.active_path, PAGE_BYTES + HEADER_BYTES + 30)
    disk.kill()
    log, found = open_log(disk)
    entries = list(found.entries)
    assert found.snapshot is not None
    first = int(found.snapshot.split()[-1])
    assert controls_of(entries) == [b"entry %d" % o for o in range(first, 300)]
    assert offsets_in(entries, 1) == list(range(first, 300))
    assert found.journal_damaged


def test_r10_a_sealed_file_that_was_cut_short_is_a_gap_of_what_is_missing() -> None:
    disk = SimulatedDisk(1)
    log, _ = open_log(disk)
    path = log.active_path
    fill(log, 0, 300)
    cut = place_of(disk, path, 0, 20)
    disk.cut_file(path, cut)
    disk.kill()
    log, found = open_log(disk)
    held = offsets_of(log, 0)
    lost = sorted(set(range(300)) - set(held))
    assert lost
    assert lost[0] == 20
    assert sum(g.last - g.first + 1 for g in found.gaps if g.partition == 0) == len(lost)
    assert found.next_offsets == [300, 300]


def test_a_file_cut_short_under_an_open_log_is_told_by_the_read() -> None:
    disk = SimulatedDisk(1)
    log, _ = open_log(disk)
    path = log.active_path
    fill(log, 0, 300)
    log.read(0, 0, 10)
    disk.cut_file(path, place_of(disk, path, 0, 5) + 10)
    chunk = log.read(0, 0, 10)
    assert chunk.records["offset"].tolist() == [0, 1, 2, 3, 4]
    assert [g.first for g in chunk.gaps] == [5, 6, 7, 8, 9, 10]


# -- torn tails and stale bytes


def test_r10_a_torn_tail_is_cut_and_its_offsets_are_free() -> None:
    """An unsynced record lost its last sector: it was never acknowledged, so it is no gap."""
    disk = SimulatedDisk(1)
    log, _ = open_log(disk)
    fill(log, 0, 10)
    log.commit([data(0, 10, payload_for(0, 10, 3000)), data(0, 11, payload_for(0, 11))], sync=False)
    disk.flip_bit(log.active_path, place_of(disk, log.active_path, 0, 10) + HEADER_BYTES + 2 * SECTOR)
    disk.kill()
    log, found = open_log(disk)
    assert found.gaps == []
    assert found.torn_bytes > 3000
    assert found.next_offsets == [10, 10]
    log.commit([data(0, 10, payload_for(0, 10, 50))])
    disk.kill()
    log, found = open_log(disk)
    assert offsets_of(log, 0) == list(range(11))
    assert found.torn_bytes == 0


def test_r10_records_behind_a_cut_never_come_back() -> None:
    """The cut record and what replaces it have one length, so the stale one behind would fit exactly."""
    disk = SimulatedDisk(1)
    log, _ = open_log(disk)
    fill(log, 0, 3)
    log.commit([data(0, o, payload_for(0, o)) for o in (3, 4, 5)], sync=False)
    disk.flip_bit(log.active_path, place_of(disk, log.active_path, 0, 3) + HEADER_BYTES)
    disk.kill()
    log, found = open_log(disk)
    assert found.next_offsets[0] == 3
    for _ in range(2):
        log.commit([data(1, log.stats().next_offsets[1], payload_for(1, log.stats().next_offsets[1]))])
        disk.kill()
        log, found = open_log(disk)
        assert offsets_of(log, 0) == [0, 1, 2]
    assert found.next_offsets == [3, 5]


def test_r10_stale_records_of_a_recycled_file_are_never_taken_for_new_ones() -> None:
    disk = SimulatedDisk(1)
    log, _ = open_log(disk)
    at = 0
    for _ in range(12):
        fill(log, at, at + 100)
        at += 100
        log.drop_before([at, at], 1 << 60)
    assert "log/spare" in disk.paths()
    held = offsets_of(log, 0)
    disk.kill()
    log, found = open_log(disk)
    assert found.gaps == []
    assert offsets_of(log, 0) == held
    assert found.next_offsets == [at, at]


def test_r10_a_payload_that_contains_a_log_is_only_a_payload() -> None:
    """Somebody queues a copy of the very file that is being written, and the header before it rots."""
    disk = SimulatedDisk(1)
    log, _ = open_log(disk, segment_bytes=1 << 20)
    fill(log, 0, 10)
    hostile = bytes(disk._names[log.active_path].cache[PAGE_BYTES : PAGE_BYTES + 4000])
    log.commit([(1, 0, 10, 1, 1, 1, 1, 1, crc32c(hostile), hostile)])
    fill(log, 11, 12)
    disk.flip_bit(log.active_path, place_of(disk, log.active_path, 0, 10) + 33)
    disk.kill()
    log, found = open_log(disk, segment_bytes=1 << 20)
    assert [(g.partition, g.first, g.last) for g in found.gaps if g.partition == 0] == [(0, 10, 10)]
    assert offsets_of(log, 0) == [*range(10), 11]


# -- identity


def test_r10_a_copied_directory_gets_another_uuid_and_a_moved_one_keeps_its_own(tmp_path) -> None:
    first = DiskLog(tmp_path / "a", 2, segment_bytes=SEGMENT)
    first.recover()
    fill(first, 0, 50)
    first.close(b"")
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    (tmp_path / "a").rename(tmp_path / "b")
    moved, copy = (DiskLog(tmp_path / name, 2, segment_bytes=SEGMENT) for name in ("b", "copy"))
    assert moved.uuid == first.uuid
    assert copy.uuid != first.uuid
    for log in (moved, copy):
        log.recover()
        assert offsets_of(log, 1) == list(range(50))
        log.close(b"")


def test_r10_a_directory_that_lost_its_segments_gets_another_uuid() -> None:
    disk = SimulatedDisk(1)
    log, _ = open_log(disk)
    fill(log, 0, 50)
    disk.kill()
    for path in disk.paths():
        if path.endswith(".log"):
            disk.remove(path)
    again, found = open_log(disk)
    assert again.uuid != log.uuid
    assert found.next_offsets == [0, 0]


def test_two_processes_cannot_hold_one_directory(tmp_path) -> None:
    script = (
        "import sys, os\nfrom zmqbroker.storage.log import DiskLog\n"
        "log = DiskLog(sys.argv[1], 1); log.recover(); print(os.getpid(), flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        pid = int(other.stdout.readline())
        with pytest.raises(DirectoryLocked, match=f"process {pid}") as error:
            DiskLog(tmp_path, 1)
        assert error.value.pid == pid
        other.kill()
    DiskLog(tmp_path, 1).release()  # the kernel let go of a killed holder's lock


# -- sync and space


def test_r09_what_recovery_serves_survives_the_loss_of_power() -> None:
    """The process died with synced and unsynced records; after the restart readers see both: both must be durable."""
    disk = SimulatedDisk(1, survival=0.0)
    log, _ = open_log(disk)
    fill(log, 0, 10)
    log.commit([data(0, 10, payload_for(0, 10))], sync=False)
    disk.kill()
    log, _ = open_log(disk)
    served = offsets_of(log, 0)
    assert served == list(range(11))
    disk.lose_power()
    log, _ = open_log(disk)
    assert offsets_of(log, 0) == served


def test_r11_a_failed_fsync_stops_the_log_and_is_never_retried() -> None:
    disk = SimulatedDisk(1)
    log, _ = open_log(disk)
    fill(log, 0, 10)
    disk.fail_sync(log.active_path)
    with pytest.raises(LogStopped, match="simulated sync error"):
        log.commit([data(0, 10, payload_for(0, 10))])
    for attempt in (lambda: log.commit([control(b"x")]), log.sync, lambda: log.commit([], roll_snapshot=b"s")):
        with pytest.raises(LogStopped):
            attempt()
    assert log.stats().stopped
    assert offsets_of(log, 0) == list(range(10))  # what was synced is still served
    log.close(b"must not be written")
    disk.lose_power()
    log, found = open_log(disk)
    assert not found.clean
    assert offsets_of(log, 0) == list(range(10))


def test_r09_what_a_recovery_could_not_sync_is_written_again_by_the_next() -> None:
    """The next found a record that called everything before it synced, and believed it."""
    disk = SimulatedDisk(5, survival=0.0)
    log, _ = open_log(disk)
    fill(log, 0, 5)
    log.commit([data(0, 5, payload_for(0, 5, 4 * SECTOR))], sync=False)
    disk.kill()
    disk.fail_sync(log.active_path)
    with pytest.raises(OSError, match="simulated sync error"):
        open_log(disk)
    disk.kill()
    open_log(disk)
    disk.lose_power()
    log, found = open_log(disk)
    assert found.gaps == []
    assert offsets_of(log, 0) == list(range(6))


def test_r11_a_failed_write_stops_the_log() -> None:
    disk = SimulatedDisk(1)
    log, _ = open_log(disk)
    disk.fail_write(log.active_path)
    with pytest.raises(LogStopped):
        log.commit([data(0, 0, payload_for(0, 0))])
    with pytest.raises(LogStopped):
        log.commit([control(b"x")])


@pytest.mark.parametrize("seed", range(12))
def test_r11_a_full_disk_leaves_nothing_half_visible(seed: int) -> None:
    """The disk fills and empties at random; refused commits leave no trace, before and after a loss of power."""
    disk = SimulatedDisk(seed)
    log, _ = open_log(disk)
    taken: list[int] = []
    acks = 0
    refused = 0
    for _ in range(400):
        if disk.chance.random() < 0.3:
            disk.capacity = _used(disk) + disk.chance.choice((0, 100, 5000, 40_000))
        elif disk.chance.random() < 0.02:
            disk.capacity = 1 << 30
        offset = taken[-1] + 1 if taken else 0
        size = disk.chance.choice((10, 500, 5000))
        snapshot = b"s" if log.wants_roll else None
        try:
            log.commit([data(0, offset, payload_for(0, offset, size)), control(b"ack")], roll_snapshot=snapshot)
            taken.append(offset)
        except DiskFull:
            refused += 1
            log.commit([control(b"only an ack")], roll_snapshot=b"s" if log.wants_roll else None)
            acks += 1
        if disk.chance.random() < 0.05:
            disk.lose_power()
            log, found = open_log(disk)
            assert found.gaps == []
            assert found.next_offsets[0] == len(taken)
        assert log.stats().next_offsets[0] == len(taken)
    assert refused
    assert offsets_of(log, 0) == taken
    disk.capacity = 1 << 30
    fill_from = len(taken)
    log.commit([data(0, fill_from, payload_for(0, fill_from))])
    assert offsets_of(log, 0) == [*taken, fill_from]


def _used(disk: SimulatedDisk) -> int:
    return disk.capacity - disk.free_bytes


@pytest.mark.parametrize("seed", range(40))
def test_r10_random_damage_is_never_served_and_never_silent(seed: int) -> None:
    """Bits flip anywhere in any file. What is read is what was written; what cannot be read is told as a gap.

    Records of the last commit are exempt: nothing later says that they were synced.
    """
    chance = random.Random(seed)
    disk = SimulatedDisk(seed)
    log, _ = open_log(disk)
    fill(log, 0, chance.choice((5, 60, 300)), size=chance.choice((0, 10, 100, 1000)))
    log.commit([control(b"mark")])
    top = log.stats().next_offsets
    disk.kill()
    for _ in range(chance.choice((1, 2, 5, 20))):
        path = chance.choice([p for p in disk.paths() if p.endswith(".log")])
        if chance.random() < 0.1:
            disk.cut_file(path, chance.randrange(len(disk._names[path].cache) + 1))
        elif len(disk._names[path].cache):
            disk.flip_bit(path, chance.randrange(len(disk._names[path].cache)), chance.randrange(8))
    log, found = open_log(disk)
    list(found.entries)
    for partition in range(2):
        chunk = log.read(partition, 0, 1 << 62)
        at = 0
        for record in chunk.records:
            length, offset = int(record["length"]), int(record["offset"])
            assert chunk.body[at : at + length] == payload_for(partition, offset, length)
            at += length
        gaps = [g for g in (*found.gaps, *chunk.gaps) if g.partition == partition]
        held = set(chunk.records["offset"].tolist())
        first = log.stats().first_offsets[partition]
        reached = found.next_offsets[partition]
        if found.torn_bytes == 0 and not any(p.endswith(".bad") for p in disk.paths()):
            missing = [o for o in range(first, top[partition]) if o not in held]
            untold = [o for o in missing if not any(g.first <= o <= g.last for g in gaps)]
            cut_short = reached < top[partition]  # the active file was cut: its end cannot be known
            assert cut_short or not untold

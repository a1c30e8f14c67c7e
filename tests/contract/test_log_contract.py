"""What every log promises, whatever lies beneath. One class of tests, run against each."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator

import pytest

from tests.helpers.log_data import control, data, gap, offsets_of, payload_for, spoiled
from tests.simulation.disk import SimulatedDisk
from zmqbroker.errors import BrokerError, DiskFull
from zmqbroker.storage.interface import RECORD, TopicLog
from zmqbroker.storage.log import DiskLog
from zmqbroker.storage.memory import MemoryLog
from zmqbroker.storage.spare import Inline

SEGMENT = 64 << 10
Make = Callable[[], TopicLog]


@pytest.fixture(params=["disk", "simulated", "memory"])
def make(request: pytest.FixtureRequest, tmp_path) -> Iterator[Make]:
    made: list[TopicLog] = []
    number = itertools.count()

    def new() -> TopicLog:
        log: TopicLog
        if request.param == "disk":
            log = DiskLog(tmp_path / f"log{next(number)}", 4, segment_bytes=SEGMENT)
        elif request.param == "simulated":
            log = DiskLog("log", 4, segment_bytes=SEGMENT, filesystem=SimulatedDisk(1), helper=Inline())
        else:
            log = MemoryLog(4, segment_bytes=SEGMENT, bytes_max=8 << 20)
        log.recover()
        made.append(log)
        return log

    yield new
    for log in made:
        log.close(b"")


@pytest.fixture
def log(make: Make) -> TopicLog:
    return make()


def fill(log: TopicLog, records: int, *, partitions: int = 4, size: int = 100, batch: int = 16) -> None:
    """``records`` in each partition from offset 0, rolling when the log wants it."""
    for first in range(0, records, batch):
        last = min(first + batch, records)
        appends = [data(p, o, payload_for(p, o, size)) for o in range(first, last) for p in range(partitions)]
        log.commit(appends, roll_snapshot=b"state at %d" % first if log.wants_roll else None)


class TestLogContract:
    def test_what_was_committed_is_read_back_in_offset_order(self, log: TopicLog) -> None:
        fill(log, 100)
        assert [offsets_of(log, p) for p in range(4)] == [list(range(100))] * 4

    def test_a_new_log_is_empty_clean_and_at_offset_zero(self, make: Make) -> None:
        log = make()
        assert log.stats().records == 0
        assert log.stats().next_offsets == [0, 0, 0, 0]
        assert log.stats().oldest_time_ms is None
        chunk = log.read(0, 0, 1000)
        assert len(chunk.records) == 0
        assert chunk.records.dtype == RECORD
        assert chunk.body == b""

    def test_every_log_has_a_uuid_of_its_own(self, make: Make) -> None:
        assert len({make().uuid for _ in range(3)}) == 3
        assert len(make().uuid) == 16

    def test_a_range_is_read_with_both_its_ends(self, log: TopicLog) -> None:
        fill(log, 50)
        assert log.read(2, 10, 19).records["offset"].tolist() == list(range(10, 20))
        assert log.read(2, 49, 10_000).records["offset"].tolist() == [49]
        assert log.read(2, 20, 19).records["offset"].tolist() == []

    def test_records_keep_every_field(self, log: TopicLog) -> None:
        payload = b"x" * 77
        log.commit([data(3, 5, payload, rows=123_456, time_ms=1_700_000_000_123)])
        record = log.read(3, 0, 100).records[0]
        fields = ("offset", "seq", "lowest", "rows", "time_ms", "length")
        assert [int(record[f]) for f in fields] == [5, 6, 5, 123_456, 1_700_000_000_123, 77]

    def test_payloads_of_every_size_come_back_whole(self, log: TopicLog) -> None:
        sizes = [0, 1, 7, 8, 9, 4095, 4096, 4097, 20_000, 300_000]
        for offset, size in enumerate(sizes):
            log.commit([data(0, offset, payload_for(0, offset, size))], roll_snapshot=b"s" if log.wants_roll else None)
        assert offsets_of(log, 0) == list(range(len(sizes)))
        assert log.read(0, 0, 100).records["length"].tolist() == sizes

    def test_one_commit_may_carry_more_pieces_than_one_system_call_takes(self, log: TopicLog) -> None:
        count = 1500  # payloads that are not copied: two pieces each
        log.commit([data(0, o, payload_for(0, o, 4097)) for o in range(count)])
        assert offsets_of(log, 0) == list(range(count))

    def test_a_bad_payload_becomes_a_void_that_nobody_reads(self, log: TopicLog) -> None:
        good = [data(0, 0, payload_for(0, 0)), data(0, 2, payload_for(0, 2))]
        done = log.commit([good[0], spoiled(0, 1, b"?" * 50), good[1]])
        assert done.bad == [1]
        assert offsets_of(log, 0) == [0, 2]
        assert log.stats().next_offsets[0] == 3
        assert log.stats().records == 2

    def test_a_bad_payload_at_the_end_still_uses_its_offset(self, log: TopicLog) -> None:
        log.commit([spoiled(0, 0, b"?")])
        assert log.stats().next_offsets[0] == 1
        with pytest.raises(ValueError, match="below"):
            log.commit([data(0, 0, b"!")])

    def test_offsets_never_go_back(self, log: TopicLog) -> None:
        log.commit([data(1, 10, payload_for(1, 10))])
        with pytest.raises(ValueError, match="offset 10 of partition 1 is below 11"):
            log.commit([data(0, 0, payload_for(0, 0)), data(1, 10, b"other")])
        assert offsets_of(log, 0) == []  # nothing of the refused commit
        assert offsets_of(log, 1) == [10]

    def test_holes_are_allowed_and_stepped_over(self, log: TopicLog) -> None:
        log.commit([data(0, o, payload_for(0, o)) for o in (0, 1, 100, 101)])
        assert offsets_of(log, 0) == [0, 1, 100, 101]
        assert log.read(0, 50, 100).records["offset"].tolist() == [100]

    def test_r09_what_is_not_synced_is_not_read(self, log: TopicLog) -> None:
        log.commit([data(0, 0, payload_for(0, 0))])
        log.commit([data(0, 1, payload_for(0, 1))], sync=False)
        assert offsets_of(log, 0) == [0]
        assert log.cut(0, 0, 100, 1000, 1 << 20).last == 0
        assert log.find_time(0, 0) == 0
        assert log.stats().synced_offsets[0] == 1
        assert log.stats().next_offsets[0] == 2
        log.sync()
        assert offsets_of(log, 0) == [0, 1]
        assert log.stats().synced_offsets[0] == 2

    def test_r09_a_roll_syncs_what_came_before(self, log: TopicLog) -> None:
        log.commit([data(0, 0, payload_for(0, 0))], sync=False)
        assert log.commit([], sync=False, roll_snapshot=b"state").rolled
        assert offsets_of(log, 0) == [0]

    def test_a_snapshot_above_the_limit_does_not_make_a_log_roll_for_ever(self, log: TopicLog) -> None:
        """Seen in simulation: every roll wrote a snapshot that filled the segment, which asked for the next roll."""
        big = b"s" * (1 << 20)
        log.commit([data(0, 0, payload_for(0, 0))], roll_snapshot=big)
        rolls = 0
        for offset in range(1, 50):
            asked = log.wants_roll
            rolls += asked
            log.commit([data(0, offset, payload_for(0, offset, 1000))], roll_snapshot=big if asked else None)
        assert rolls == 0
        assert offsets_of(log, 0) == list(range(50))

    def test_a_log_asks_for_a_roll_at_its_limit_and_reads_across_segments(self, log: TopicLog) -> None:
        fill(log, 1000)
        assert log.stats().segments > 5
        assert offsets_of(log, 1) == list(range(1000))
        assert log.read(1, 300, 699).records["offset"].tolist() == list(range(300, 700))

    def test_an_empty_commit_is_fine(self, log: TopicLog) -> None:
        assert log.commit([]).bytes_written == 0

    # -- cut

    def test_a_cut_stops_at_the_row_limit(self, log: TopicLog) -> None:
        fill(log, 100)
        assert log.cut(0, 0, 100, 55, 1 << 20) == (4, 50, 500)

    def test_a_cut_stops_at_the_byte_limit(self, log: TopicLog) -> None:
        fill(log, 100)
        assert log.cut(0, 10, 100, 10**9, 750) == (16, 70, 700)

    def test_a_cut_takes_at_least_one_record(self, log: TopicLog) -> None:
        fill(log, 10)
        assert log.cut(0, 3, 10, 1, 1) == (3, 10, 100)

    def test_a_cut_stops_below_the_end(self, log: TopicLog) -> None:
        fill(log, 100)
        assert log.cut(0, 5, 9, 10**9, 1 << 30) == (8, 40, 400)

    def test_a_cut_of_nothing_is_empty(self, log: TopicLog) -> None:
        fill(log, 10)
        assert log.cut(0, 10, 10, 100, 100) == (9, 0, 0)
        assert log.cut(0, 10, 50, 100, 100) == (9, 0, 0)

    def test_holes_count_nothing_in_a_cut(self, log: TopicLog) -> None:
        log.commit([data(0, o, payload_for(0, o)) for o in (0, 5, 20)] + [spoiled(0, 21, b"?")])
        assert log.cut(0, 0, 22, 20, 1 << 20) == (19, 20, 200)
        assert log.cut(0, 6, 20, 20, 1 << 20) == (19, 0, 0)
        assert log.cut(0, 20, 22, 20, 1 << 20) == (21, 10, 100)

    def test_a_cut_runs_across_segments(self, log: TopicLog) -> None:
        fill(log, 1000)
        assert log.cut(0, 0, 1000, 9_990, 1 << 30) == (998, 9_990, 99_900)
        assert log.cut(0, 0, 1000, 10**9, 95_050) == (949, 9_500, 95_000)

    def test_cuts_one_after_the_other_cover_everything_once(self, log: TopicLog) -> None:
        fill(log, 777)
        at, rows = 0, 0
        while at < 777:
            found = log.cut(3, at, 777, 333, 1 << 30)
            assert found.rows <= 333
            assert len(log.read(3, at, found.last).records) * 10 == found.rows
            at, rows = found.last + 1, rows + found.rows
        assert (at, rows) == (777, 7770)

    # -- time

    def test_a_time_finds_the_first_record_at_or_after_it(self, log: TopicLog) -> None:
        fill(log, 1000)
        assert log.find_time(0, 0) == 0
        assert log.find_time(0, 1_000_500) == 500
        assert log.find_time(0, 1_000_999) == 999
        assert log.find_time(0, 2_000_000) == 1000

    # -- dropping

    def test_segments_below_every_floor_are_dropped_and_no_others(self, log: TopicLog) -> None:
        fill(log, 1000)
        before = log.stats()
        assert log.drop_before([1000, 1000, 10, 1000], 1 << 60).segments == 0  # partition 2 holds all
        dropped = log.drop_before([500] * 4, 1 << 60)
        after = log.stats()
        assert dropped.segments > 0
        assert after.segments == before.segments - dropped.segments
        assert after.records == before.records - dropped.records
        first = after.first_offsets[0]
        assert 0 < first <= 500
        assert offsets_of(log, 0) == list(range(first, 1000))

    def test_what_was_never_written_or_became_a_void_does_not_count_as_dropped(self, log: TopicLog) -> None:
        log.commit([spoiled(0, 0, payload_for(0, 0)), data(0, 1, payload_for(0, 1)), data(1, 5, payload_for(1, 5))])
        assert log.stats().first_offsets == [0, 0, 0, 0]
        log.commit([spoiled(0, 2, payload_for(0, 2))], roll_snapshot=b"s")
        assert log.drop_before([1 << 60] * 4, 1 << 60).records == 2
        assert log.stats().first_offsets == [2, 6, 0, 0]

    def test_the_active_segment_is_never_dropped(self, log: TopicLog) -> None:
        fill(log, 1000)
        log.drop_before([1 << 60] * 4, 1 << 60)
        assert log.stats().segments == 1
        log.commit([data(0, 1000, payload_for(0, 1000))])
        assert 1000 in offsets_of(log, 0)

    def test_young_segments_are_kept_for_replay_unless_too_large(self, log: TopicLog) -> None:
        fill(log, 1000)
        floors = [1 << 60] * 4
        assert log.drop_before(floors, 1_000_000).segments == 0
        some = log.drop_before(floors, 1_000_400)
        assert 0 < some.segments < log.stats().segments
        size = log.stats().bytes
        log.drop_before(floors, 0, keep_bytes=size // 2)
        assert log.stats().bytes <= size // 2 + 2 * SEGMENT
        assert log.stats().segments > 1

    def test_dropped_segments_make_room_for_new_ones(self, log: TopicLog) -> None:
        for first in range(0, 3000, 100):
            for o in range(first, first + 100, 10):
                appends = [data(0, n, payload_for(0, n, 1000)) for n in range(o, o + 10)]
                log.commit(appends, roll_snapshot=b"s" if log.wants_roll else None)
            log.drop_before([first] * 4, 1 << 60)
        assert log.stats().segments < 12
        assert offsets_of(log, 0)[-1] == 2999

    # -- gaps

    def test_r28_gaps_are_counted_and_move_the_next_offset(self, log: TopicLog) -> None:
        log.commit([data(0, 0, payload_for(0, 0)), gap(0, 1, 9)])
        assert log.stats().gaps == 1
        assert log.stats().next_offsets[0] == 10
        log.commit([data(0, 10, payload_for(0, 10))])
        assert offsets_of(log, 0) == [0, 10]

    def test_r28_what_a_gap_covers_is_read_no_more(self, log: TopicLog) -> None:
        fill(log, 500)
        log.commit([gap(0, 10, 19, "dropped by hand"), gap(0, 490, 499, "dropped by hand")])
        assert offsets_of(log, 0) == [*range(10), *range(20, 490)]
        assert offsets_of(log, 1) == list(range(500))
        assert log.cut(0, 5, 500, 100, 1 << 30) == (24, 100, 1000)
        assert log.find_time(0, 1_000_012) == 20
        log.commit([data(0, 500, payload_for(0, 500))])
        assert offsets_of(log, 0)[-1] == 500

    # -- threads and ends

    def test_readers_see_whole_commits_while_the_writer_goes_on(self, log: TopicLog) -> None:
        stop = threading.Event()
        failures: list[str] = []

        def follow() -> None:
            at = 0
            try:
                while not stop.is_set() or at < 2000:
                    found = log.cut(0, at, 1 << 60, 500, 1 << 20)
                    offsets = log.read(0, at, found.last).records["offset"].tolist()
                    if offsets != list(range(at, found.last + 1)):
                        failures.append(f"from {at} to {found.last}: {offsets[:5]}...")
                        return
                    at = found.last + 1
            except Exception as error:
                failures.append(repr(error))

        threads = [threading.Thread(target=follow) for _ in range(2)]
        for thread in threads:
            thread.start()
        fill(log, 2000)
        stop.set()
        for thread in threads:
            thread.join(30)
        assert failures == []

    def test_a_closed_log_refuses(self, make: Make) -> None:
        log = make()
        log.close(b"end")
        with pytest.raises(BrokerError):
            log.commit([control(b"late")])

    def test_r11_a_full_log_refuses_data_takes_control_and_goes_on_when_there_is_room(self, tmp_path) -> None:
        for log in (
            MemoryLog(2, segment_bytes=SEGMENT, bytes_max=1 << 20),
            DiskLog("l", 2, segment_bytes=SEGMENT, filesystem=SimulatedDisk(3, capacity=1 << 20), helper=Inline()),
        ):
            log.recover()
            offset = 0
            with pytest.raises(DiskFull):
                while True:
                    append = data(0, offset, payload_for(0, offset, 1000))
                    log.commit([append], roll_snapshot=b"s" if log.wants_roll else None)
                    offset += 1
            assert offset > 100
            assert log.stats().full
            for i in range(20):
                log.commit([control(b"ack %d" % i)], roll_snapshot=b"s" if log.wants_roll else None)
            with pytest.raises(DiskFull):
                log.commit([data(0, offset, payload_for(0, offset, 1000)), control(b"with data")])
            assert offsets_of(log, 0) == list(range(offset))
            log.drop_before([offset, 0], 1 << 60)
            log.commit([data(0, offset, payload_for(0, offset, 1000))], roll_snapshot=b"s" if log.wants_roll else None)
            assert offsets_of(log, 0)[-1] == offset
            assert not log.stats().full

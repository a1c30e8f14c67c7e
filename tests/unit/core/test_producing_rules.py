"""The broker's side of producers, rule by rule (R4-R7): exact acks, session state, credit."""

from __future__ import annotations

from tests.helpers.core_rig import Rig, acked, deliveries, of
from zmqbroker import protocol
from zmqbroker.core import events as ev
from zmqbroker.core.config import BrokerConfig, TopicConfig
from zmqbroker.protocol import Code, Flag, Type


def test_r04_an_ack_comes_only_when_the_batch_is_durable() -> None:
    rig = Rig(commits=False)
    rig.hello()
    assert acked(rig.publish(1, 2, 3)) == []
    (ack,) = of(rig.commit(), Type.ACK)
    assert ack.ranges == [(1, 3)]


def test_r04_a_seq_that_is_in_the_log_is_acked_again_and_written_once() -> None:
    rig = Rig()
    rig.hello()
    rig.publish(1, 2)
    assert acked(rig.publish(1, 2)) == [1, 2]
    assert rig.topic.partitions[0].next_offset == 2
    assert rig.topic.duplicates == 2


def test_r04_a_resend_is_acked_with_the_commit_that_holds_its_batch_and_not_before() -> None:
    rig = Rig(commits=False)
    rig.hello()
    rig.publish(1)
    rig.hello(b"p2", generation=2)
    assert acked(rig.publish(1, conn=b"p2", generation=2)) == []
    assert acked(rig.commit()) == [1, 1]


def test_r04_a_hole_below_a_known_seq_is_not_taken_for_known() -> None:
    """A watermark would drop seq 2: of two partitions a crash may keep the later one's record."""
    rig = Rig(topic=TopicConfig(partitions=2))
    rig.hello()
    rig.publish(1, 3)
    rig.restart()
    rig.hello(generation=2, first=1)
    assert acked(rig.publish(2, generation=2)) == [2]
    assert sum(p.next_offset for p in rig.topic.partitions) == 3


def test_r04_refuse_settles_nothing_and_a_bad_checksum_is_taken_the_second_time() -> None:
    rig = Rig()
    rig.hello()
    said = rig.publish(1, crc=123)
    assert acked(said) == []
    (refused,) = of(said, Type.REFUSE)
    assert (refused.h.b, refused.h.e) == (1, Code.BAD_CHECKSUM)
    assert acked(rig.publish(1)) == [1]
    assert rig.logs["t"].read(0, 0, 10).records["seq"].tolist() == [1]


def test_r04_a_resend_does_not_ride_to_its_ack_with_a_batch_that_is_then_refused() -> None:
    """The first attempt's payload was damaged; before the writer saw that, the same seq came again, and looked known."""
    rig = Rig(commits=False)
    rig.hello()
    rig.publish(1, crc=123)
    rig.hello(b"p2", generation=2)
    rig.publish(1, conn=b"p2", generation=2)
    said = rig.commit()
    assert acked(said) == []
    assert of(said, Type.REFUSE)[0].h.b == 1


def test_r04_a_snapshot_does_not_know_what_the_writer_is_about_to_refuse() -> None:
    """The broker dies right after the snapshot: what it called known would be in no log, and never sent again."""
    rig = Rig(commits=False)
    rig.hello()
    rig.publish(1, crc=123)
    rig.turn((ev.DISK, "t", 0, [0], False, True))
    rig.turn()
    assert any(hand.snapshot for hand in rig.hands)
    rig._write()
    rig.restart()
    rig.commits = True
    rig.hello(generation=2)
    assert acked(rig.publish(1, generation=2)) == [1]
    assert rig.topic.duplicates == 0


def test_r04_a_seq_outside_the_window_is_refused() -> None:
    rig = Rig(BrokerConfig(window_seqs=10))
    rig.hello()
    (refused,) = of(rig.publish(12), Type.REFUSE)
    assert refused.h.e == Code.BAD_MESSAGE
    assert acked(rig.publish(11)) == [11]


def test_r05_a_session_is_known_again_after_a_restart_and_its_batches_are_not_taken_twice() -> None:
    rig = Rig()
    assert not of(rig.hello(), Type.WELCOME)[0].h.flags & Flag.KNOWN
    rig.publish(1, 2)
    rig.restart()
    assert of(rig.hello(generation=2), Type.WELCOME)[0].h.flags & Flag.KNOWN
    assert acked(rig.publish(2, generation=2)) == [2]
    assert rig.topic.partitions[0].next_offset == 2


def test_r05_session_state_survives_in_the_snapshot_of_a_roll() -> None:
    rig = Rig()
    rig.hello()
    rig.publish(1, 2)
    rig.turn((ev.DISK, "t", 0, [0], False, True))
    rig.publish(3)
    rig.restart()
    session = rig.core.state.sessions[7]
    assert [session.knows(seq) for seq in (1, 2, 3, 4)] == [True, True, True, False]


def test_r05_a_roll_takes_one_snapshot_however_often_the_log_asks_meanwhile() -> None:
    rig = Rig(commits=False)
    rig.hello()
    asks = (ev.DISK, "t", 0, [0], False, True)
    for seq in (1, 2, 3):
        rig.turn(asks)
        rig.publish(seq)
    assert [hand.snapshot is not None for hand in rig.hands] == [True, False, False]
    rig.commit()
    rig.turn(asks)
    rig.publish(4)
    assert any(hand.snapshot for hand in rig.hands)


def test_r05_a_newer_incarnation_fences_the_older() -> None:
    rig = Rig()
    rig.hello(incarnation=1)
    said = rig.hello(b"p2", incarnation=2, generation=2)
    assert [(s.conn, s.h.e) for s in of(said, Type.ERROR)] == [(b"p1", Code.FENCED)]
    (late,) = of(rig.hello(b"p3", incarnation=1, generation=3), Type.ERROR)
    assert late.h.e == Code.FENCED
    assert rig.core.state.sessions[7].conn == b"p2"


def test_r05_a_clock_that_is_set_makes_no_session_old() -> None:
    rig = Rig()
    rig.hello()
    rig.publish(1)
    rig.wall_ms += 30 * 86_400_000
    rig.wait(2)
    rig.restart()
    rig.hello(generation=2)
    rig.publish(1, generation=2)
    assert rig.topic.duplicates == 1


def test_r05_sessions_that_were_long_unused_are_forgotten() -> None:
    rig = Rig(BrokerConfig(producer_expiry_s=60, liveness_s=5))
    rig.hello()
    rig.publish(1)
    rig.wait(70)
    assert 7 not in rig.core.state.sessions


def test_r06_credit_is_the_total_since_welcome_and_never_above_the_pool() -> None:
    rig = Rig(BrokerConfig(ingress_pool_bytes=100_000, credit_floor_bytes=10_000))
    (welcome,) = of(rig.hello(wanted=30_000), Type.WELCOME)
    assert welcome.h.b >= 30_000
    assert rig.core.state.pool.outstanding_bytes <= 100_000


def test_r06_what_is_above_the_credit_is_dropped_counted_and_refused() -> None:
    rig = Rig(BrokerConfig(ingress_pool_bytes=1 << 20, credit_floor_bytes=4096))
    rig.hello()
    (refused,) = of(rig.publish(1, payload=b"x" * 900_000), Type.REFUSE)
    assert refused.h.e == Code.OVER_CREDIT
    assert rig.core.state.counters.over_credit == 1
    assert rig.topic.partitions[0].next_offset == 0


def test_r06_credit_returns_with_the_ack_and_when_a_producer_goes() -> None:
    rig = Rig(commits=False)
    rig.hello()
    before = rig.core.state.pool.outstanding_bytes
    rig.publish(1)
    rig.commit()
    session = rig.core.state.sessions[7]
    assert session.freed_bytes == session.received_bytes
    assert before > 0
    rig.message(b"p1", protocol.pack(Type.BYE, 1))
    assert rig.core.state.pool.outstanding_bytes == 0


def test_r06_a_hello_that_was_said_twice_does_not_begin_again() -> None:
    rig = Rig()
    rig.hello()
    rig.publish(1)
    granted = rig.core.state.sessions[7].granted_bytes
    (welcome,) = of(rig.hello(), Type.WELCOME)
    assert welcome.h.b == granted
    assert rig.core.state.sessions[7].received_bytes > 0


def test_r06_a_second_session_on_one_connection_ends_the_first() -> None:
    rig = Rig()
    rig.hello(session=7)
    rig.hello(session=8, generation=2)
    assert rig.core.state.sessions[7].conn is None
    assert rig.core.state.pool.sessions == 1


def test_r06_a_stopped_topic_returns_its_producers_credit_to_the_others() -> None:
    rig = Rig()
    rig.hello()
    said = rig.turn((ev.LOG_STOPPED, "t", "the disk is gone"))
    assert of(said, Type.ERROR)[0].h.e == Code.TOPIC_STOPPED
    assert rig.core.state.pool.outstanding_bytes == 0


def test_r07_a_batch_that_another_log_may_hold_is_doubtful_and_waits_until_no_insert_can_be_on_its_way() -> None:
    rig = Rig(BrokerConfig(in_flight_max_s=5))
    rig.subscribe()
    rig.hello()
    said = rig.publish(1, flags=Flag.RESENT) + rig.wait(4)
    assert deliveries(said) == []
    rig.heartbeat()
    (delivery,) = deliveries(rig.wait(2))
    assert delivery.maybe_repeat


def test_r07_the_wait_begins_when_the_batch_comes_not_when_it_is_given_out() -> None:
    """An ordered group would wait anew for each of its ranges, one after the other."""
    rig = Rig(BrokerConfig(in_flight_max_s=5))
    rig.hello()
    rig.publish(1, flags=Flag.RESENT)
    rig.wait(4)
    rig.heartbeat()
    rig.wait(2)
    (delivery,) = deliveries(rig.subscribe() + rig.wait(1))
    assert delivery.maybe_repeat


def test_r11_a_full_topic_gets_no_credit_and_gets_it_again_when_there_is_room() -> None:
    rig = Rig()
    rig.hello()
    rig.turn((ev.DISK, "t", 1 << 40, [0], False, False))
    assert rig.topic.disk_full
    said = rig.message(b"p1", protocol.pack(Type.HEARTBEAT, 1, d=10_000_000))
    assert of(said, Type.HEARTBEAT)[0].h.b < 10_000_000
    said = rig.turn((ev.DISK, "t", 0, [0], False, False))
    assert of(said, Type.HEARTBEAT)[0].h.b >= 10_000_000


def test_r11_outstanding_credit_counts_as_used_disk() -> None:
    rig = Rig(topic=TopicConfig(partitions=1, disk_bytes_max=1 << 20))
    rig.hello(wanted=500_000)
    rig.turn((ev.DISK, "t", 600_000, [0], False, False))
    assert rig.topic.disk_full


def test_r13_a_log_that_has_lost_records_tells_its_producers_what_to_doubt() -> None:
    """A record that was delivered and then rotted is asked for again by a producer that missed its ack."""
    rig = Rig()
    rig.hello()
    rig.publish(1, 2, payload=b"rotten")
    rig.publish(3)
    assert b"doubt_below" not in of(rig.hello(generation=2), Type.WELCOME)[0].frames[1]
    path = rig.logs["t"].active_path
    rig.disks["t"].flip_bit(path, rig.disks["t"].platter(path).index(b"rotten"))
    rig.restart()
    options = protocol.unpack_options(of(rig.hello(generation=3), Type.WELCOME)[0].frames[1])
    assert options["doubt_below"] == 5  # 3 is known, and one record is lost

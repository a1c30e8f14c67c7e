"""The broker's side of consumers, rule by rule (R9, R13, R20-R28)."""

from __future__ import annotations

import pytest

from tests.helpers.core_rig import Rig, Sent, deliveries, of
from zmqbroker import protocol
from zmqbroker.core import events as ev
from zmqbroker.core.config import BrokerConfig, TopicConfig
from zmqbroker.core.state import open_envelope
from zmqbroker.protocol import Code, Type, WorkState


def bench(credit: int = 9, partitions: int = 1, **options: object) -> Rig:
    """A producer and a consumer of group ``g``; whatever is published is sealed at once."""
    rig = Rig(topic=TopicConfig(partitions=partitions))
    rig.subscribe(credit=credit, **{"linger_ms": 0, "max_rows": 10, "seal_interval_ms": 0, **options})
    rig.hello()
    return rig


def one(said: list[Sent]) -> Sent:
    (delivery,) = deliveries(said)
    return delivery


def alive(rig: Rig, seconds: float, *conns: bytes) -> list[Sent]:
    """Time passes while these consumers send their heartbeats."""
    said: list[Sent] = []
    for _ in range(round(seconds)):
        said += rig.wait(1.0)
        for conn in conns or (b"c1",):
            said += rig.heartbeat(conn)
    return said


# --- R9, R13, R21: seals


def test_r09_nothing_is_delivered_before_it_is_synced() -> None:
    rig = bench()
    rig.commits = False
    assert deliveries(rig.publish(1)) == []
    assert one(rig.commit()).seqs == [1]


def test_r13_a_first_delivery_is_certain_and_a_second_doubtful() -> None:
    rig = bench()
    delivery = one(rig.publish(1))
    assert not delivery.maybe_repeat
    again = one(rig.nack(delivery) + alive(rig, 2))
    assert again.maybe_repeat
    assert again.h.e == 2


def test_r13_what_was_sealed_and_not_settled_before_a_crash_is_doubtful() -> None:
    rig = bench()
    delivery = one(rig.publish(1))
    rig.restart()
    rig.subscribe(generation=2, linger_ms=0, max_rows=10, seal_interval_ms=0)
    again = one(rig.wait(4))
    assert (again.h.a, again.h.b, again.h.c) == (delivery.h.a, delivery.h.b, delivery.h.c)
    assert again.maybe_repeat


def test_r13_a_group_made_anew_doubts_what_another_was_given() -> None:
    """A collector that comes back after its group has expired, or under another group's name."""
    rig = bench()
    rig.settle(one(rig.publish(1)))
    again = one(rig.subscribe(b"c2", 2, group="other", linger_ms=0) + rig.wait(0.5))
    assert again.maybe_repeat
    rig.publish(2)
    rig.wait(0.5)


def test_r13_a_lost_journal_makes_everything_doubtful_and_reuses_no_id() -> None:
    rig = bench()
    delivery = one(rig.publish(1))
    rig.publish(2)  # what lies at the very end of a log could be a torn write
    generation = rig.group().generation
    path = rig.logs["t"].active_path
    seal = rig.disks["t"].platter(path).index(b'["s","g"')
    rig.disks["t"].flip_bit(path, seal + 2)
    rig.restart()
    for _ in range(2):  # and it stays so
        assert rig.topic.next_range_id > 1 << 32
        assert rig.group().generation > generation
        assert (rig.group().parts[0].repeat_below, rig.group().parts[0].floor) == (2, 0)
        rig.restart()
    rig.hello(generation=2)
    rig.subscribe(generation=2, linger_ms=0, max_rows=10, seal_interval_ms=0)
    again = one(rig.wait(4))
    assert again.seqs == [1]
    assert again.h.a != delivery.h.a
    assert again.maybe_repeat


def test_r21_bounds_and_id_of_a_range_survive_a_crash_and_no_id_is_used_twice() -> None:
    rig = bench(credit=3)
    first = deliveries(rig.publish(1) + rig.publish(2))
    rig.restart()
    rig.hello(generation=2)
    rig.subscribe(generation=2, credit=5, linger_ms=0, max_rows=10, seal_interval_ms=0)
    rig.publish(3, generation=2)
    rig.wait(4)
    bounds: dict[int, set[tuple[int, int]]] = {}
    for delivery in deliveries(rig.sent):
        bounds.setdefault(delivery.h.a, set()).add((delivery.h.b, delivery.h.c))
    assert list(bounds.values()) == [{(0, 0)}, {(1, 1)}, {(2, 2)}]
    assert len(first) == 2


def test_r21_a_subscribe_with_other_settings_is_refused() -> None:
    rig = bench()
    (error,) = of(rig.subscribe(b"c2", 2, max_rows=11, linger_ms=0, seal_interval_ms=0), Type.ERROR)
    assert error.h.e == Code.GROUP_DIFFERS
    assert b"max_rows is 10, not 11" in error.frames[0]


def test_r21_an_ack_counts_from_any_attempt_of_the_generation() -> None:
    rig = bench()
    first = one(rig.publish(1))
    one(rig.nack(first) + alive(rig, 2))
    rig.settle(first)
    assert not rig.group().ranges


def test_r21_nack_and_working_count_from_the_current_attempt_alone() -> None:
    rig = bench()
    first = one(rig.publish(1))
    second = one(rig.nack(first) + alive(rig, 2))
    assert rig.nack(first) == []
    range_ = rig.group().ranges[second.h.a]
    assert range_.failures == 1
    rig.message(b"c1", protocol.pack(Type.WORKING, 1, a=first.h.a, e=first.h.e, f=first.h.f, g=WorkState.WAITING))
    assert not range_.waiting


def test_r21_an_ack_of_a_parent_settles_its_children() -> None:
    rig = bench(max_rows=100, max_attempts=1)
    parent = one(rig.publish(1, 2, 3))
    rig.nack(parent)
    assert len(rig.group().ranges) == 3
    rig.settle(parent)
    assert not rig.group().ranges


def test_r21_settlements_of_another_log_or_group_generation_settle_nothing() -> None:
    rig = bench()
    delivery = one(rig.publish(1))
    wrong = delivery._replace(h=delivery.h._replace(f=delivery.h.f + 1))
    rig.settle(wrong)
    assert rig.group().ranges


# --- R20


def test_r20_a_topic_without_a_durable_group_holds_everything() -> None:
    rig = Rig()
    rig.hello()
    rig.publish(1)
    assert rig.topic.floors() is None


def test_r20_a_durable_group_starts_at_the_earliest_record() -> None:
    rig = Rig()
    rig.hello()
    rig.publish(1, 2)
    assert one(rig.subscribe(linger_ms=0) + rig.wait(0.5)).seqs == [1, 2]


def test_r20_a_group_without_members_expires_and_says_so_but_a_paused_one_does_not() -> None:
    rig = bench(group_expiry_s=10)
    rig.message(b"c1", protocol.pack(Type.BYE, 1))
    rig.operate(lambda o: o.pause(rig.topic, rig.group(), True))
    rig.wait(15)
    assert "g" in rig.topic.groups
    rig.operate(lambda o: o.pause(rig.topic, rig.group(), False))
    rig.wait(15)
    assert "g" not in rig.topic.groups
    assert any("expired" in notice for notice in rig.notices)
    rig.restart()
    assert "g" not in rig.topic.groups


def test_r20_floors_follow_what_is_settled() -> None:
    rig = bench(credit=5)
    first, second = deliveries(rig.publish(1) + rig.publish(2))
    rig.settle(second)
    assert rig.topic.floors() == [0]
    rig.settle(first)
    assert rig.topic.floors() == [2]


# --- R22


def test_r22_deaths_split_a_range_and_a_batch_that_kills_alone_is_buried() -> None:
    rig = bench(max_rows=100, max_deaths=2)
    rig.publish(1, 2)
    for number in range(2, 12):
        conn = b"c%d" % number
        rig.turn((ev.GONE, b"c%d" % (number - 1)))
        rig.wait(6)
        rig.subscribe(conn, number, linger_ms=0, max_rows=100, seal_interval_ms=0, max_deaths=2)
        rig.heartbeat(conn)
        rig.wait(0.2)
    letters = rig.logs["t.dlq"].read(0, 0, 10)
    assert letters.records["rows"].tolist() == [10, 10]
    origin, payload = open_envelope(letters.body[: int(letters.records["length"][0])])
    assert (origin["partition"], origin["offset"], origin["group"], origin["seq"]) == (0, 0, "g", 1)
    assert bytes(payload) == b"x" * 50
    assert not rig.group().ranges


def test_r22_a_death_is_no_failure_and_a_release_is_neither() -> None:
    rig = bench()
    delivery = one(rig.publish(1))
    one(rig.nack(delivery, failure=False))
    range_ = rig.group().ranges[delivery.h.a]
    assert (range_.failures, range_.deaths) == (0, 0)
    rig.turn((ev.GONE, b"c1"))
    rig.wait(6)
    assert (range_.failures, range_.deaths, range_.deliveries) == (0, 1, 2)


def test_r22_counts_survive_a_restart() -> None:
    rig = bench()
    delivery = one(rig.publish(1))
    rig.nack(delivery)
    rig.restart()
    assert rig.group().ranges[delivery.h.a].failures == 1


# --- R23


def test_r23_heartbeats_keep_every_range_of_a_consumer() -> None:
    rig = bench(ack_timeout_s=5)
    rig.publish(1)
    assert deliveries(alive(rig, 20)) == []


def test_r23_a_silent_consumer_loses_its_ranges_is_told_and_they_wait_until_it_must_have_heard() -> None:
    rig = bench(ack_timeout_s=5)
    delivery = one(rig.publish(1))
    said = rig.wait(6.5)
    assert [s.h.e for s in of(said, Type.ERROR)] == [Code.NOT_WELCOME]
    said = rig.subscribe(b"c2", 2, linger_ms=0, max_rows=10, seal_interval_ms=0)
    assert deliveries(said) == []
    said = alive(rig, 4, b"c2")
    assert one(said).h.a == delivery.h.a


def test_r23_long_work_is_revoked_but_waiting_for_the_store_has_no_cap() -> None:
    rig = bench(max_processing_s=10)
    delivery = one(rig.publish(1))
    h = delivery.h
    rig.message(b"c1", protocol.pack(Type.WORKING, 1, a=h.a, e=h.e, f=h.f, g=WorkState.WAITING))
    assert of(alive(rig, 30), Type.REVOKE) == []
    rig.message(b"c1", protocol.pack(Type.WORKING, 1, a=h.a, e=h.e, f=h.f, g=WorkState.INSERTING))
    said = alive(rig, 12)
    assert [s.h.a for s in of(said, Type.REVOKE)] == [h.a]


def test_r23_deadlines_move_by_a_pause_of_the_broker() -> None:
    rig = bench(ack_timeout_s=5)
    rig.publish(1)
    rig.now += 60.0
    rig.heartbeat()
    assert rig.core.state.counters.pauses == 1
    assert rig.group().held == 1


def test_r23_a_member_that_comes_back_keeps_what_it_says_it_holds() -> None:
    rig = bench(credit=2)
    kept, lost = deliveries(rig.publish(1) + rig.publish(2))
    said = rig.subscribe(
        b"c2", 1, generation=2, credit=0, linger_ms=0, max_rows=10, seal_interval_ms=0,
        log=rig.topic.uuid.hex(), holding=[[kept.h.a, kept.h.e]],
    )  # fmt: skip
    assert of(said, Type.SUBSCRIBED)[0].options["holding"] == [[kept.h.a, kept.h.e]]
    assert rig.group().ranges[kept.h.a].holder is not None
    assert rig.group().ranges[lost.h.a].holder is None


def test_r23_a_claim_of_what_was_given_to_another_meanwhile_is_not_confirmed() -> None:
    """The collector would go on with bounds and rows that another one stores by now."""
    rig = bench()
    delivery = one(rig.publish(1))
    rig.turn((ev.GONE, b"c1"))
    rig.wait(6)
    one(rig.subscribe(b"c2", 2, linger_ms=0, max_rows=10, seal_interval_ms=0))
    said = rig.subscribe(
        b"c3", 1, generation=2, linger_ms=0, max_rows=10, seal_interval_ms=0,
        log=rig.topic.uuid.hex(), holding=[[delivery.h.a, 1]],
    )  # fmt: skip
    assert of(said, Type.SUBSCRIBED)[0].options["holding"] == []


def test_r23_the_attempt_of_a_member_that_outlived_the_broker_is_the_current_one() -> None:
    rig = bench()
    delivery = one(rig.publish(1))
    again = one(rig.nack(delivery) + alive(rig, 2))
    rig.restart()
    rig.subscribe(
        generation=2, linger_ms=0, max_rows=10, seal_interval_ms=0, log=rig.topic.uuid.hex(),
        holding=[[again.h.a, again.h.e]],
    )  # fmt: skip
    rig.nack(again, generation=2)
    assert rig.group().ranges[again.h.a].failures == 2


# --- R24


def test_r24_an_idle_group_is_given_what_came_at_once_and_a_busy_one_after_the_linger() -> None:
    rig = bench(credit=5, max_rows=1000, linger_ms=300)
    assert one(rig.publish(1)).seqs == [1]
    assert deliveries(rig.publish(2)) == []
    assert deliveries(rig.wait(0.2)) == []
    assert one(rig.wait(0.2)).seqs == [2]


def test_r24_nothing_is_sealed_without_credit_and_a_range_is_as_large_as_it_may_be() -> None:
    rig = bench(credit=0, max_rows=30)
    rig.publish(1, 2, 3, 4, 5)
    assert not rig.group().ranges
    assert [d.seqs for d in deliveries(rig.credit(2))] == [[1, 2, 3], [4, 5]]


def test_r24_batches_without_a_key_stay_with_one_partition() -> None:
    rig = bench(partitions=4)
    rig.publish(1, 2, 3)
    assert sorted(p.next_offset for p in rig.topic.partitions) == [0, 0, 0, 3]


# --- R25


def test_r25_one_unacked_range_a_partition_and_only_then_the_next() -> None:
    rig = bench(credit=5, mode="ordered")
    first = one(rig.publish(1) + rig.publish(2))
    assert first.seqs == [1]
    assert one(rig.settle(first)).seqs == [2]


def test_r25_a_failed_range_is_not_overtaken_also_after_a_split() -> None:
    rig = bench(credit=5, mode="ordered", max_rows=20, max_attempts=1)
    whole = one(rig.publish(1, 2))
    rig.publish(3)
    first = one(rig.nack(whole) + alive(rig, 5))
    assert first.seqs == [1]
    assert deliveries(alive(rig, 5)) == []
    second = one(rig.settle(first))
    assert second.seqs == [2]
    assert one(rig.settle(second)).seqs == [3]


def test_r25_partitions_stay_with_their_member_and_a_newcomer_gets_its_share() -> None:
    rig = bench(credit=50, partitions=2, mode="ordered")
    rig.publish(1, partition=0)
    a = deliveries(rig.publish(2, partition=1))
    assert {d.conn for d in rig.sent if d.type == Type.DELIVER} == {b"c1"}
    rig.subscribe(b"c2", 2, credit=50, mode="ordered", linger_ms=0, max_rows=10, seal_interval_ms=0)
    for delivery in [d for d in rig.sent if d.type == Type.DELIVER]:
        rig.settle(delivery)
    before = len(rig.sent)
    for seq in (3, 4):
        rig.publish(seq, partition=seq % 2)
    assert {d.conn for d in rig.sent[before:] if d.type == Type.DELIVER} == {b"c1", b"c2"}
    assert len(a) == 1


def test_r25_a_dead_letter_breaks_the_order_and_says_so() -> None:
    rig = bench(mode="ordered")
    rig.nack(one(rig.publish(1)), dead=True)
    assert rig.group().order_breaks == 1
    assert any("order" in notice for notice in rig.notices)


def test_r25_a_pause_freezes_the_clocks_of_a_group() -> None:
    rig = bench(max_processing_s=10, retry_backoff_s=5.0)
    delivery = one(rig.publish(1))
    rig.nack(delivery)
    rig.operate(lambda o: o.pause(rig.topic, rig.group(), True))
    assert deliveries(alive(rig, 30)) == []
    rig.operate(lambda o: o.pause(rig.topic, rig.group(), False))
    assert deliveries(alive(rig, 1)) == []
    assert one(alive(rig, 6)).h.e == 2


# --- R26


def test_r26_only_the_named_records_are_buried_before_the_ack() -> None:
    rig = bench(max_rows=100)
    delivery = one(rig.publish(1, 2, 3))
    rig.settle(delivery, dead=(1,))
    letters = rig.logs["t.dlq"].read(0, 0, 10)
    origin, _ = open_envelope(letters.body)
    assert (origin["log"], origin["seq"], origin["reason"]) == (rig.topic.uuid.hex(), 2, "bad rows")
    assert rig.group().dead_rows == 10
    assert not rig.group().ranges


def test_r26_a_letter_is_written_once_an_origin_though_the_broker_dies_before_the_settlement() -> None:
    rig = bench()
    delivery = one(rig.publish(1))
    rig.commits = False
    rig.nack(delivery, dead=True)
    rig._write()  # the letter is durable, and nobody hears of it
    rig.restart()
    rig.commits = True
    rig.subscribe(generation=2, linger_ms=0, max_rows=10, seal_interval_ms=0)
    again = one(rig.wait(4))
    rig.nack(again, generation=2, dead=True)
    assert len(rig.logs["t.dlq"].read(0, 0, 10).records) == 1
    assert not rig.group().ranges


def test_r26_redrive_goes_to_the_group_alone_keeps_the_address_and_the_letter_until_it_is_stored() -> None:
    rig = bench(credit=5)
    rig.nack(one(rig.publish(1)), dead=True)
    rig.subscribe(b"c9", 9, group="other", credit=9, start="latest", linger_ms=0)
    _, said = rig.operate(lambda o: o.redrive(rig.topic, rig.group(), 0, 0, 0, 10, 50))
    again = one(said)
    assert (again.conn, again.seqs, again.h.b, again.maybe_repeat) == (b"c1", [1], 0, True)
    assert again.frames[1] == b"x" * 50
    letters = rig.core.topics["t.dlq"].letters
    assert letters is not None
    assert 0 in letters
    rig.settle(again)
    assert 0 not in letters
    assert rig.core.topics["t.dlq"].floors() == [1]


def test_r26_a_redriven_letter_that_fails_again_stays_where_it_is() -> None:
    rig = bench(credit=5)
    rig.nack(one(rig.publish(1)), dead=True)
    _, said = rig.operate(lambda o: o.redrive(rig.topic, rig.group(), 0, 0, 0, 10, 50))
    rig.nack(one(said), dead=True)
    assert not rig.group().ranges
    assert len(rig.logs["t.dlq"].read(0, 0, 10).records) == 1
    rig.restart()
    letters = rig.core.topics["t.dlq"].letters
    assert letters is not None
    assert letters.live(1) == [[0, 0]]


def test_r26_a_letter_whose_record_comes_anyway_after_a_reset_is_not_redriven_beside_it() -> None:
    """Two ranges over one offset could be inserted by two collectors at once (R14)."""
    rig = bench(credit=5)
    rig.nack(one(rig.publish(1)), dead=True)
    _, said = rig.operate(lambda o: o.reset_group(rig.topic, rig.group(), [0]))
    assert one(said).seqs == [1]
    made, _ = rig.operate(lambda o: o.redrive(rig.topic, rig.group(), 0, 0, 0, 10, 50))
    assert made is None


# --- R27


def test_r27_a_reset_makes_a_new_generation_and_what_was_sealed_before_is_doubtful() -> None:
    rig = bench(credit=9)
    first = one(rig.publish(1))
    rig.settle(first)
    second = one(rig.publish(2))
    rig.operate(lambda o: o.reset_group(rig.topic, rig.group(), [0]))
    said = alive(rig, 5)
    assert [s.h.a for s in of(rig.sent, Type.REVOKE)] == [second.h.a]
    again = deliveries(said)
    assert [d.seqs for d in again] == [[1], [2]]
    assert all(d.maybe_repeat and d.h.f == second.h.f + 1 for d in again)
    rig.settle(second)
    assert len(rig.group().ranges) == 2


def test_r27_a_replayed_range_has_a_token_of_its_own() -> None:
    """The token of the first time may still be in the store's window, and would swallow a repair."""
    rig = bench(credit=9)
    first = one(rig.publish(1))
    rig.settle(first)
    _, said = rig.operate(lambda o: o.replay(rig.topic, rig.group(), [(0, 0, 0, 10, 50)]))
    again = one(said)
    assert again.maybe_repeat
    assert again.h.d != first.h.d


def test_r21_the_id_of_a_replayed_range_is_not_used_twice_after_a_crash() -> None:
    """Of two ranges with one id the earlier was forgotten, and never settled."""
    rig = bench(credit=9)
    rig.settle(one(rig.publish(1)))
    _, said = rig.operate(lambda o: o.replay(rig.topic, rig.group(), [(0, 0, 0, 10, 50)]))
    replayed = one(said)
    rig.restart()
    rig.hello(generation=2)
    rig.subscribe(generation=2, credit=9, linger_ms=0, max_rows=10, seal_interval_ms=0)
    rig.publish(2, generation=2)
    rig.wait(4)
    ids = {(d.h.b, d.h.c): d.h.a for d in deliveries(rig.sent)}
    assert ids[0, 0] == replayed.h.a
    assert ids[1, 1] > replayed.h.a


def test_r27_what_is_being_delivered_is_not_replayed() -> None:
    rig = bench(credit=9)
    one(rig.publish(1))
    assert rig.core.operating.replay(rig.topic, rig.group(), [(0, 0, 0, 10, 50)]) == []


# --- R28


def test_r28_a_range_of_voids_alone_is_settled_and_nobody_is_given_it() -> None:
    rig = bench(credit=2)
    assert deliveries(rig.publish(1, crc=5)) == []
    assert not rig.group().ranges
    assert one(rig.publish(1)).seqs == [1]


def test_r28_what_a_read_finds_damaged_becomes_a_gap_record_and_is_counted() -> None:
    rig = bench()
    rig.turn((ev.READ, _read(rig), b"", b"", ((0, 3, 4, "bit rot"),)))
    assert rig.topic.lost_messages == 2
    rig.restart()
    assert rig.topic.lost_messages == 2


def _read(rig: Rig) -> object:
    from zmqbroker.core.effects import Read

    return Read(ev.DELIVER, "t", "g", 999, 0, 3, 4, 1)


def test_r28_a_topics_first_record_that_was_damaged_on_its_way_is_lost_to_nobody() -> None:
    """It was refused and sent again under its own seq; the log holds a void where a dropped record would be missing."""
    rig = Rig()
    rig.hello()
    rig.publish(1, crc=123)
    stats = rig.logs["t"].stats()
    rig.turn((ev.DISK, "t", stats.bytes, stats.first_offsets, False, False))
    rig.subscribe(linger_ms=0)
    delivery = one(rig.publish(1) + rig.wait(0.5))
    assert delivery.seqs == [1]
    rig.settle(delivery)
    assert (rig.group().lost_messages, rig.topic.lost_messages, rig.notices) == (0, 0, [])
    assert not of(rig.sent, Type.GAP)


def test_r28_an_ephemeral_reader_is_told_of_what_it_missed_and_never_touches_the_journal() -> None:
    rig = Rig()
    rig.hello()
    rig.subscribe(b"tail", 1, group="tail", durable=False, credit=0, linger_ms=0)
    rig.publish(1, 2, 3)
    rig.turn((ev.DISK, "t", 0, [2], False, False))
    (gap,) = of(rig.sent, Type.GAP)
    assert (gap.h.b, gap.h.c) == (0, 1)
    delivery = one(rig.credit(9, b"tail") + rig.wait(0.5))
    assert delivery.seqs == [3]
    rig.nack(delivery, b"tail", dead=True)
    assert all(a[0] != 2 for hand in rig.hands for a in hand.appends)
    assert "t.dlq" not in rig.core.topics
    rig.restart()
    assert not rig.topic.groups


def test_r28_a_durable_group_that_was_overtaken_by_drop_oldest_is_told_and_it_is_counted() -> None:
    rig = bench(credit=0)
    rig.publish(1, 2, 3)
    rig.turn((ev.DISK, "t", 0, [2], False, False))
    assert [(g.h.b, g.h.c) for g in of(rig.sent, Type.GAP)] == [(0, 1)]
    assert rig.group().lost_messages == 2
    rig.restart()
    assert rig.group().parts[0].sealed_next == 2


# --- credit of consumers (R6)


def test_r06_a_delivery_that_was_read_for_nothing_returns_its_credit() -> None:
    """The range was settled by an earlier attempt while it was read for the next one."""
    rig = Rig(BrokerConfig(tail_bytes=0), TopicConfig(partitions=1))
    rig.subscribe(linger_ms=0, max_rows=10, seal_interval_ms=0)
    rig.hello()
    first = one(rig.publish(1))
    rig.topic.partitions[0].shrink(0)
    rig.answers = False
    rig.nack(first, failure=False)
    rig.credit(2)
    rig.wait(1)
    assert rig.questions
    rig.settle(first)
    rig.answer()
    member = rig.group().members[b"c1"]
    assert (member.credit, member.delivered) == (2, 1)


def test_r06_a_subscribe_that_was_said_twice_gives_nothing_twice() -> None:
    rig = Rig()
    rig.hello()
    rig.publish(1)
    first = rig.subscribe(linger_ms=0)
    first += rig.wait(0.3)
    assert len(deliveries(first)) == 1
    again = rig.subscribe(linger_ms=0)
    assert len(of(again, Type.SUBSCRIBED)) == 1
    assert deliveries(again + rig.wait(0.3)) == []


def test_r06_a_subscribe_that_was_said_twice_counts_the_credit_of_the_second() -> None:
    """What the member held was taken from it between the two, so that it had more room: no CREDIT would say so."""
    rig = Rig()
    rig.hello()
    rig.publish(1)
    rig.subscribe(linger_ms=0, credit=0)
    assert deliveries(rig.subscribe(linger_ms=0, credit=1) + rig.wait(0.3)) != []


@pytest.mark.parametrize(
    "options",
    [
        {"group": 5}, {"group": ""}, {"group": "g", "max_rows": "many"}, {"group": "g", "max_rows": 0},
        {"group": "g", "max_rows": float("nan")}, {"group": "g", "max_rows": 1.5}, {"group": "g", "mode": "random"},
        {"group": "g", "durable": 1}, {"group": "g", "start": "yesterday"}, {"group": "g", "retry_backoff_s": "x"},
        {"group": "g", "ack_timeout_s": 0.1}, {"group": "g", "linger_ms": True},
    ],
)  # fmt: skip
def test_a_subscribe_with_bad_options_is_refused_with_a_reason(options: dict) -> None:
    rig = Rig()
    header = protocol.pack(Type.SUBSCRIBE, 1, a=1, b=1)
    (error,) = of(rig.message(b"c1", header, b"t", protocol.pack_options(options)), Type.ERROR)
    assert error.h.e == Code.BAD_MESSAGE
    assert "t" not in rig.core.topics or not rig.topic.groups


def test_claims_that_are_not_pairs_of_numbers_claim_nothing() -> None:
    rig = bench()
    rig.publish(1)
    for holding in (5, [1], [[1]], [["a", "b"]], {"1": 1}, [[None, 1]]):
        rig.subscribe(
            generation=9, linger_ms=0, max_rows=10, seal_interval_ms=0, log=rig.topic.uuid.hex(), holding=holding
        )

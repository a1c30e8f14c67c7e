"""The engine with fakes for broker and store: what is stored, acknowledged, given back and counted."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque

import pytest

from consumers.breaker import BreakerPolicy
from consumers.collector import Collector, CollectorSettings
from consumers.merge import Address
from consumers.stats import Stats
from consumers.validate import MS_A_DAY, Rules
from tests.helpers.collector_fakes import FakeStore, ScriptedSource
from tests.helpers.deliveries import NOON_MS, Row, delivery_of, gpu, simple_rows

QUICK = BreakerPolicy(wait_s_min=0.01, wait_s_max=0.05)


def deliveries(count: int, batches: int = 3, rows: int = 20, **fields):
    return [
        delivery_of(
            [(7, n * batches + b, simple_rows(rows)) for b in range(batches)], first=n * batches, range_id=n, **fields
        )
        for n in range(count)
    ]


class Running:
    """A collector over fakes, stopped at the end."""

    def __init__(self, source: ScriptedSource, store: FakeStore, workers: int = 2, rules: Rules | None = None) -> None:
        self.source, self.store = source, store
        self.stats = Stats(lambda: NOON_MS + 6_000)
        settings = CollectorSettings(workers=workers, credit=2 * workers, rules=rules or Rules(), breaker=QUICK)
        self.collector = Collector(source, store.open, settings, log=logging.getLogger("test"), stats=self.stats)

    def __enter__(self) -> Running:
        self.collector.start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self.collector.stop(5.0)

    def settled(self, count: int) -> None:
        assert self.source.wait(lambda: len(self.source.acks) >= count), self.stats.as_dict()


def test_every_row_of_every_delivery_is_stored_once_and_acknowledged():
    source, store = ScriptedSource(deliveries(10)), FakeStore()
    with Running(source, store) as running:
        running.settled(10)
    assert store.by_batch() == {(7, seq): 20 for seq in range(30)}
    assert max(store.rows.values()) == 1
    assert store.counted == 0, "a certain range needs no question"
    figures = running.stats.as_dict()
    assert (figures["received_rows"], figures["stored_rows"], figures["inserts"]) == (600, 600, 10)
    assert figures["lag_seconds"] == 1.0
    assert figures["deliveries_in_hand"] == 0


def test_r02_the_token_names_range_day_and_boot_and_the_query_id_is_its_own():
    source, store = ScriptedSource(deliveries(2)), FakeStore()
    with Running(source, store) as running:
        running.settled(2)
    calls = sorted(store.calls, key=lambda call: call.token)
    assert [call.token for call in calls] == [
        "00112233445566778899aabbccddeeff/1/0/0-2/2025-11-20/boot-1",
        "00112233445566778899aabbccddeeff/1/0/3-5/2025-11-20/boot-1",
    ]
    assert len({call.query_id for call in calls}) == 2
    assert calls[0].query_id.startswith("collector/00112233445566778899aabbccddeeff/0/0-2/2025-11-20/")


@pytest.mark.parametrize("fault", ["lost-after", "lost-before", "away", "busy", "restart-after"])
def test_r13_one_fault_at_the_insert_neither_loses_nor_doubles(fault):
    store = FakeStore(script={"samples": deque([fault])})
    source = ScriptedSource(deliveries(4))
    with Running(source, store) as running:
        running.settled(4)
    assert store.by_batch() == {(7, seq): 20 for seq in range(12)}
    assert source.nacks == []


def test_r13_a_repeat_is_found_and_not_inserted_again():
    source, store = ScriptedSource(deliveries(2)), FakeStore()
    with Running(source, store) as running:
        running.settled(2)
    again = ScriptedSource(deliveries(2, maybe_repeat=True, attempt=2))
    store.restart()  # a token of the earlier boot proves nothing: the rows must be asked for
    calls = len(store.calls)
    with Running(again, store) as running:
        running.settled(2)
    assert len(store.calls) == calls
    assert store.by_batch() == {(7, seq): 20 for seq in range(6)}
    assert running.stats.as_dict()["duplicates_avoided_rows"] == 120


def test_r14_what_an_earlier_holder_has_running_is_killed_before_the_rest_is_sent():
    source, store = ScriptedSource(deliveries(1, maybe_repeat=True, attempt=2)), FakeStore()
    log = source._ready[0].log_uuid
    mine = [f"collector/{log}/0/2-9/2025-11-20/aa", f"collector/{log}/0/0-0/2025-11-20/bb"]
    others = [f"collector/{log}/0/3-9/2025-11-20/cc", f"collector/{log}/1/0-9/2025-11-20/dd", "collector/ff/0/0-2/x/ee"]
    store.running = mine + others
    with Running(source, store) as running:
        running.settled(1)
    assert store.killed == mine
    assert store.by_batch() == {(7, seq): 20 for seq in range(3)}


def test_r12_nothing_is_sent_for_a_range_whose_lease_is_over():
    source, store = ScriptedSource(deliveries(2)), FakeStore()
    source.lost.add(0)
    with Running(source, store) as running:
        running.settled(1)
    assert store.by_batch() == {(7, seq): 20 for seq in (3, 4, 5)}
    assert [delivery.range_id for delivery, *_ in source.acks] == [1]
    assert running.stats.as_dict()["deliveries"]["lease_over"] == 1
    assert [(delivery.range_id, failure) for delivery, _, failure in source.nacks] == [(0, False)]


def test_r15_a_range_over_midnight_is_one_insert_a_day():
    midnight = (NOON_MS // MS_A_DAY + 1) * MS_A_DAY
    rows = simple_rows(100, start_ms=midnight - 50)
    source, store = ScriptedSource([delivery_of([(1, 1, rows)], appended_ms=midnight)]), FakeStore()
    with Running(source, store) as running:
        running.settled(1)
    assert [(call.token.split("/")[4], call.rows) for call in store.calls] == [("2025-11-20", 50), ("2025-11-21", 50)]


def test_r17_rejected_rows_are_stored_once_with_their_reason_and_the_rest_goes_on():
    bad = [Row(NOON_MS - 30 * MS_A_DAY, gpu(0), "m", 1.0), Row(NOON_MS, gpu(0), "m", float("nan"))]
    for fault in ("", "lost-after", "lost-before"):
        store = FakeStore(script={"rejects": deque([fault])})
        source = ScriptedSource([delivery_of([(1, 1, simple_rows(5) + bad), (1, 2, bad)])])
        with Running(source, store) as running:
            running.settled(1)
        assert store.by_batch() == {(1, 1): 5}
        assert sorted(store.rejects) == [(1, 1, 5, 4), (1, 1, 6, 2), (1, 2, 7, 4), (1, 2, 8, 2)]
        assert max(store.rejects.values()) == 1
        assert source.acks[0][1] == 4
        reasons = running.stats.as_dict()["rejected_by_reason"]
        assert (reasons["older_than_retention"], reasons["not_finite"]) == (2, 2)


def test_an_undecodable_batch_goes_to_the_dead_letters_alone():
    (delivery,) = deliveries(1)
    delivery.bodies[1] = b"garbage"
    source, store = ScriptedSource([delivery]), FakeStore()
    with Running(source, store) as running:
        running.settled(1)
    ((_, rejected, offsets, reason),) = source.acks
    assert (rejected, offsets) == (0, [1])
    assert "undecodable" in reason
    assert store.by_batch() == {(7, 0): 20, (7, 2): 20}


def test_a_range_of_nothing_but_garbage_is_settled_as_dead():
    (delivery,) = deliveries(1)
    delivery.bodies = [b"x"] * 3
    source, store = ScriptedSource([delivery]), FakeStore()
    with Running(source, store) as running:
        running.settled(1)
    assert source.acks[0][2] == [0, 1, 2]
    assert store.calls == []


def test_of_a_refused_range_only_the_culprit_goes_to_the_dead_letters():
    store = FakeStore(refuses=lambda addresses: Address(7, 5) in addresses)
    source = ScriptedSource(deliveries(1, batches=8))
    with Running(source, store) as running:
        running.settled(1)
    assert source.acks[0][2] == [5]
    assert store.by_batch() == {(7, seq): 20 for seq in range(8) if seq != 5}
    assert running.stats.as_dict()["dead_rows"] == 20


def test_strange_answers_give_the_range_back_as_failed():
    store = FakeStore(script={"samples": deque(["strange"] * 5)})
    source = ScriptedSource(deliveries(1))
    with Running(source, store):
        assert source.wait(lambda: bool(source.nacks))
    assert [failure for _, _, failure in source.nacks] == [True]


def test_r23_while_the_store_is_away_nothing_is_taken_one_range_waits_and_all_is_stored_when_it_returns():
    source, store = ScriptedSource(deliveries(20)), FakeStore(script={"samples": deque(["", "", "", "down"])})
    with Running(source, store, workers=3) as running:
        running.settled(3)
        deadline = time.monotonic() + 5
        while running.collector.breaker.closed:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(0.2)
        assert source.credits[-1] == 0
        assert not running.collector.breaker.closed
        in_hand = running.stats.as_dict()["deliveries_in_hand"]
        assert in_hand <= 1, "only the probe keeps its range"
        assert all(not failure for _, _, failure in source.nacks)
        store.restart()
        store.up = True
        running.settled(20)
    assert store.by_batch() == {(7, seq): 20 for seq in range(60)}
    assert "waiting" in source.states or in_hand == 0
    assert max(store.rows.values()) == 1


def test_no_credit_is_granted_before_the_store_has_answered():
    source, store = ScriptedSource(deliveries(1)), FakeStore(up=False)
    with Running(source, store) as running:
        time.sleep(0.1)
        assert source.credits == []
        store.up = True
        running.settled(1)
        assert source.credits == [4]


def test_a_stop_finishes_what_is_in_hand_and_gives_back_the_rest():
    source, store = ScriptedSource(deliveries(200)), FakeStore()
    running = Running(source, store)
    with running:
        running.settled(3)
    acked = {delivery.range_id for delivery, *_ in source.acks}
    assert store.by_batch() == {(7, r * 3 + b): 20 for r in acked for b in range(3)}, "stored is acknowledged"
    assert source.credits[-1] == 0
    assert all(not failure for _, _, failure in source.nacks)
    assert running.stats.as_dict()["deliveries_in_hand"] == 0


def test_a_stop_while_the_store_is_away_gives_everything_back_at_once():
    source, store = ScriptedSource(deliveries(10)), FakeStore(script={"samples": deque(["", "down"])})
    running = Running(source, store)
    with running:
        running.settled(1)
        time.sleep(0.1)
        started = time.monotonic()
    assert time.monotonic() - started < 2
    assert running.stats.as_dict()["deliveries_in_hand"] == 0


def test_r12_after_the_time_to_drain_is_over_no_further_insert_is_begun():
    """The process is about to leave and its ranges are about to be another's: a slow answer must not start the next."""
    midnight = (NOON_MS // MS_A_DAY + 1) * MS_A_DAY
    two_days = delivery_of([(1, 1, simple_rows(100, start_ms=midnight - 50))], appended_ms=midnight)
    source, store = ScriptedSource([two_days]), FakeStore(slow=threading.Event())
    running = Running(source, store)
    running.collector.start()
    while not store.calls:
        time.sleep(0.01)
    assert not running.collector.stop(0.2), "one insert has no answer yet"
    store.slow.set()
    assert running.collector.stop(5.0)
    assert [call.token.split("/")[4] for call in store.calls] == ["2025-11-20"]
    assert source.acks == []
    assert len(source.nacks) == 1


def test_a_defect_in_a_step_gives_the_range_back_as_failed_and_the_worker_goes_on(monkeypatch):
    import consumers.collector as module

    real = module.merge
    calls = []

    def broken_once(rows, reasons):
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("a defect")
        return real(rows, reasons)

    monkeypatch.setattr(module, "merge", broken_once)
    source, store = ScriptedSource(deliveries(3)), FakeStore()
    with Running(source, store) as running:
        running.settled(2)
        assert running.collector.alive
    assert [failure for _, _, failure in source.nacks] == [True]
    assert "a defect" in source.nacks[0][1]


def test_several_collectors_share_the_work_and_store_every_row_once():
    source, store = ScriptedSource(deliveries(40)), FakeStore()
    with Running(source, store, workers=2), Running(source, store, workers=2):
        assert source.wait(lambda: len(source.acks) >= 40)
    assert store.by_batch() == {(7, seq): 20 for seq in range(120)}

"""The collector's steps against the real engine: scripted deliveries, a real store that is killed and comes back."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from clickhouse.client import StoreAddress, StoreConnection, StorePool
from consumers.breaker import BreakerPolicy
from consumers.collector import Collector, CollectorSettings
from consumers.insert import day_name
from consumers.ranges import RangeAddress
from consumers.stats import Stats
from consumers.store import ClickHouseSession, KnownLabels, open_session
from consumers.validate import MS_A_DAY
from tests.chaos.pipeline import Pipeline
from tests.helpers.collector_fakes import ScriptedSource
from tests.helpers.deliveries import FakeDelivery, Row, delivery_of, gpu, simple_rows
from tests.helpers.waiting import eventually


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    with Pipeline(tmp_path_factory.mktemp("store") / "run", rows=1) as made:
        made.store.start()
        wait_for(made)
        yield made


@pytest.fixture
def store(pipeline: Pipeline) -> Iterator[StorePool]:
    with pipeline.open_store() as pool:
        yield pool


def wait_for(pipeline: Pipeline) -> None:
    def answers() -> bool:
        with pipeline.open_store() as pool:
            return pool.has("boot")

    def asked() -> bool:
        try:
            return answers()
        except Exception as e:
            raise AssertionError(str(e)) from None

    eventually(asked, 30, "the store answers")


_session = iter(range(1000, 10**6))


def fresh(now_ms: int, batches: int = 3, rows: int = 20, **fields: object) -> FakeDelivery:
    """A range with a session of its own."""
    session = next(_session)
    made = delivery_of(
        [(session, seq, simple_rows(rows, start_ms=now_ms)) for seq in range(1, batches + 1)],
        appended_ms=now_ms + 5_000,
        log_uuid=f"{session:032x}",
        **fields,
    )
    return made


def session_of(delivery: FakeDelivery) -> int:
    return delivery.addresses[0][0]


def collect(pipeline: Pipeline, *deliveries: FakeDelivery, settled: int | None = None) -> tuple[ScriptedSource, Stats]:
    """Run a collector until the deliveries are settled."""
    source, stats, known = ScriptedSource(deliveries), Stats.of_wall_clock(), KnownLabels()
    address = StoreAddress(url=pipeline.store_url)
    collector = Collector(
        source,
        lambda: open_session(address, known, rows_max=250_000),
        CollectorSettings(breaker=BreakerPolicy(wait_s_min=0.05, wait_s_max=0.5)),
        log=logging.getLogger("test"),
        stats=stats,
    )
    collector.start()
    try:
        wanted = len(deliveries) if settled is None else settled
        assert source.wait(lambda: len(source.acks) >= wanted, 30), stats.as_dict()
    finally:
        assert collector.stop(10)
    return source, stats


def stored(store: StorePool, session: int) -> dict[int, tuple[int, int]]:
    """seq -> (rows, distinct rows)."""
    sql = """SELECT _seq, count(), uniqExact(gpu, metric, ts, value) FROM telemetry.samples
             WHERE _session = {s:UInt64} GROUP BY _seq"""
    return {seq: (rows, distinct) for seq, rows, distinct in store.query(sql, {"s": session})}


@pytest.fixture
def now_ms(store: StorePool) -> int:
    """Noon of today by the store, so that no TTL takes the rows."""
    return int(store.scalar("SELECT toUnixTimestamp(toStartOfDay(now('UTC'))) + 43200")) * 1000


def test_rows_labels_and_rejects_arrive_with_their_meaning(pipeline, store, now_ms):
    device = gpu(3, pod="train-7", namespace="ml")._replace(labels=(("rack", "r1"),))
    session = next(_session)
    rows = [
        Row(now_ms, device, "DCGM_FI_DEV_GPU_TEMP", 41.5),
        Row(now_ms + 1, gpu(4), "DCGM_FI_DEV_POWER_USAGE", float("nan")),
        Row(now_ms - 30 * MS_A_DAY, gpu(5), "my_metric", 7.0),
    ]
    collect(pipeline, delivery_of([(session, 1, rows)], appended_ms=now_ms + 10, first=77, partition=2, log_uuid="ab"))
    sql = """SELECT gpu_id, hostname, pod, namespace, extra, toString(metric), toUnixTimestamp64Milli(ts), value
             FROM telemetry.samples AS s JOIN telemetry.devices AS d ON s.gpu = d.gpu AND s.labels = d.labels
             WHERE _session = {s:UInt64}"""
    assert store.query(sql, {"s": session}) == [
        ("GPU-0003", "host-0", "train-7", "ml", {"rack": "r1"}, "DCGM_FI_DEV_GPU_TEMP", now_ms, 41.5)
    ]
    sql = """SELECT toString(reason), log, partition, offset, row, gpu_id, toString(metric), timestamp_ns, isNaN(value)
             FROM telemetry.rejects WHERE _session = {s:UInt64} ORDER BY row"""
    assert store.query(sql, {"s": session}) == [
        ("not_finite", "ab", 2, 77, 1, "GPU-0004", "DCGM_FI_DEV_POWER_USAGE", (now_ms + 1) * 10**6, 1),
        ("older_than_retention", "ab", 2, 77, 2, "GPU-0005", "my_metric", (now_ms - 30 * MS_A_DAY) * 10**6, 0),
    ]


def test_r13_a_range_that_is_there_is_found_after_a_kill_of_the_store_and_not_inserted_again(pipeline, store, now_ms):
    first = fresh(now_ms)
    collect(pipeline, first)
    pipeline.store.kill()
    pipeline.store.start()
    wait_for(pipeline)
    first.maybe_repeat, first.attempt = True, 2
    _, stats = collect(pipeline, first)
    assert stored(store, session_of(first)) == dict.fromkeys((1, 2, 3), (20, 20))
    assert (stats.as_dict()["inserts"], stats.as_dict()["duplicates_avoided_rows"]) == (0, 60)


def test_r13_a_doubtful_range_that_is_not_there_is_inserted(pipeline, store, now_ms):
    first = fresh(now_ms, maybe_repeat=True, attempt=2)
    _, stats = collect(pipeline, first)
    assert stored(store, session_of(first)) == dict.fromkeys((1, 2, 3), (20, 20))
    assert stats.as_dict()["duplicates_avoided_rows"] == 0


def test_r13_of_a_partly_stored_range_the_rest_is_inserted_and_an_alarm_is_raised(pipeline, store, now_ms):
    """As after a split: one batch of the range went in alone."""
    whole = fresh(now_ms, maybe_repeat=True, attempt=2)
    alone = FakeDelivery([whole.bodies[1]], [whole.addresses[1]], [whole.time_ms[1]], first=1, log_uuid=whole.log_uuid)
    collect(pipeline, alone)
    _, stats = collect(pipeline, whole)
    assert stored(store, session_of(whole)) == dict.fromkeys((1, 2, 3), (20, 20))
    assert (stats.as_dict()["alarms"], stats.as_dict()["duplicates_avoided_rows"]) == (1, 20)


def test_r02_within_one_boot_the_same_token_stores_a_block_once(pipeline, store, now_ms):
    """Two attempts at once, both certain, as after a lease that ended unnoticed: the store must make them one."""
    first = fresh(now_ms)
    second = FakeDelivery(first.bodies, first.addresses, first.time_ms, log_uuid=first.log_uuid, range_id=2)
    collect(pipeline, first, second)
    assert stored(store, session_of(first)) == dict.fromkeys((1, 2, 3), (20, 20))


def test_r14_a_running_insert_is_found_by_its_name_and_killed(pipeline, now_ms):
    address = RangeAddress("ff" * 16, 1, 3, 10, 20)
    known = KnownLabels()
    with StoreConnection(StoreAddress(url=pipeline.store_url)) as other:
        session = open_session(StoreAddress(url=pipeline.store_url), known, rows_max=1000)
        assert isinstance(session, ClickHouseSession)
        outcome: list[str] = []

        def slow() -> None:
            try:
                query_id = address.query_id("x")
                other.command(
                    "INSERT INTO telemetry.rejects (row) SELECT number FROM numbers(3000) WHERE NOT sleepEachRow(0.01)",
                    settings={"query_id": query_id, "log_comment": query_id, "max_block_size": 1},
                )
                outcome.append("finished")
            except Exception as e:
                outcome.append(type(e).__name__)

        thread = threading.Thread(target=slow)
        thread.start()
        running = eventually(lambda: session.running_inserts(address.query_prefix), 10, "the query runs")
        assert address._replace(first=21, last=30).overlapping(running) == []
        (mine,) = address._replace(first=20, last=30).overlapping(running)
        session.kill(mine)
        thread.join(10)
        assert outcome == ["OutcomeUnknown"]
        assert session.running_inserts(address.query_prefix) == []
        session.close()


def test_r15_a_range_over_midnight_is_stored_whole_on_both_days(pipeline, store, now_ms):
    midnight = now_ms // MS_A_DAY * MS_A_DAY
    session = next(_session)
    delivery = delivery_of(
        [(session, 1, simple_rows(100, start_ms=midnight - 50))], appended_ms=midnight + 60, log_uuid=f"{session:032x}"
    )
    collect(pipeline, delivery)
    sql = (
        "SELECT toString(toDate(ts)), count() FROM telemetry.samples WHERE _session = {s:UInt64} GROUP BY 1 ORDER BY 1"
    )
    today = midnight // MS_A_DAY
    assert store.query(sql, {"s": session}) == [(day_name(today - 1), 50), (day_name(today), 50)]


def test_r17_rejects_are_stored_once_though_the_range_comes_again(pipeline, store, now_ms):
    bad = [Row(now_ms, gpu(1), "m", float("inf"))] * 4
    session = next(_session)
    delivery = delivery_of([(session, 1, bad), (session, 2, bad)], appended_ms=now_ms, log_uuid=f"{session:032x}")
    collect(pipeline, delivery)
    delivery.maybe_repeat, delivery.attempt = True, 2
    collect(pipeline, delivery)
    sql = "SELECT _seq, count() FROM telemetry.rejects WHERE _session = {s:UInt64} GROUP BY 1 ORDER BY 1"
    assert store.query(sql, {"s": session}) == [(1, 4), (2, 4)]


def test_r12_a_connection_knows_its_boot_and_does_not_outlive_it(pipeline, now_ms):
    session = open_session(StoreAddress(url=pipeline.store_url), KnownLabels(), rows_max=1000)
    pipeline.store.kill()
    pipeline.store.start()
    wait_for(pipeline)
    with pytest.raises(Exception, match=r"lost|closed|reset"):
        session.running_inserts("x")
    other = open_session(StoreAddress(url=pipeline.store_url), KnownLabels(), rows_max=1000)
    assert other.boot_id != session.boot_id
    other.close()


def test_a_kill_of_the_store_in_the_middle_of_many_ranges_neither_loses_nor_doubles(
    pipeline, store, now_ms, tmp_path: Path
):
    ranges = [fresh(now_ms, batches=5, rows=2000, range_id=n) for n in range(40)]

    def kill_soon() -> None:
        eventually(lambda: stored(store, session_of(ranges[3])), 20, "some are stored")
        pipeline.store.kill()
        pipeline.store.start()

    killer = threading.Thread(target=kill_soon)
    killer.start()
    collect(pipeline, *ranges)
    killer.join()
    for one in ranges:
        assert {seq: rows for seq, (rows, _) in stored(store, session_of(one)).items()} == dict.fromkeys(
            range(1, 6), 2000
        )


def test_r13_a_doubtful_range_of_thousands_of_small_batches_can_be_asked_about(pipeline, store, now_ms):
    """A fleet's delivery: one batch an agent. The question about all of them must fit what servers take."""
    big = fresh(now_ms, batches=2_500, rows=3, maybe_repeat=True, attempt=2)
    collect(pipeline, big)
    _, stats = collect(pipeline, big)
    assert len(stored(store, session_of(big))) == 2_500
    assert stats.as_dict()["duplicates_avoided_rows"] == 7_500

"""R3: every rollup equals the same question asked of the raw rows, whatever order rows come in and whoever dies."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from clickhouse.client import StoreConnection
from clickhouse.errors import StoreError
from clickhouse.insert import SampleColumns, insert_samples
from clickhouse.rollup import SPAN_SECONDS_MAX, Active, Blocks, Part, Rollup
from tests.helpers.store import Store, running_store, sample_columns, today_ms
from tests.helpers.waiting import eventually

RAW = """SELECT gpu, toString(metric), toUnixTimestamp({bucket}(ts)) AS b, min(value), max(value), sum(value), count(),
argMax(value, (ts, value)) FROM telemetry.samples WHERE ts < toDateTime({upto}, 'UTC')
GROUP BY gpu, metric, b ORDER BY ALL"""
ROLLED = """SELECT gpu, toString(metric), toUnixTimestamp(bucket), low, high, total, count, last
FROM telemetry.{table} FINAL ORDER BY ALL"""
ROLLUP_TABLES = ("samples_1m", "samples_1h", "gpu_seen", "xid_events", "rollup_progress")


@pytest.fixture
def rolled(empty: StoreConnection) -> StoreConnection:
    for table in ROLLUP_TABLES:
        empty.command(f"TRUNCATE TABLE telemetry.{table}")
    return empty


def equals_raw(conn: StoreConnection, upto_s: int) -> bool:
    minutes = conn.query(RAW.format(bucket="toStartOfMinute", upto=upto_s))
    assert conn.query(ROLLED.format(table="samples_1m")) == minutes
    hours: dict[tuple[int, str, int], list[float]] = {}
    for gpu, metric, minute, low, high, total, count, last in minutes:
        hour = hours.setdefault((gpu, metric, minute // 3600 * 3600), [low, high, 0.0, 0, 0.0])
        hour[:] = [min(hour[0], low), max(hour[1], high), hour[2] + total, hour[3] + count, last]
    expected = [(*key, *values) for key, values in sorted(hours.items())]
    assert conn.query(ROLLED.format(table="samples_1h")) == expected
    return bool(minutes)


def noon_clock() -> float:
    """Late enough today for every row of these tests to be past."""
    return today_ms() / 1000 + 43_200


def test_r03_rollups_equal_the_question_asked_of_raw(rolled: StoreConnection) -> None:
    insert_samples(rolled, sample_columns(100_000), token="a")
    rollup = Rollup(rolled, clock=noon_clock)
    progress = rollup.look()
    assert progress.raw_rows == 100_000
    assert equals_raw(rolled, progress.upto_s)
    assert rollup.look().minutes == 0


def test_r03_late_rows_change_the_minutes_they_fall_into_and_no_other(rolled: StoreConnection) -> None:
    rollup = Rollup(rolled, clock=noon_clock)
    insert_samples(rolled, sample_columns(50_000), token="a")
    rollup.look()
    insert_samples(rolled, sample_columns(100, session=2, start_ms=today_ms() + 600_000), token="late")
    progress = rollup.look()
    assert progress.minutes == 1
    assert equals_raw(rolled, progress.upto_s)


def test_r03_the_present_minute_is_left_to_raw_until_it_is_over(rolled: StoreConnection) -> None:
    now = [today_ms() / 1000 + 150.0]
    rollup = Rollup(rolled, clock=lambda: now[0])
    insert_samples(rolled, sample_columns(16 * 150), token="a")
    progress = rollup.look()
    assert progress.upto_s == today_ms() // 1000 + 120
    assert rolled.scalar(f"SELECT max(bucket) < toDateTime({progress.upto_s}) FROM telemetry.samples_1m")
    now[0] += 60
    progress = rollup.look()
    assert progress.minutes == 1
    assert equals_raw(rolled, progress.upto_s)


def test_r03_a_merge_of_known_parts_is_known(rolled: StoreConnection) -> None:
    rollup = Rollup(rolled, clock=noon_clock)
    for i in range(5):
        insert_samples(rolled, sample_columns(1000, first_seq=i, start_ms=today_ms() + i * 60_000), token=f"{i}")
    rollup.look()
    rolled.command("OPTIMIZE TABLE telemetry.samples FINAL")
    asked: list[object] = []
    rollup._minutes_of = lambda *a: asked.append(a) or []  # type: ignore[method-assign, func-returns-value]
    rollup.look()
    assert asked == []


def test_r03_parts_that_a_merge_takes_while_they_are_looked_at_are_rolled_up(
    rolled: StoreConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    rolled.command("SYSTEM STOP MERGES telemetry.samples")
    rows = sample_columns(20_000)
    assert rows.ts_ms[-1] - rows.ts_ms[0] > SPAN_SECONDS_MAX * 1000, "parts long enough to be asked"
    insert_samples(rolled, rows, token="a")
    insert_samples(rolled, sample_columns(20_000, session=2), token="b")
    rollup = Rollup(rolled, clock=noon_clock)
    days = rollup._days

    def then_merged(now: float) -> dict[int, list[Active]]:
        found = days(now)
        rolled.command("SYSTEM START MERGES telemetry.samples")
        rolled.command("OPTIMIZE TABLE telemetry.samples FINAL")
        return found

    monkeypatch.setattr(rollup, "_days", then_merged)
    progress = rollup.look()
    assert progress.raw_rows == 40_000
    assert equals_raw(rolled, progress.upto_s)


def test_r03_two_rollups_at_the_same_time_do_no_harm(store: Store, rolled: StoreConnection) -> None:
    stop = threading.Event()
    failures: list[BaseException] = []

    def look() -> None:
        try:
            with store.connect() as conn:
                rollup = Rollup(conn, clock=noon_clock)
                while not stop.is_set():
                    rollup.look()
        except BaseException as e:
            failures.append(e)

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    rng = np.random.default_rng(3)
    for i in range(25):
        start = today_ms() + int(rng.integers(0, 300)) * 1000
        insert_samples(rolled, sample_columns(2000, session=i, start_ms=start), token=f"two/{i}")
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
    progress = Rollup(rolled, clock=noon_clock).look()
    assert equals_raw(rolled, progress.upto_s)


def test_r03_a_rollup_that_dies_half_way_is_finished_by_the_next(rolled: StoreConnection) -> None:
    """It wrote the minutes and died before the hours; another wrote half of a minute."""
    insert_samples(rolled, sample_columns(40_000), token="a")
    dying = Rollup(rolled, clock=noon_clock)
    dying._recompute_hours = lambda hours: 1 / 0  # type: ignore[method-assign, assignment, return-value]
    with pytest.raises(ZeroDivisionError):
        dying.look()
    rolled.command("DELETE FROM telemetry.samples_1m WHERE gpu = 1003")
    progress = Rollup(rolled, clock=noon_clock).look()
    assert progress.minutes > 0
    assert equals_raw(rolled, progress.upto_s)


def test_r03_the_store_is_killed_while_rows_are_rolled_up(tmp_path: Path) -> None:
    with running_store(tmp_path) as store:
        sent = 0
        for round_ in range(3):
            conn = store.connect()
            rollup = Rollup(conn, clock=noon_clock)
            killer = threading.Timer(0.15 + 0.1 * round_, store.kill)
            killer.start()
            try:
                while True:
                    insert_samples(
                        conn,
                        sample_columns(4000, first_seq=sent * 10, start_ms=today_ms() + sent * 7000),
                        token=f"{sent}",
                    )
                    sent += 1
                    rollup.look()
            except StoreError:
                pass
            killer.join()
            store.start()
        with store.connect() as conn:
            progress = Rollup(conn, clock=noon_clock).look()
            assert equals_raw(conn, progress.upto_s)


def test_days_that_lose_raw_rows_to_retention_keep_their_rollup(rolled: StoreConnection) -> None:
    insert_samples(rolled, sample_columns(4000), token="a")
    rollup = Rollup(rolled, clock=noon_clock, retention_days=7)
    rollup.look()
    before = rolled.query(ROLLED.format(table="samples_1m"))
    rolled.command("DELETE FROM telemetry.samples WHERE _seq = 1", settings={"mutations_sync": 2})
    late = Rollup(rolled, clock=lambda: noon_clock() + 7 * 86_400, retention_days=7)
    assert late.look().minutes == 0
    assert rolled.query(ROLLED.format(table="samples_1m")) == before
    assert rollup.look().minutes > 0, "within retention it follows raw, down as well"


def xid_columns(session: int, codes: list[tuple[int, int]]) -> SampleColumns:
    """XID samples of one GPU as (second of the day, code)."""
    rows = len(codes)
    same = np.full(rows, 1, dtype=np.uint64)
    return SampleColumns(
        gpu=same,
        labels=same,
        metric_code=np.zeros(rows, dtype=np.uint8),
        metric_names=["DCGM_FI_DEV_XID_ERRORS"],
        ts_ms=np.array([today_ms() + second * 1000 for second, _ in codes]),
        value=np.array([float(code) for _, code in codes]),
        session=same * np.uint64(session),
        seq=same,
    )


def test_xid_events_are_changes_of_the_sticky_gauge_and_late_rows_move_them(rolled: StoreConnection) -> None:
    rollup = Rollup(rolled, clock=noon_clock)
    insert_samples(rolled, xid_columns(1, [(10, 0), (20, 79), (30, 79), (90, 79), (200, 31), (210, 0)]), token="a")
    rollup.look()
    sql = "SELECT toUnixTimestamp(ts) % 86400, code FROM telemetry.xid_events FINAL WHERE is_event ORDER BY ts"
    assert rolled.query(sql) == [(20, 79), (200, 31)]
    insert_samples(rolled, xid_columns(2, [(15, 79), (25, 48)]), token="late")
    rollup.look()
    assert rolled.query(sql) == [(15, 79), (25, 48), (30, 79), (200, 31)]


def test_first_and_last_time_of_a_gpu_are_kept(rolled: StoreConnection) -> None:
    rollup = Rollup(rolled, clock=noon_clock)
    insert_samples(rolled, sample_columns(1600), token="a")
    rollup.look()
    insert_samples(rolled, sample_columns(160, session=2, start_ms=today_ms() + 3_600_000), token="b")
    rollup.look()
    first, last = rolled.query("SELECT min(first), max(last) FROM telemetry.gpu_seen")[0]
    assert (first.timestamp() * 1000, last.timestamp() * 1000) == (today_ms(), today_ms() + 3_609_000)


def test_the_process_rolls_up_and_waits_for_a_store_that_is_away(tmp_path: Path) -> None:
    from tests.helpers.processes import RunningProcess

    with running_store(tmp_path / "store") as store:
        arguments = ["rollup", "--url", store.url, "--interval", "200ms", "--http", "127.0.0.1:0"]
        with RunningProcess("clickhouse.cli", arguments, tmp_path, name="rollup") as process:
            process.wait_ready()
            store.restart(kill=True)
            with store.connect() as conn:
                minute = int(time.time()) // 60 * 60 - 60
                if minute * 1000 >= today_ms():
                    insert_samples(conn, sample_columns(160, start_ms=minute * 1000), token="a")
                    eventually(
                        lambda: conn.scalar("SELECT sum(count) FROM telemetry.samples_1m") == 160, 20, "rolled up"
                    )
            assert process.stop() == 0


def test_blocks_know_what_they_hold() -> None:
    known = Blocks([Part(1, 3, 0), Part(4, 6, 0), Part(9, 9, 0)])
    assert Part(2, 6, 0) in known
    assert Part(1, 9, 0) not in known
    assert Part(2, 6, 7) not in known
    assert Part.of("20261121_1_7_2") == Part(1, 7, 0)
    assert Part.of("20261121_1_7_2_9") == Part(1, 7, 9)


def test_a_part_that_tells_no_times_is_asked_for_its_minutes(rolled: StoreConnection) -> None:
    insert_samples(rolled, sample_columns(30_000), token="a")
    rollup = Rollup(rolled, clock=noon_clock)
    day = today_ms() // 86_400_000
    told = rollup._days(noon_clock())[day]
    untold = [part._replace(first_s=day * 86_400, last_s=day * 86_400 + 86_399) for part in told]
    rollup._days = lambda now: {day: untold}  # type: ignore[method-assign]
    progress = rollup.look()
    assert progress.raw_rows == 30_000
    assert equals_raw(rolled, progress.upto_s)

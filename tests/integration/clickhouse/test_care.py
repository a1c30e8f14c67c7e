"""Care of the store: verify and repair (R19), retention, backup and restore, the cluster's flavour (R18)."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from clickhouse import retention
from clickhouse.backup import BadDestination, back_up, destination, restore
from clickhouse.client import StoreConnection
from clickhouse.insert import insert_rejects, insert_samples
from clickhouse.migrate import bootstrap
from clickhouse.migrations import all_migrations
from clickhouse.rollup import Rollup, retention_days
from clickhouse.schema import Flavour
from clickhouse.verify import (
    BadExpectation,
    Doubled,
    Missing,
    Short,
    doubled_lately,
    doubled_on,
    read_expected,
    repair,
    verify,
)
from tests.helpers.store import Store, running_store, sample_columns, today_ms
from tests.integration.clickhouse.rejects import reject_columns
from tests.integration.clickhouse.test_process import run
from tests.integration.clickhouse.test_rollup import ROLLUP_TABLES, equals_raw

TODAY = today_ms() // 86_400_000


@pytest.fixture
def clean(empty: StoreConnection) -> StoreConnection:
    for table in ROLLUP_TABLES:
        empty.command(f"TRUNCATE TABLE telemetry.{table}")
    return empty


def count(conn: StoreConnection, table: str = "samples") -> int:
    return int(conn.scalar(f"SELECT count() FROM telemetry.{table}"))


def test_r19_a_batch_that_was_inserted_twice_is_found_and_repaired(clean: StoreConnection) -> None:
    columns = sample_columns(5000, session=19)
    twice = columns._replace(**{name: getattr(columns, name)[1000:3000] for name in
                                ("gpu", "labels", "metric_code", "ts_ms", "value", "session", "seq")})  # fmt: skip
    insert_samples(clean, columns, token="r19/a")
    insert_samples(clean, twice, token="r19/b")
    report = verify(clean)
    assert report.doubled == [Doubled(TODAY, 19, 2, 2, 1000), Doubled(TODAY, 19, 3, 2, 1000)]
    assert (report.missing, report.rows, report.clean) == ([], 7000, False)
    assert repair(clean, report) == 2000
    assert verify(clean).clean
    assert clean.query("SELECT _seq, count() FROM telemetry.samples GROUP BY _seq ORDER BY _seq") == [
        (seq, 1000) for seq in range(1, 6)
    ]
    assert not clean.has("samples_repair")


def test_r19_a_row_that_a_batch_held_twice_is_no_doubled_batch_and_stays(clean: StoreConnection) -> None:
    """Half of the batch are equal rows; stored three times it comes back to what it was."""
    columns = sample_columns(100, batch_rows=100)
    columns.ts_ms[50:] = columns.ts_ms[0]
    columns.gpu[50:] = columns.gpu[0]
    columns.labels[50:] = columns.labels[0]
    columns.metric_code[50:] = columns.metric_code[0]
    columns.value[50:] = columns.value[0]
    insert_samples(clean, columns, token="r19/own")
    assert verify(clean).clean
    for i in range(2):
        insert_samples(clean, columns, token=f"r19/own/{i}")
    report = verify(clean)
    assert [found.times for found in report.doubled] == [3]
    repair(clean, report)
    assert count(clean) == 100
    assert verify(clean).clean


def test_r19_a_repair_that_died_half_way_is_finished_by_the_next(clean: StoreConnection) -> None:
    columns = sample_columns(2000)
    insert_samples(clean, columns, token="r19/1")
    insert_samples(clean, columns, token="r19/2")
    report = verify(clean)

    class Dies(Exception):
        pass

    original = clean.command

    def dying(sql: str, *args: object, **kwargs: object) -> object:
        if sql.startswith("INSERT INTO telemetry.samples "):
            raise Dies
        return original(sql, *args, **kwargs)  # type: ignore[arg-type]

    clean.command = dying  # type: ignore[method-assign, assignment]
    with pytest.raises(Dies):
        repair(clean, report)
    clean.command = original  # type: ignore[method-assign]
    assert count(clean) == 0
    repair(clean, verify(clean))
    assert count(clean) == 2000
    assert verify(clean).clean


def test_r19_a_gap_in_a_session_is_told_and_rejects_fill_it(clean: StoreConnection) -> None:
    insert_samples(clean, sample_columns(2000, session=7, first_seq=1), token="a")
    insert_samples(clean, sample_columns(1000, session=7, first_seq=6), token="b")
    assert verify(clean).missing == [Missing(7, 3, 5)]
    insert_rejects(clean, reject_columns(5, session=7, seq=4), token="c")
    assert verify(clean).missing == [Missing(7, 3, 3), Missing(7, 5, 5)]


def test_r19_counts_are_held_against_what_was_sent(clean: StoreConnection, tmp_path: Path) -> None:
    insert_samples(clean, sample_columns(2000, session=7), token="a")
    insert_rejects(clean, reject_columns(5, session=7, seq=1), token="b")
    file = tmp_path / "sent.ndjson"
    sent = [(7, 1, 1005), (7, 2, 999), (8, 1, 10)]
    file.write_text("\n".join(json.dumps({"session": a, "seq": b, "rows": c}) for a, b, c in sent))
    assert verify(clean, read_expected(file)).short == [Short(7, 2, 999, 1000), Short(8, 1, 10, 0)]
    file.write_text('{"session": 1}')
    with pytest.raises(BadExpectation, match=r"sent.ndjson:1"):
        read_expected(file)


def test_r19_rows_are_grouped_in_slices(clean: StoreConnection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clickhouse.verify.SLICE_ROWS", 1000)
    for i in range(2):
        insert_samples(clean, sample_columns(8000), token=f"{i}")
    assert len(doubled_on(clean, TODAY, 16_000)) == 8


def test_r19_rollups_that_differ_from_raw_are_found_and_repaired(clean: StoreConnection) -> None:
    rollup = Rollup(clean, clock=lambda: today_ms() / 1000 + 43_200)
    insert_samples(clean, sample_columns(20_000), token="a")
    upto = rollup.look().upto_s
    assert verify(clean).clean
    clean.command("DELETE FROM telemetry.samples_1m WHERE gpu = 1001")
    (found,) = verify(clean).unrolled
    assert (found.day, found.raw_rows, found.rolled_rows) == (TODAY, 20_000, 17_500)
    Rollup(clean, clock=lambda: today_ms() / 1000 + 43_200).look()
    assert verify(clean).clean
    assert equals_raw(clean, upto)


def test_r19_a_gauge_tells_of_the_newest_rows(clean: StoreConnection) -> None:
    # Ten seconds that lie in one day, at midnight too: an INSERT is one of a day.
    start_ms = max(int(time.time() - 30) * 1000, today_ms())
    for i in range(2):
        insert_samples(clean, sample_columns(160, start_ms=start_ms), token=f"{i}")
    assert doubled_lately(clean) == 1


def test_verify_exits_with_1_for_a_problem_and_repairs_when_told(store: Store, clean: StoreConnection) -> None:
    for i in range(2):
        insert_samples(clean, sample_columns(1000), token=f"{i}")
    found = run("verify", "--url", store.url)
    assert found.returncode == 1, found.stderr
    assert "doubled" in found.stdout
    assert "1 batches doubled" in found.stdout
    repaired = run("verify", "--url", store.url, "--repair")
    assert (repaired.returncode, "removed 1,000 rows" in repaired.stdout) == (0, True)
    bad = run("verify", "--url", store.url, "--expect", "/nowhere")
    assert (bad.returncode, bad.stderr.count("\n")) == (2, 1)


def test_longer_retention_loses_nothing_and_shorter_says_what_it_would(tmp_path: Path) -> None:
    with running_store(tmp_path) as store, store.connect() as conn:
        for days_ago in (0, 5):
            start = today_ms() - days_ago * 86_400_000
            insert_samples(conn, sample_columns(1000, start_ms=start), token=f"{days_ago}")
        assert run("retention", "--url", store.url, "--raw", "30").returncode == 0
        assert retention_days(conn, "samples") == 30
        insert_samples(conn, sample_columns(1000, start_ms=today_ms() - 20 * 86_400_000), token="old")
        refused = run("retention", "--url", store.url, "--raw", "10")
        assert (refused.returncode, "1,000 rows of samples" in refused.stderr) == (2, True)
        conn.command("OPTIMIZE TABLE telemetry.samples FINAL")
        assert count(conn) == 3000
        assert run("retention", "--url", store.url, "--raw", "10", "--yes").returncode == 0
        conn.command("OPTIMIZE TABLE telemetry.samples FINAL")
        assert count(conn) == 2000
        changes = retention.plan(conn, {"samples": 10, "samples_1h": 1000})
        assert [(change.table, change.rows_lost) for change in changes] == [("samples_1h", 0)]


def test_a_backup_comes_back_whole(tmp_path: Path) -> None:
    with running_store(tmp_path) as store:
        with store.connect() as conn:
            insert_samples(conn, sample_columns(10_000), token="a")
            Rollup(conn).look()
            assert back_up(conn, "monday") == "BACKUP_CREATED"
            insert_samples(conn, sample_columns(10_000, session=2), token="b")
            boot_id = conn.boot_id
        assert run("status", "--url", store.url).stdout.count("BACKUP_CREATED") == 1
        refused = run("restore", "monday", "--url", store.url)
        assert refused.returncode == 1
        with store.connect() as conn:
            assert count(conn) == 20_000
            assert restore(conn, "monday", over=True) == "RESTORED"
            assert count(conn) == 10_000
        store.restart()
        with store.connect() as conn:
            assert conn.boot_id != boot_id
            assert verify(conn).clean
            # The tokens of before the restore are of another boot and another table: nothing is swallowed.
            insert_samples(conn, sample_columns(10_000, session=2), token=f"b/{conn.boot_id}")
            assert count(conn) == 20_000


def test_a_backup_goes_to_a_name_or_a_destination_and_nowhere_else() -> None:
    assert destination("monday-1") == "File('monday-1')"
    assert destination("Disk('backups', 'x')") == "Disk('backups', 'x')"
    for bad in ("", "../x", "a b", "x'); DROP", "Foo('x')"):
        with pytest.raises(BadDestination):
            destination(bad)


def test_r18_every_statement_of_the_clusters_flavour_is_parsed_by_the_engine(conn: StoreConnection) -> None:
    flavour = Flavour(kind="cluster", cluster="fleet", user="u", password="it's")
    statements = bootstrap(flavour)
    for migration in all_migrations():
        statements += migration.forwards(flavour) + migration.backwards(flavour)
    for statement in statements:
        formatted = str(conn.scalar("SELECT formatQuery({sql:String})", {"sql": statement}))
        assert "ON CLUSTER" in formatted, statement
    text = "\n".join(statements)
    assert text.count("Distributed('fleet'") == 9
    for table in ("samples", "devices", "rejects", "samples_1m", "samples_1h", "gpu_seen", "xid_events", "boots"):
        assert f"/clickhouse/tables/{{shard}}/telemetry/{table}'" in text
        assert f"CREATE TABLE IF NOT EXISTS telemetry_all.{table} ON CLUSTER" in text
    assert "replicated_deduplication_window = 20000" in text


def test_r18_both_flavours_have_the_same_tables_and_columns(conn: StoreConnection) -> None:
    for migration in all_migrations():
        single = [s for s in migration.forwards(Flavour()) if s.startswith("CREATE TABLE")]
        cluster = [
            s for s in migration.forwards(Flavour(kind="cluster")) if s.startswith("CREATE TABLE") and "_all." not in s
        ]
        for one, other in zip(single, cluster, strict=True):
            assert one[one.index("(") : one.index("ENGINE")] == other[other.index("(") : other.index("ENGINE")]
            assert one[one.index("ORDER BY") :] == other[other.index("ORDER BY") :]

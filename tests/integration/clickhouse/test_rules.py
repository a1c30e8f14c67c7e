"""The rules of GUARANTEES that live in the store, with the real engine and real kills."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from clickhouse.client import StoreAddress, StoreConnection, assert_server
from clickhouse.errors import OutcomeUnknown, StoreNotReady, StoreRefused, StoreUnavailable
from clickhouse.insert import MS_A_DAY, SampleColumns, insert_rejects, insert_samples, sample_block
from clickhouse.native import Keys, flat
from clickhouse.queries import Probe, presence, presence_of_rejects
from clickhouse.schema import SAMPLE_COLUMNS
from tests.helpers.store import Store, running_store, sample_columns, today_ms
from tests.helpers.waiting import eventually
from tests.integration.clickhouse.rejects import reject_columns

INSERT = "INSERT INTO telemetry.samples (gpu,metric,ts,value,labels,_session,_seq) FORMAT Native"


def count(conn: StoreConnection, where: str = "1") -> int:
    return int(conn.scalar(f"SELECT count() FROM telemetry.samples WHERE {where}"))


def probe_of(columns: SampleColumns) -> Probe:
    """The probe of the first batch."""
    return Probe(
        int(columns.session[0]),
        int(columns.seq[0]),
        int(columns.ts_ms[0] // MS_A_DAY),
        int(columns.gpu[0]),
        columns.metric_names[int(columns.metric_code[0])],
        int(columns.ts_ms[0]),
    )


def parts(conn: StoreConnection, table: str = "samples") -> int:
    return int(
        conn.scalar(f"SELECT count() FROM system.parts WHERE active AND database = 'telemetry' AND table = '{table}'")
    )


def test_r01_every_row_carries_the_address_of_its_batch(empty: StoreConnection) -> None:
    insert_samples(empty, sample_columns(3000, session=2**64 - 1, first_seq=2**63), token="r01")
    rows = empty.query("SELECT _session, _seq, count() FROM telemetry.samples GROUP BY ALL ORDER BY ALL")
    assert rows == [(2**64 - 1, 2**63 + i, 1000) for i in range(3)]


def test_r02_the_same_token_within_one_boot_stores_one_block(empty: StoreConnection) -> None:
    columns = sample_columns(5000)
    for _ in range(3):
        insert_samples(empty, columns, token="r02/same")
    assert count(empty) == 5000
    insert_samples(empty, columns, token="r02/other")
    assert count(empty) == 10_000


def test_r02_two_attempts_in_flight_at_once_cannot_both_commit(store: Store, empty: StoreConnection) -> None:
    columns = sample_columns(100_000, batch_rows=1000)
    start = threading.Barrier(4)

    def insert() -> None:
        with store.connect() as conn:
            start.wait()
            insert_samples(conn, columns, token="r02/race")

    threads = [threading.Thread(target=insert) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count(empty) == 100_000


def test_r12_the_boot_id_is_one_for_all_connections_and_new_after_a_restart(tmp_path: Path) -> None:
    with running_store(tmp_path) as store:
        ids = {store.connect().boot_id for _ in range(3)}
        assert len(ids) == 1
        store.restart(kill=True)
        with store.connect() as conn:
            assert conn.boot_id not in ids


def test_r12_a_connection_that_outlives_the_server_is_refused_and_not_reopened(tmp_path: Path) -> None:
    with running_store(tmp_path) as store:
        conn = store.connect()
        store.restart(kill=True)
        with pytest.raises(StoreUnavailable, match="lost"):
            insert_samples(conn, sample_columns(100), token="r12")
        with pytest.raises(StoreUnavailable):
            conn.query("SELECT 1")
        with store.connect() as fresh:
            assert fresh.boot_id != conn.boot_id
            assert count(fresh) == 0


def test_r12_a_cut_body_inserts_nothing(store: Store, empty: StoreConnection) -> None:
    """A body that is cut after its first whole block would commit that block on a server that streams it."""
    block = sample_block(sample_columns(20_000))
    head = f"POST /?query={INSERT.replace(' ', '+')} HTTP/1.1\r\nHost: x\r\nContent-Length: {2 * len(block)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", store.port)) as sock:
        sock.sendall(head.encode() + block)
        sock.shutdown(socket.SHUT_WR)
        assert b"400 Bad Request" in sock.recv(4096)
    with socket.create_connection(("127.0.0.1", store.port)) as sock:
        chunked = head.replace(f"Content-Length: {2 * len(block)}", "Transfer-Encoding: chunked")
        sock.sendall(chunked.encode() + b"%x\r\n" % len(block) + block + b"\r\n")
    eventually(lambda: empty.running("") == [], 5, "nothing inserts")
    assert count(empty) == 0


def test_r12_an_answer_that_is_lost_is_an_unknown_outcome(empty: StoreConnection) -> None:
    """A proxy takes the insert, passes it on, and dies before it passes on the answer."""
    listener = socket.create_server(("127.0.0.1", 0))
    upstream = ("127.0.0.1", int(empty.address.url.rsplit(":", 1)[1]))
    swallow = threading.Event()

    def proxy() -> None:
        client, _ = listener.accept()
        server = socket.create_connection(upstream)

        def back() -> None:
            while data := server.recv(1 << 16):
                if swallow.is_set():
                    client.shutdown(socket.SHUT_RDWR)
                    return
                client.sendall(data)

        threading.Thread(target=back, daemon=True).start()
        while data := client.recv(1 << 16):
            server.sendall(data)

    threading.Thread(target=proxy, daemon=True).start()
    conn = StoreConnection(StoreAddress(url=f"http://127.0.0.1:{listener.getsockname()[1]}"))
    swallow.set()
    columns = sample_columns(1000)
    with pytest.raises(OutcomeUnknown):
        insert_samples(conn, columns, token="r12/lost")
    assert conn.closed
    eventually(lambda: presence(empty, [probe_of(columns)]) or None, 5, "it was stored after all")
    listener.close()


def test_r12_the_body_of_an_insert_has_only_so_much_time(tmp_path: Path) -> None:
    with running_store(tmp_path, "--max-execution-time", "2s") as store:
        block = sample_block(sample_columns(1000))
        head = f"POST /?query={INSERT.replace(' ', '+')} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(block)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", store.port), timeout=10) as sock:
            sock.sendall(head.encode() + block[:-10])
            answer = b""
            while part := sock.recv(4096):
                answer += part
            assert b"did not come whole" in answer
        with store.connect() as conn:
            assert count(conn) == 0
            with pytest.raises(OutcomeUnknown) as caught:
                # Who asks for more time gets no more for an insert.
                conn.command(
                    "INSERT INTO telemetry.samples SELECT 1, 'm', now64(3), sleep(1), 1, 1, 1 FROM numbers(10)",
                    settings={"max_execution_time": 3000, "max_block_size": 1},
                )
            assert caught.value.code == 159


def test_r13_presence_is_told_by_the_first_row_of_a_batch(empty: StoreConnection) -> None:
    columns = sample_columns(3000, session=13)
    insert_samples(empty, columns, token="r13")
    starts = range(0, 3000, 1000)
    probes = [
        Probe(13, int(columns.seq[i]), int(columns.ts_ms[i] // MS_A_DAY), int(columns.gpu[i]),
              columns.metric_names[int(columns.metric_code[i])], int(columns.ts_ms[i]))
        for i in starts
    ]  # fmt: skip
    absent = [probes[0]._replace(session=14), probes[0]._replace(seq=99)]
    day = probes[0].day
    assert presence(empty, probes + absent) == {(13, seq, day): 1 for seq in (1, 2, 3)}


def test_r13_presence_reads_by_the_primary_key(empty: StoreConnection) -> None:
    for i in range(4):
        insert_samples(empty, sample_columns(250_000, session=i, gpus=500, first_seq=1), token=f"r13/size/{i}")
    probe = probe_of(sample_columns(1000, session=2, gpus=500))
    assert presence(empty, [probe]) == {(2, 1, probe.day): 1}
    read = empty.query(
        "SELECT sum(marks) FROM system.parts WHERE active AND database = 'telemetry' AND table = 'samples'"
    )
    plan = empty.query(
        "EXPLAIN indexes = 1 SELECT count() FROM telemetry.samples WHERE toDate(ts) = today() AND "
        "(gpu, metric, ts) IN (SELECT toUInt64(1000), 'DCGM_FI_DEV_GPU_UTIL', toDateTime64(today(), 3, 'UTC'))"
    )
    granules = [line for (line,) in plan if "Granules" in line][-1]
    chosen = int(granules.split(":")[1].split("/")[0])
    assert chosen <= 8 < int(read[0][0])


def test_r13_rejects_are_asked_for_by_their_batches(empty: StoreConnection) -> None:
    columns = reject_columns(10, session=5, seq=6)
    insert_rejects(empty, columns, token="rejects")
    insert_rejects(empty, columns, token="rejects")
    day = int(columns.appended_ms[0] // MS_A_DAY)
    assert presence_of_rejects(empty, day, [(5, 6), (5, 7)]) == {(5, 6): 10}


def test_r14_an_older_insert_is_fenced_by_kill_even_while_its_body_is_on_its_way(
    store: Store, empty: StoreConnection
) -> None:
    """A collector was stopped in the middle of sending; another must make sure of it before it changes the bounds."""
    block = sample_block(sample_columns(1000))
    target = f"/?query_id=old/1-9&query={INSERT.replace(' ', '+')}"
    with socket.create_connection(("127.0.0.1", store.port), timeout=20) as sock:
        sock.sendall(
            f"POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(block)}\r\n\r\n".encode() + block[:500]
        )
        eventually(lambda: empty.running("old/") == ["old/1-9"] or None, 10, "the insert is seen")
        empty.kill("old/1-9")
        try:
            sock.sendall(block[500:])
            answer = sock.recv(4096)
        except ConnectionError:
            answer = b""
        assert b"200 OK" not in answer
    time.sleep(0.3)
    assert count(empty) == 0
    assert empty.running("old/") == []


def test_r14_a_killed_insert_is_never_answered_with_success(store: Store, empty: StoreConnection) -> None:
    empty.command("CREATE OR REPLACE TABLE telemetry.slow (a UInt64, b UInt8 DEFAULT sleepEachRow(0.02)) "
                  "ENGINE = MergeTree ORDER BY a")  # fmt: skip
    outcome: list[BaseException | None] = []

    def insert() -> None:
        from clickhouse import native

        block = native.block(100, [native.Column("a", "UInt64", native.numbers("UInt64", np.arange(100)))])
        try:
            with store.connect() as conn:
                conn.insert("slow", block, ["a"], query_id="r14/slow")
            outcome.append(None)
        except BaseException as e:
            outcome.append(e)

    thread = threading.Thread(target=insert)
    thread.start()
    eventually(lambda: empty.running("r14/") or None, 10, "the insert runs")
    empty.kill("r14/slow")
    thread.join()
    assert isinstance(outcome[0], OutcomeUnknown)
    assert empty.scalar("SELECT count() FROM telemetry.slow") == 0
    empty.command("DROP TABLE telemetry.slow")


def test_r15_an_insert_is_one_block_and_one_part(empty: StoreConnection) -> None:
    empty.command("SYSTEM STOP MERGES telemetry.samples")
    try:
        insert_samples(empty, sample_columns(250_000), token="r15")
        assert (count(empty), parts(empty)) == (250_000, 1)
    finally:
        empty.command("SYSTEM START MERGES telemetry.samples")


def test_r15_rows_of_two_days_are_refused_before_they_are_sent(empty: StoreConnection) -> None:
    midnight = today_ms()
    columns = sample_columns(1000, start_ms=midnight - 5000)
    with pytest.raises(ValueError, match="R15"):
        insert_samples(empty, columns, token="r15/days")
    days = list(columns.by_day())
    assert [day for day, _ in days] == [midnight // MS_A_DAY - 1, midnight // MS_A_DAY]
    for day, part in days:
        insert_samples(empty, part, token=f"r15/days/{day}")
    assert count(empty) == 1000


def test_r15_a_delivery_larger_than_a_block_of_the_server_is_refused_at_start(conn: StoreConnection) -> None:
    assert_server(conn, rows_max=250_000)
    with pytest.raises(StoreNotReady, match="max_insert_block_size"):
        assert_server(conn, rows_max=3_000_000)


def test_r16_inserts_are_synced_to_disk_before_they_are_answered(conn: StoreConnection) -> None:
    for table in ("samples", "rejects"):
        engine = conn.scalar(f"SELECT engine_full FROM system.tables WHERE database = 'telemetry' AND name = '{table}'")
        assert "fsync_after_insert = 1" in engine
        assert "fsync_part_directory = 1" in engine


def test_r16_what_was_answered_survives_a_kill(tmp_path: Path) -> None:
    with running_store(tmp_path) as store:
        acknowledged = 0
        for round_ in range(3):
            with store.connect() as conn:
                for i in range(20):
                    insert_samples(conn, sample_columns(2000, first_seq=1 + 2 * acknowledged), token=f"{round_}/{i}")
                    acknowledged += 1
            store.restart(kill=True)
            with store.connect() as conn:
                assert count(conn) == 2000 * acknowledged
                assert (
                    conn.scalar("SELECT max(c) FROM (SELECT count() AS c FROM telemetry.samples GROUP BY _seq)") == 1000
                )


def test_r16_a_merge_that_a_power_loss_tore_gives_way_to_the_parts_it_was_made_of(tmp_path: Path) -> None:
    """Merges are not synced: for eight minutes, far longer than a kernel keeps pages back, their sources stay on disk."""
    with running_store(tmp_path) as store:
        with store.connect() as conn:
            for i in range(4):
                insert_samples(conn, sample_columns(1000, first_seq=i + 1), token=f"torn/{i}")
            conn.command("OPTIMIZE TABLE telemetry.samples FINAL")
            (merged,) = conn.query("SELECT path, rows, name FROM system.parts WHERE active AND table = 'samples'")
            assert merged[1] == 4000
        store.kill()
        for name in ("checksums.txt", "data.bin"):
            os.truncate(Path(merged[0]) / name, 0)
        store.start()
        with store.connect() as conn:
            assert conn.query("SELECT _seq, count() FROM telemetry.samples GROUP BY _seq ORDER BY _seq") == [
                (seq, 1000) for seq in range(1, 5)
            ]
        assert store.process is not None
        told = [line for line in store.process.lines() if "put aside" in line["msg"]]
        assert merged[2] in told[0]["first"]


def test_a_server_without_schema_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with running_store(tmp_path, migrate=False) as store, store.connect() as conn:
        with pytest.raises(StoreNotReady, match="telemetry-clickhouse migrate"):
            assert_server(conn)


def test_data_that_cannot_be_read_is_a_permanent_refusal_and_a_missing_table_is_not(empty: StoreConnection) -> None:
    with pytest.raises(StoreRefused) as caught:
        empty.insert("samples", b"\x07\x05nonsense", SAMPLE_COLUMNS, token="bad")
    assert caught.value.permanent
    with pytest.raises(StoreRefused) as caught:
        empty.insert("nowhere", sample_block(sample_columns(10)), SAMPLE_COLUMNS, token="nowhere")
    assert not caught.value.permanent
    assert empty.query("SELECT 1") == [(1,)]


@pytest.mark.parametrize("gpus", [3, 300, 70_000])
def test_keys_sent_as_codes_are_stored_as_the_keys_they_stand_for(empty: StoreConnection, gpus: int) -> None:
    """Two of the codes stand for the same key, as GPUs with two label sets do, and one for 0."""
    rows = 2 * gpus
    values = np.arange(gpus, dtype=np.uint64) * np.uint64(2**47)
    values[-1] = values[1]
    columns = sample_columns(rows)._replace(gpu=Keys(np.arange(rows) % gpus, values))
    insert_samples(empty, columns, token=f"keys/{gpus}")
    stored = empty.query("SELECT gpu, count() FROM telemetry.samples GROUP BY gpu ORDER BY gpu")
    assert stored == sorted(Counter(flat(columns.gpu).tolist()).items())

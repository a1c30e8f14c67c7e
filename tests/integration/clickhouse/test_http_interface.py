"""The embedded server answers as ClickHouse's HTTP interface does: to curl's way of asking, and to the driver."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
import urllib.parse
import zlib
from http.client import HTTPConnection, HTTPResponse
from typing import Any

import clickhouse_connect
import lz4.frame
import numpy as np
import pytest
import zstandard

from clickhouse.embedded import codecs
from tests.helpers.store import Store
from tests.helpers.waiting import eventually


def ask(
    store: Store,
    sql: str | bytes = "",
    *,
    method: str = "POST",
    path: str = "/",
    headers: dict[str, str] | None = None,
    **params: Any,
) -> tuple[HTTPResponse, bytes]:
    connection = HTTPConnection("127.0.0.1", store.port, timeout=30)
    target = path + ("?" + urllib.parse.urlencode(params) if params else "")
    connection.request(method, target, body=sql if sql else None, headers=headers or {})
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response, body


def text(store: Store, sql: str, **params: Any) -> str:
    response, body = ask(store, sql, **params)
    assert response.status == 200, body
    return body.decode()


def test_ping_and_the_root_say_ok(store: Store) -> None:
    for path in ("/ping", "/", "/replicas_status"):
        response, body = ask(store, method="GET", path=path)
        assert (response.status, body) == (200, b"Ok.\n")


def test_health_and_metrics_are_on_the_same_port(store: Store) -> None:
    response, body = ask(store, method="GET", path="/health")
    assert response.status == 200
    assert json.loads(body)["service"] == "telemetry-clickhouse"
    assert ask(store, method="GET", path="/readyz")[0].status == 200
    assert b"store_rows_inserted_total" in ask(store, method="GET", path="/metrics")[1]


def test_a_query_in_the_url_and_one_in_the_body_and_one_in_both(store: Store) -> None:
    assert ask(store, method="GET", query="SELECT 1+1")[1] == b"2\n"
    assert ask(store, "SELECT 1+2")[1] == b"3\n"
    assert ask(store, "+4 FORMAT TSV", query="SELECT 1")[1] == b"5\n"


def test_headers_tell_format_query_id_server_timezone_and_summary(store: Store) -> None:
    response, _ = ask(store, "SELECT number FROM numbers(10)", query_id="my-id", default_format="JSONEachRow")
    assert response.headers["X-ClickHouse-Query-Id"] == "my-id"
    assert response.headers["X-ClickHouse-Format"] == "JSONEachRow"
    assert response.headers["X-ClickHouse-Server-Display-Name"]
    assert response.headers["X-ClickHouse-Timezone"]
    assert json.loads(response.headers["X-ClickHouse-Summary"])["read_rows"] == "10"


def test_bound_parameters_are_values_and_not_sql(store: Store) -> None:
    assert text(store, "SELECT {x:String}", param_x="a'; DROP TABLE t --") == "a\\'; DROP TABLE t --\n"
    assert text(store, "SELECT {a:Array(UInt64)}[2]", param_a="[1,2,3]") == "2\n"


def test_settings_in_the_url_hold_for_that_request_only(store: Store) -> None:
    assert text(store, "SELECT getSetting('max_block_size')", max_block_size=123) == "123\n"
    assert text(store, "SELECT getSetting('max_block_size')") != "123\n"


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT getSetting('log_comment')",
        "SELECT getSetting('log_comment') FORMAT CSV",
        "WITH 1 AS x SELECT getSetting('log_comment') WHERE x UNION ALL SELECT 'x' WHERE 0",
        "SELECT getSetting('log_comment') UNION ALL (SELECT 'x' WHERE 0) FORMAT TSVRaw",
        "SELECT getSetting('log_comment') SETTINGS max_threads = 1",
        "(SELECT getSetting('log_comment'))",
        "SELECT getSetting('log_comment') -- and so on",
    ],
)
def test_every_question_runs_under_its_own_id(store: Store, sql: str) -> None:
    """By it a KILL finds the question."""
    assert text(store, sql, query_id="it's mine").replace("\\", "").strip('"\n') == "it's mine"


def test_a_question_like_the_one_before_takes_over_nothing_of_it(store: Store) -> None:
    """They may share a handle: neither values, nor ids, nor a failure may come along."""
    for value in ("1", "2"):
        assert text(store, "SELECT {x:UInt8}, getSetting('log_comment')", param_x=value, query_id=f"q-{value}") == (
            f"{value}\tq-{value}\n"
        )
    assert ask(store, "SELECT {x:UInt8}, getSetting('log_comment')")[0].status == 400
    assert ask(store, "SELECT throwIf(1), getSetting('max_threads')", max_threads="3")[0].status == 500
    assert text(store, "SELECT getSetting('max_threads') SETTINGS max_threads = 5", max_threads="3") == "5\n"
    assert text(store, "SELECT getSetting('max_threads')", max_threads="3") == "3\n"


@pytest.mark.parametrize(
    ("sql", "status", "code"),
    [
        ("SELECT nope", 404, "47"),
        ("SELECT * FROM nope", 404, "60"),
        ("SELEC 1", 400, "62"),
        ("SELECT 1; SELECT 2", 400, "62"),
        ("SELECT throwIf(1)", 500, "395"),
        ("INSERT INTO nope FORMAT CSV\n1", 404, "60"),
        ("SELECT * FROM numbers(3) INTO OUTFILE '/tmp/x'", 501, "48"),
        ("", 400, "62"),
    ],
)
def test_an_error_has_its_status_its_code_header_and_its_text(store: Store, sql: str, status: int, code: str) -> None:
    response, body = ask(store, sql)
    assert (response.status, response.headers["X-ClickHouse-Exception-Code"]) == (status, code), body
    assert body.startswith(f"Code: {code}. DB::Exception: ".encode())


def test_an_unknown_setting_is_refused_by_name(store: Store) -> None:
    response, body = ask(store, "SELECT 1", no_such_setting=1)
    assert response.headers["X-ClickHouse-Exception-Code"] == "115"
    assert b"no_such_setting" in body


def test_a_get_may_not_write(store: Store) -> None:
    response, _ = ask(store, method="GET", query="CREATE TABLE g (a Int8) ENGINE = Memory")
    assert response.headers["X-ClickHouse-Exception-Code"] == "164"


@pytest.mark.parametrize(
    ("name", "expected_rows"), [("CSVWithNames", 300_001), ("TSVWithNamesAndTypes", 300_002), ("JSONEachRow", 300_000)]
)
def test_a_streamed_format_with_a_head_has_it_once(store: Store, name: str, expected_rows: int) -> None:
    body = text(store, f"SELECT number, 'x' AS `a\"b` FROM numbers(300000) FORMAT {name}")
    assert body.count("\n") == expected_rows
    assert body.count("number") == (1 if "With" in name else 300_000)


def test_a_long_result_leaves_in_chunks_and_a_waiting_client_gets_its_length(store: Store) -> None:
    sql = "SELECT number FROM numbers(1000000)"
    response, streamed = ask(store, sql)
    assert response.headers["Transfer-Encoding"] == "chunked"
    response, whole = ask(store, sql, wait_end_of_query=1)
    assert int(response.headers["Content-Length"]) == len(whole) == len(streamed)


def test_an_error_in_the_middle_of_a_stream_cannot_be_taken_for_the_end(store: Store) -> None:
    sql = "SELECT throwIf(number = 3000000), toString(number) FROM numbers(10000000) FORMAT TSV"
    with socket.create_connection(("127.0.0.1", store.port), timeout=30) as sock:
        sock.sendall(f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {len(sql)}\r\n\r\n{sql}".encode())
        received = b""
        while block := sock.recv(1 << 20):
            received += block
    assert b"200 OK" in received[:100]
    assert b"__exception__" in received
    assert b"Code: 395" in received
    assert not received.endswith(b"0\r\n\r\n")
    response, _ = ask(store, sql, wait_end_of_query=1)
    assert response.status == 500


@pytest.mark.parametrize("coding", ["gzip", "deflate", "lz4", "zstd"])
def test_answers_are_compressed_as_asked(store: Store, coding: str) -> None:
    sql = "SELECT number FROM numbers(500000)"
    response, packed = ask(store, sql, enable_http_compression=1, headers={"Accept-Encoding": coding})
    assert response.headers["Content-Encoding"] == coding
    assert codecs.decompress(packed, coding, 1 << 30) == text(store, sql).encode()
    assert "Content-Encoding" not in ask(store, sql, headers={"Accept-Encoding": coding})[0].headers


@pytest.mark.parametrize(
    ("coding", "pack"),
    [("gzip", gzip.compress), ("deflate", zlib.compress), ("lz4", lz4.frame.compress), ("zstd", zstandard.compress)],
)
def test_bodies_are_decompressed(store: Store, coding: str, pack: Any) -> None:
    text(store, f"CREATE OR REPLACE TABLE packed_{coding} (a UInt32) ENGINE = Memory")
    data = b"".join(b"%d\n" % i for i in range(100_000))
    response, body = ask(
        store, pack(data), query=f"INSERT INTO packed_{coding} FORMAT TSV", headers={"Content-Encoding": coding}
    )
    assert response.status == 200, body
    assert text(store, f"SELECT count(), sum(a) FROM packed_{coding}") == "100000\t4999950000\n"
    cut, body = ask(
        store, pack(data)[:-9], query=f"INSERT INTO packed_{coding} FORMAT TSV", headers={"Content-Encoding": coding}
    )
    assert cut.headers["X-ClickHouse-Exception-Code"] == "271", body
    assert text(store, f"SELECT count() FROM packed_{coding}") == "100000\n"


def test_clickhouse_framing_works_both_ways(store: Store) -> None:
    _, packed = ask(store, "SELECT number FROM numbers(300000)", compress=1)
    assert codecs.unframe(packed, 1 << 30) == text(store, "SELECT number FROM numbers(300000)").encode()
    text(store, "CREATE OR REPLACE TABLE framed (a UInt32) ENGINE = Memory")
    framing = codecs.Framing()
    data = framing.compress(b"1\n2\n3\n" * 100_000) + framing.flush()
    assert ask(store, data, query="INSERT INTO framed FORMAT TSV", decompress=1)[0].status == 200
    damaged = data[:-5] + b"\0\0\0\0\0"
    response, _ = ask(store, damaged, query="INSERT INTO framed FORMAT TSV", decompress=1)
    assert response.headers["X-ClickHouse-Exception-Code"] == "271"
    assert text(store, "SELECT count() FROM framed") == "300000\n"


def test_a_session_keeps_settings_and_temporary_tables(store: Store) -> None:
    text(store, "SET max_block_size = 77", session_id="s1")
    assert text(store, "SELECT getSetting('max_block_size')", session_id="s1") == "77\n"
    text(store, "CREATE TEMPORARY TABLE mine (a Int8)", session_id="s1")
    text(store, "INSERT INTO mine VALUES (1),(2)", session_id="s1")
    assert text(store, "SELECT count() FROM mine", session_id="s1", max_threads=1) == "2\n"
    response, _ = ask(store, "SELECT 1", session_id="s2", session_check=1)
    assert response.headers["X-ClickHouse-Exception-Code"] == "372"


def test_a_session_serves_one_request_at_a_time(store: Store) -> None:
    slow = threading.Thread(target=ask, args=(store, "SELECT sleep(1)"), kwargs={"session_id": "s3"})
    slow.start()
    time.sleep(0.4)
    response, _ = ask(store, "SELECT 1", session_id="s3")
    slow.join()
    assert response.headers["X-ClickHouse-Exception-Code"] == "373"


def test_the_same_query_id_cannot_run_twice(store: Store) -> None:
    slow = threading.Thread(target=ask, args=(store, "SELECT sleep(1)"), kwargs={"query_id": "twice"})
    slow.start()
    time.sleep(0.4)
    response, _ = ask(store, "SELECT 1", query_id="twice")
    slow.join()
    assert response.headers["X-ClickHouse-Exception-Code"] == "216"


def test_kill_query_ends_a_query_by_the_id_its_client_gave(store: Store) -> None:
    answers: list[Any] = []
    sql = "SELECT count() FROM numbers(100000000000) WHERE cityHash64(number) = 0"
    slow = threading.Thread(target=lambda: answers.append(ask(store, sql, query_id="victim")))
    slow.start()
    eventually(lambda: "victim" in text(store, "SELECT Settings['log_comment'] FROM system.processes"), 10, "it runs")
    text(store, "KILL QUERY WHERE query_id = 'victim' SYNC")
    slow.join(10)
    assert answers[0][0].headers["X-ClickHouse-Exception-Code"] == "394"


def test_a_query_is_cancelled_when_its_client_hangs_up(store: Store) -> None:
    sql = "SELECT count() FROM numbers(100000000000) WHERE cityHash64(number) = 1"
    with socket.create_connection(("127.0.0.1", store.port)) as sock:
        sock.sendall(f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {len(sql)}\r\n\r\n{sql}".encode())
        eventually(lambda: "= 1" in text(store, "SELECT query FROM system.processes"), 10, "it runs")
    left = "SELECT count() FROM system.processes WHERE query LIKE '%= 1' AND query NOT LIKE '%processes%'"
    eventually(lambda: text(store, left) == "0\n", 10, "it is cancelled")


def test_memory_and_time_of_a_query_are_limited(store: Store) -> None:
    response, _ = ask(store, "SELECT groupArray(number) FROM numbers(50000000)", max_memory_usage=10_000_000)
    assert response.headers["X-ClickHouse-Exception-Code"] == "241"
    sql = "SELECT count() FROM numbers(100000000000) WHERE cityHash64(number) = 2"
    response, _ = ask(store, sql, max_execution_time=1)
    assert response.headers["X-ClickHouse-Exception-Code"] == "159"


def test_a_waiting_client_is_told_progress_in_headers(store: Store) -> None:
    # It takes its time on any machine: a fast one would answer before there is progress to tell.
    sql = "SELECT sum(sleepEachRow(0.1)) FROM numbers(15) SETTINGS max_block_size = 1"
    response, body = ask(store, sql, send_progress_in_http_headers=1, http_headers_progress_interval_ms=1)
    assert (response.status, body.strip().isdigit()) == (200, True)
    assert int(json.loads(response.headers["X-ClickHouse-Progress"])["read_rows"]) > 0
    failing = "SELECT max(throwIf(number = 199999999)) FROM numbers(200000000) FORMAT JSON"
    response, body = ask(store, failing, send_progress_in_http_headers=1, http_headers_progress_interval_ms=1)
    assert response.headers["X-ClickHouse-Exception-Code"] == "395"


def test_a_form_with_parameters_and_a_table_that_comes_along(store: Store) -> None:
    boundary = "xyz"

    def part(name: str, value: str, file: str = "") -> str:
        extra = f'; filename="{file}"' if file else ""
        return f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n\r\n{value}\r\n'

    body = part("query", "SELECT sum(a) + {x:UInt8} FROM t") + part("param_x", "3") + part("t", "1\n2\n", "t")
    response, answer = ask(
        store,
        (body + f"--{boundary}--\r\n").encode(),
        t_structure="a UInt8",
        t_format="TSV",
        headers={"Content-Type": f"multipart/form-data; boundary={boundary}"},
    )
    assert (response.status, answer) == (200, b"6\n")


def test_a_chunked_body_is_taken(store: Store) -> None:
    text(store, "CREATE OR REPLACE TABLE chunked (a UInt32) ENGINE = Memory")
    connection = HTTPConnection("127.0.0.1", store.port)
    rows = (b"%d\n" % i for i in range(1000))
    connection.request("POST", "/?query=INSERT+INTO+chunked+FORMAT+TSV", body=rows, encode_chunked=True,
                       headers={"Transfer-Encoding": "chunked"})  # fmt: skip
    assert connection.getresponse().status == 200
    assert text(store, "SELECT count() FROM chunked") == "1000\n"


def test_one_connection_serves_many_requests_errors_included(store: Store) -> None:
    connection = HTTPConnection("127.0.0.1", store.port)
    for i in range(20):
        connection.request("POST", "/", body=f"SELECT {i}" if i % 3 else "SELECT nope")
        response = connection.getresponse()
        assert response.read() == f"{i}\n".encode() or response.status == 404
    sock = connection.sock
    connection.request("POST", "/", body="SELECT 1")
    connection.getresponse().read()
    assert connection.sock is sock


def test_the_driver_reads_writes_and_streams(store: Store) -> None:
    client = clickhouse_connect.get_client(host="127.0.0.1", port=store.port, compress=True)
    client.command("CREATE OR REPLACE TABLE drv (a UInt32, s LowCardinality(String), t DateTime64(3,'UTC')) "
                   "ENGINE = MergeTree ORDER BY a")  # fmt: skip
    rows = [[i, f"s{i % 3}", 1_700_000_000_000 + i] for i in range(10_000)]
    client.insert("drv", [[a, s, np.datetime64(t, "ms").astype(object)] for a, s, t in rows], ["a", "s", "t"])
    result = client.query("SELECT a, s FROM drv WHERE a >= {low:UInt32} ORDER BY a", parameters={"low": 9_998})
    assert result.result_rows == [(9998, "s2"), (9999, "s0")]
    assert client.query_df("SELECT s, count() AS n FROM drv GROUP BY s ORDER BY s")["n"].tolist() == [3334, 3333, 3333]
    assert client.query_arrow("SELECT sum(a) AS x FROM drv").to_pydict() == {"x": [49_995_000]}
    with client.query_row_block_stream("SELECT number FROM numbers(200000)") as stream:
        assert sum(len(block) for block in stream) == 200_000
    with pytest.raises(clickhouse_connect.driver.exceptions.DatabaseError) as caught:
        client.query("SELECT nope")
    assert caught.value.code == 47
    client.close()


def test_reads_go_on_while_inserts_run(store: Store) -> None:
    text(store, "CREATE OR REPLACE TABLE busy (a UInt64) ENGINE = MergeTree ORDER BY a")
    stop = threading.Event()
    failures: list[bytes] = []
    done = [0, 0]

    def insert(n: int) -> None:
        block = b"".join(b"%d\n" % i for i in range(5_000))
        while not stop.is_set():
            response, body = ask(store, block, query="INSERT INTO busy FORMAT TSV")
            done[0] += 1
            failures.extend([body] if response.status != 200 else [])

    def read(n: int) -> None:
        while not stop.is_set():
            response, body = ask(store, "SELECT count() % 5000 FROM busy")
            done[1] += 1
            failures.extend([body] if response.status != 200 or body != b"0\n" else [])

    threads = [threading.Thread(target=f, args=(i,)) for i in range(4) for f in (insert, read)]
    for thread in threads:
        thread.start()
    time.sleep(2)
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert min(done) > 10

"""``telemetry-clickhouse`` as a process: what it refuses to start with, who may ask, how it ends."""

from __future__ import annotations

import base64
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from clickhouse.client import StoreAddress, StoreConnection, StorePool
from clickhouse.errors import StoreError, StoreRefused
from clickhouse.insert import insert_samples
from tests.helpers.store import Store, running_store, sample_columns
from tests.integration.clickhouse.test_http_interface import ask


def run(*arguments: str, timeout: float = 30) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "clickhouse.cli", *arguments], capture_output=True, text=True, timeout=timeout
    )


def test_a_data_directory_held_by_another_process_is_one_line_and_exit_code_2(store: Store) -> None:
    ended = run("serve", "--data-dir", str(store.directory / "data"), "--http", "127.0.0.1:0")
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert str(store.directory / "data") in ended.stderr
    assert "held by process" in ended.stderr


def test_an_address_in_use_is_one_line_and_exit_code_2(store: Store, tmp_path: Path) -> None:
    ended = run("serve", "--data-dir", str(tmp_path / "d"), "--http", f"127.0.0.1:{store.port}")
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert "in use" in ended.stderr


def test_listening_beyond_loopback_needs_passwords(tmp_path: Path) -> None:
    ended = run("serve", "--data-dir", str(tmp_path / "d"), "--http", "0.0.0.0:0")
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert "--insecure" in ended.stderr


def test_a_store_that_is_away_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    ended = run("status", "--url", "http://127.0.0.1:9")
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1)
    assert "connection refused" in ended.stderr.lower()


def test_status_tells_schema_and_tables(store: Store) -> None:
    ended = run("status", "--url", store.url)
    assert ended.returncode == 0, ended.stderr
    assert "samples" in ended.stdout
    assert "boot id" in ended.stdout


def test_migrations_go_forwards_backwards_and_dry(store: Store) -> None:
    where = ("--url", store.url, "--database", "moving")
    dry = run("migrate", *where, "--dry-run")
    assert "CREATE TABLE IF NOT EXISTS moving.samples" in dry.stdout
    assert "UNKNOWN_DATABASE" not in dry.stderr
    forwards = run("migrate", *where)
    assert forwards.returncode == 0, forwards.stderr
    assert forwards.stdout.startswith("+0001 samples")
    assert run("migrate", *where).stdout == "nothing to do\n"
    refused = run("migrate", *where, "--to", "0")
    assert (refused.returncode, "--yes" in refused.stderr) == (2, True)
    backwards = run("migrate", *where, "--to", "0", "--yes")
    assert backwards.returncode == 0, backwards.stderr
    with store.connect() as conn:
        tables = conn.query("SELECT name FROM system.tables WHERE database = 'moving'")
    assert tables == [("migrations",)]
    assert run("migrate", *where, "--to", "99").returncode == 2
    assert run("migrate", *where).returncode == 0


def test_users_have_passwords_and_one_may_only_read(tmp_path: Path) -> None:
    options = ("--user", "writer", "--password", "w", "--readonly-user", "reader", "--readonly-password", "r")
    with running_store(tmp_path, *options) as store:
        for headers in (
            {},
            {"X-ClickHouse-User": "writer", "X-ClickHouse-Key": "wrong"},
            {"X-ClickHouse-User": "nobody", "X-ClickHouse-Key": "w"},
            {"Authorization": "Basic " + base64.b64encode(b"writer:r").decode()},
            {"Authorization": "Basic !!"},
        ):
            response, body = ask(store, "SELECT 1", headers=headers)
            assert (response.status, response.headers["X-ClickHouse-Exception-Code"]) == (403, "516"), body
        assert ask(store, "SELECT 1", user="reader", password="r")[1] == b"1\n"
        assert ask(store, method="GET", path="/ping")[0].status == 200
        with StoreConnection(StoreAddress(store.url, user="writer", password="w")) as conn:
            insert_samples(conn, sample_columns(10), token="w")
        reader = StorePool(StoreAddress(store.url, user="reader", password="r"))
        assert reader.query("SELECT count() FROM samples") == [(10,)]
        for sql in (
            "DROP TABLE samples",
            "INSERT INTO samples SELECT * FROM samples",
            "TRUNCATE TABLE samples",
            "KILL QUERY WHERE 1",
            "SYSTEM STOP MERGES",
            "BACKUP DATABASE telemetry TO File('x')",
        ):
            with pytest.raises(StoreRefused) as caught:
                reader.command(sql)
            assert caught.value.code == 164
        with pytest.raises(StoreError):
            reader.command("SET readonly = 0")
        with pytest.raises(StoreRefused) as caught, StoreConnection(StoreAddress(store.url, user="writer")):
            pass
        assert caught.value.code == 516
        reader.close()


def test_sigterm_lets_queries_finish_and_ends_with_0(tmp_path: Path) -> None:
    with running_store(tmp_path) as store:
        answers: list[bytes] = []
        slow = threading.Thread(target=lambda: answers.append(ask(store, "SELECT sleep(1.5), 7")[1]))
        slow.start()
        time.sleep(0.5)
        started = time.monotonic()
        assert store.stop() == 0
        assert time.monotonic() - started < 5
        slow.join()
        assert answers == [b"0\t7\n"]


def test_sigterm_kills_what_does_not_finish_in_time(tmp_path: Path) -> None:
    with running_store(tmp_path, "--drain-timeout", "4s") as store:
        sql = "SELECT count() FROM numbers(100000000000) WHERE cityHash64(number) = 3"
        slow = threading.Thread(target=lambda: ask(store, sql), daemon=True)
        slow.start()
        time.sleep(0.5)
        started = time.monotonic()
        assert store.stop() == 0
        assert time.monotonic() - started < 6


def test_a_pool_finds_the_store_again_after_a_restart(tmp_path: Path) -> None:
    with running_store(tmp_path) as store:
        pool = StorePool(StoreAddress(store.url))
        assert pool.query("SELECT 1") == [(1,)]
        store.restart(kill=True)
        assert pool.query("SELECT 2") == [(2,)]
        assert pool.query_arrow("SELECT 3 AS x").to_pydict() == {"x": [3]}
        pool.close()

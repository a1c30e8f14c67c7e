from __future__ import annotations

from collections.abc import Iterator

import pytest

from clickhouse.client import StoreConnection
from tests.helpers.store import Store, running_store


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """One server for the tests that leave it running."""
    with running_store(tmp_path_factory.mktemp("store")) as store:
        yield store


@pytest.fixture
def conn(store: Store) -> Iterator[StoreConnection]:
    with store.connect() as conn:
        yield conn


@pytest.fixture
def empty(conn: StoreConnection) -> StoreConnection:
    """A connection to tables without rows."""
    for table in ("samples", "devices", "rejects"):
        conn.command(f"TRUNCATE TABLE telemetry.{table}")
    return conn

"""One embedded store with a known fleet for all tests of this folder; they only read it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from flask import Flask
from flask.testing import FlaskClient

from tests.helpers.api import Fleet, app_on, pool
from tests.helpers.processes import RunningProcess


@pytest.fixture(scope="session")
def store_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("api-store")
    arguments = ["serve", "--data-dir", str(directory / "data"), "--http", "127.0.0.1:0"]
    with RunningProcess("clickhouse.cli", arguments, directory, name="store") as process:
        url = process.http(30)
        migrate = RunningProcess("clickhouse.cli", ["migrate", "--url", url], directory, name="migrate")
        assert migrate.popen.wait(60) == 0, migrate.log_path.read_text()
        yield url


@pytest.fixture(scope="session")
def fleet(store_url: str) -> Fleet:
    return Fleet(store_url).fill()


@pytest.fixture(scope="session")
def app(fleet: Fleet) -> Iterator[Flask]:
    with pool(fleet.url) as store:
        yield app_on(store)


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()

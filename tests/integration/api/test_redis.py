"""Two API processes that share a Redis: cached answers and rate limits are theirs together."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.helpers.api import app_on
from tests.helpers.api_fakes import RecordingStore
from tests.helpers.processes import free_port
from tests.helpers.tools import needed
from tests.helpers.waiting import eventually


class RedisServer:
    """A Redis of this test's own, without a disk."""

    def __init__(self, directory: Path) -> None:
        self._program = needed("redis-server", "redis-server")
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._directory = directory
        self.start()

    def start(self) -> None:
        command = [self._program, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self._process = subprocess.Popen(command, cwd=self._directory, stdout=subprocess.DEVNULL)
        eventually(self._answers, 30, "redis answers")

    def _answers(self) -> bool:
        try:
            return bool(redis.Redis.from_url(self.url).ping())
        except redis.ConnectionError:
            return False

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    running = RedisServer(tmp_path)
    try:
        yield running
    finally:
        running.kill()


def test_an_answer_that_one_process_made_is_given_by_the_other(server: RedisServer) -> None:
    stores = [RecordingStore(), RecordingStore()]
    first, second = (app_on(store, redis_url=server.url, cache_seconds=1.0).test_client() for store in stores)
    made = first.get("/api/v1/metrics")
    given = second.get("/api/v1/metrics")
    assert given.status_code == 200
    assert given.get_data() == made.get_data()
    assert given.headers["ETag"] == made.headers["ETag"]
    assert stores[0].asked
    assert not stores[1].asked


def test_a_client_has_one_rate_limit_at_both(server: RedisServer) -> None:
    settings: dict[str, Any] = {"redis_url": server.url, "rate_limit": "2/minute"}
    first, second = (app_on(RecordingStore(), **settings).test_client() for _ in range(2))
    assert [client.get("/api/v1/gpus").status_code for client in (first, second, first)] == [200, 200, 429]


def test_while_redis_is_away_everything_is_answered_and_limits_are_counted_here(server: RedisServer) -> None:
    client = app_on(RecordingStore(), redis_url=server.url, cache_seconds=1.0, rate_limit="3/minute").test_client()
    assert client.get("/api/v1/metrics").status_code == 200
    server.kill()
    assert [client.get("/api/v1/metrics").status_code for _ in range(4)] == [200, 200, 200, 429]

"""The drill of docs/deploy.md with real processes: back up, lose the store, restore; lose the broker, restore."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.helpers.documents import fences
from tests.helpers.processes import ROOT, RunningProcess, free_port, get_json
from tests.helpers.store import Store
from tests.helpers.waiting import eventually

pytestmark = pytest.mark.timeout(300)

SAMPLE = ROOT / "producers" / "sample" / "dcgm_sample.csv"
TOLD = {
    line.partition("#")[0].strip()
    for fence in fences()
    if fence.page == "docs/deploy.md" and fence.by == "tests/e2e/test_disaster_recovery.py"
    for line in fence.commands
}


class Installation:
    """Store, broker and one collector on directories of their own, and the operator's terminal."""

    def __init__(self, directory: Path, running: ExitStack) -> None:
        self.directory = directory
        self._running = running
        self.store = Store(directory / "store-1")
        self.data, self.admin = (f"tcp://127.0.0.1:{free_port()}" for _ in range(2))
        self.told: set[str] = set()

    def start(self, name: str, module: str, *args: str | Path) -> RunningProcess:
        words = [*(str(arg) for arg in args), "--http", "127.0.0.1:0"]
        process = RunningProcess(module, words, self.directory / "logs", name=f"{name}-{free_port()}")
        self._running.enter_context(process)
        process.wait_ready()
        return process

    def start_store(self) -> None:
        store = self.store
        self._running.callback(lambda: store.kill() if store.process else None)
        store.start()

    def start_broker(self, data_dir: Path) -> RunningProcess:
        addresses = ("--bind", self.data, "--admin-bind", self.admin)
        return self.start("broker", "zmqbroker.cli", "serve", "--data-dir", data_dir, *addresses)

    def start_collector(self) -> RunningProcess:
        return self.start("collector", "consumers.cli", "--connect", self.data, "--clickhouse", self.store.url)

    def run(self, command: str, code: int = 0) -> str:
        """A command of the page, word for word, where relative paths are the operator's."""
        assert command in TOLD, f"docs/deploy.md does not tell of: {command}"
        self.told.add(command)
        env = {**os.environ, "ZMQBROKER_ADMIN_URL": self.admin, "CLICKHOUSE_URL": self.store.url, "STORE_HTTP": "off"}
        program, *words = shlex.split(command)
        words = [str(self.directory / word) if word in ("broker-backup", "new-broker") else word for word in words]
        done = subprocess.run(
            [ROOT / ".venv" / "bin" / program, *words],
            cwd=self.directory, env=env, capture_output=True, text=True, timeout=90, check=False,
        )  # fmt: skip
        assert done.returncode == code, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        return done.stdout

    def play(self) -> int:
        """Send the sample once more; rows that were sent."""
        state = self.directory / f"streamer-{free_port()}"
        args = ["csv", str(SAMPLE), "--connect", self.data, "--http", "off", "--state-dir", str(state)]
        with RunningProcess("producers.cli", args, self.directory / "logs", name=state.name) as streamer:
            assert streamer.popen.wait(60) == 0, streamer.log_path.read_text()[-2000:]
        return len(SAMPLE.read_text().splitlines()) - 1

    def rows(self) -> int:
        """Rows in the store, the rejected ones among them."""
        with self.store.connect() as conn:
            (count,) = conn.query(
                "SELECT (SELECT count() FROM telemetry.samples) + (SELECT count() FROM telemetry.rejects)"
            )[0]
        return int(count)

    def wait_for_rows(self, rows: int) -> None:
        eventually(lambda: self.rows() >= rows, 60, f"{rows} rows are stored", pause=0.2)
        assert self.rows() == rows, "some are there twice"


@pytest.fixture
def running() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_nothing_is_lost_or_doubled_when_first_the_store_and_then_the_broker_is_lost_and_restored(
    tmp_path: Path, running: ExitStack
) -> None:
    here = Installation(tmp_path, running)
    here.start_store()
    broker = here.start_broker(tmp_path / "broker-1")
    collector = here.start_collector()
    rows = here.play()
    here.wait_for_rows(rows)

    here.run("telemetry-clickhouse backup drill")
    kept = tmp_path / "elsewhere"
    shutil.copytree(here.store.directory / "data" / "backups" / "drill", kept)
    rows += here.play()
    here.wait_for_rows(rows)

    # The store's disk is gone: of its rows only those of before the backup are left, with the broker the others.
    assert collector.stop() == 0
    here.store.kill()
    shutil.rmtree(here.store.directory)
    here.store = Store(tmp_path / "store-2")
    shutil.copytree(kept, here.store.directory / "data" / "backups" / "drill")
    here.start_store()
    assert here.rows() == 0
    here.run("telemetry-clickhouse restore drill --over")
    assert here.rows() == rows // 2
    here.store.restart(kill=False)
    collector = here.start_collector()
    here.run("zmqbroker admin replay gpu-telemetry --into clickhouse --from now-1h --yes")
    here.wait_for_rows(rows)
    here.run("telemetry-clickhouse verify")

    # The broker's disk is gone: what it held was stored, and is compared with the store, not inserted again.
    here.run("zmqbroker admin backup --to broker-backup")
    assert broker.stop() == 0
    shutil.rmtree(tmp_path / "broker-1")
    here.run("zmqbroker admin restore --from broker-backup --data-dir new-broker")
    here.start_broker(tmp_path / "new-broker")
    rows += here.play()
    here.wait_for_rows(rows)
    eventually(lambda: lag(here, collector) == 0, 60, "the collector has nothing left to compare", pause=0.2)
    assert here.rows() == rows
    here.run("zmqbroker admin doctor")
    here.run("telemetry-clickhouse verify")
    assert here.told == TOLD, f"told and not done: {TOLD - here.told}"


def lag(here: Installation, collector: RunningProcess) -> int:
    """Rows that wait for the collectors."""
    assert get_json(f"{collector.http()}/health")["status"] == "healthy"
    env = {**os.environ, "ZMQBROKER_ADMIN_URL": here.admin}
    done = subprocess.run(
        [ROOT / ".venv" / "bin" / "zmqbroker", "admin", "lag", "-o", "json"],
        env=env, capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    return sum(int(found) for found in re.findall(r'"lag_rows": (\d+)', done.stdout))

"""A real store for tests: the embedded server as a process of its own."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from clickhouse.client import StoreAddress, StoreConnection
from clickhouse.insert import MS_A_DAY, SampleColumns
from tests.helpers.processes import RunningProcess, free_port


class Store:
    """The embedded server, with the same address and data over restarts."""

    def __init__(self, directory: Path, *options: str, migrate: bool = True) -> None:
        self.directory = directory
        self.port = free_port()
        self.options = [*options, *(["--migrate"] if migrate else [])]
        self.process: RunningProcess | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> Store:
        self.launch().wait_ready()
        return self

    def launch(self) -> RunningProcess:
        """Start it without waiting for it."""
        self.process = RunningProcess(
            "clickhouse.cli",
            ["serve", "--data-dir", str(self.directory / "data"), "--http", f"127.0.0.1:{self.port}", *self.options],
            self.directory / f"run-{time.time_ns()}",
            name="store",
        )
        return self.process

    def stop(self) -> int:
        assert self.process is not None
        return self.process.stop()

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()

    def restart(self, *, kill: bool = True) -> None:
        """End it, with or without notice, and start it again on the same data."""
        self.kill() if kill else self.stop()
        self.start()

    def connect(self, **options: object) -> StoreConnection:
        return StoreConnection(StoreAddress(url=self.url, **options))  # type: ignore[arg-type]


@contextmanager
def running_store(directory: Path, *options: str, migrate: bool = True) -> Iterator[Store]:
    """A store that is ready; it is killed at the end."""
    store = Store(directory, *options, migrate=migrate)
    try:
        yield store.start()
    finally:
        if store.process is not None:
            store.process.kill()


def today_ms() -> int:
    """The first millisecond of the present UTC day."""
    return time.time_ns() // 1_000_000 // MS_A_DAY * MS_A_DAY


def sample_columns(
    rows: int,
    *,
    session: int = 1,
    first_seq: int = 1,
    batch_rows: int = 1000,
    gpus: int = 8,
    metrics: Sequence[str] = ("DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_DEV_GPU_TEMP"),
    start_ms: int | None = None,
) -> SampleColumns:
    """Rows as a delivery has them: batches of ``batch_rows``, one second after the other, every GPU and metric."""
    index = np.arange(rows)
    series = gpus * len(metrics)
    gpu = (index % series // len(metrics) + 1000).astype(np.uint64)
    return SampleColumns(
        gpu=gpu,
        labels=gpu + np.uint64(7),
        metric_code=(index % len(metrics)).astype(np.uint16),
        metric_names=list(metrics),
        ts_ms=(today_ms() if start_ms is None else start_ms) + index // series * 1000,
        value=(index % 97).astype(np.float64),
        session=np.full(rows, session, dtype=np.uint64),
        seq=(index // batch_rows).astype(np.uint64) + np.uint64(first_seq),
    )

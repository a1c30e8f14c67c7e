"""A producer with the API of the broker's client that needs no broker: what it is given, it keeps on disk.

:class:`DirectoryProducer` works across processes: each acknowledged batch is a file ``SESSION-SEQ`` in the directory
that ``url`` names (``dir:///tmp/x``), and a (session, seq) that is there already is known, as with the real broker.
"""

from __future__ import annotations

import os
import secrets
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from telemetry.batch import Batch, BatchDecoder
from zmqbroker.errors import PublishTimeout


class Stats(NamedTuple):
    published: int = 0
    acked: int = 0
    rows_published: int = 0
    rows_acked: int = 0
    pending: int = 0
    pending_bytes: int = 0
    refused: int = 0
    reconnects: int = 0
    credit_wait_seconds: float = 0.0
    possible_duplicates: int = 0
    connected: bool = True


class Done:
    def __init__(self, seq: int) -> None:
        self.seq = seq
        self.done = True
        self.error = None

    def wait(self, timeout: float | None = None) -> bool:
        return True

    def add_done_callback(self, call: Callable[[Done], None]) -> None:
        call(self)


class DirectoryProducer:
    """Acknowledges at once. A file ``stop`` in the directory means that there is no credit; a file ``slow`` holds the
    seconds that each publish takes."""

    def __init__(self, url: str, topic: str, *, session=None, first_seq=1, name="", keys=None) -> None:
        self.directory = Path(url.removeprefix("dir://"))
        self.session = secrets.randbits(64) if session is None else session
        self._seq = first_seq

    def publish(
        self, payload: bytes | Callable[[int, int], bytes], rows: int, key=None, timeout: float | None = None
    ) -> Done:
        if (self.directory / "stop").exists():
            time.sleep(min(timeout or 0.05, 0.05))
            raise PublishTimeout("no credit")
        if (self.directory / "slow").exists():
            time.sleep(float((self.directory / "slow").read_text()))
        seq = self._seq
        body = payload(self.session, seq) if callable(payload) else payload
        path = self.directory / f"{self.session:016x}-{seq:08d}"
        if path.exists():
            # The same address must hold the same rows: note it where it does not.
            if _content(path.read_bytes()) != _content(body):
                (self.directory / f"conflict.{path.name}").touch()
        else:
            part = path.with_suffix(f".{os.getpid()}")
            part.write_bytes(body)
            os.replace(part, path)
        self._seq += 1
        return Done(seq)

    @property
    def stats(self) -> Stats:
        return Stats()

    def close(self, timeout: float = 0) -> int:
        return 0


def _content(body: bytes) -> tuple:
    """The rows of a batch, in order; that of its dictionary is nobody's business."""
    batch = BatchDecoder().decode(body)
    devices, metrics = batch.dictionary.devices, batch.dictionary.metrics
    return (
        batch.timestamp_ns.tobytes(),
        batch.value.tobytes(),
        [devices[code] for code in batch.device_code.tolist()],
        [metrics[code] for code in batch.metric_code.tolist()],
    )


def conflicts_in(directory: Path) -> list[str]:
    """Addresses under which two different batches were sent."""
    return [path.name for path in directory.glob("conflict.*")]


def batches_in(directory: Path) -> list[Batch]:
    """Every batch that was acknowledged, in order of (session, seq)."""
    decoder = BatchDecoder()
    names = sorted(path for path in directory.iterdir() if "-" in path.name and "." not in path.name)
    return [decoder.decode(path.read_bytes()) for path in names]


def rows_in(batches: list[Batch]) -> Counter:
    """(gpu id, metric, value) of every row, counted."""
    rows: Counter = Counter()
    for batch in batches:
        devices, metrics = batch.dictionary.devices, batch.dictionary.metrics
        for device, metric, value in zip(
            batch.device_code.tolist(), batch.metric_code.tolist(), batch.value.tolist(), strict=True
        ):
            rows[devices[device].gpu_id, metrics[metric], value] += 1
    return rows

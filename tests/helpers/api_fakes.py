"""Stand-ins for the store and the broker that record what was asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from api.errors import BrokerAway
from clickhouse.errors import StoreUnavailable
from zmqbroker.errors import BrokerError

DEVICE = (1, "GPU-1", "GPU-1", "host-1", "0", "nvidia0", "H100", "", "", "", "", "", {}, 11)


class RecordingStore:
    """Answers questions by a word in their SQL; everything asked is kept."""

    def __init__(self, **answers: Any) -> None:
        self.asked: list[tuple[str, Any]] = []
        self.away = False
        self.answers: dict[str, Any] = {
            "FROM devices": [DEVICE],
            "GROUP BY gpu": [(1, 1_752_871_354_000, 1_752_871_354_000)],
            "FROM rejects": [(0,)],
            "system.parts": [],
            "SELECT count(), toUnixTimestamp64Milli(max(ts)) FROM samples": [(0, 0)],
            "count(), toUnix": [(0, 0, 0, 7)],
            **answers,
        }

    def query(self, sql: str, params: Any = None, settings: Any = None) -> list[Any]:
        self.asked.append((sql, params))
        if self.away:
            raise StoreUnavailable("cannot reach the store at http://127.0.0.1:1: connection refused")
        for word, rows in self.answers.items():
            if word in sql:
                if isinstance(rows, Exception):
                    raise rows
                return rows
        return []

    def query_counted(self, sql: str, params: Any = None, settings: Any = None) -> tuple[list[Any], int]:
        rows = self.query(sql, params, settings)
        return rows, len(rows)

    def query_numbers(self, sql: str, params: Any, settings: Any, row: np.dtype) -> np.ndarray:
        return np.array(self.query(sql, params, settings), dtype=row)

    def query_arrow(self, sql: str, params: Any = None, settings: Any = None) -> pa.Table:
        """Only ever without rows."""
        self.query(sql, params, settings)
        empty = pa.array([], pa.uint64())
        return pa.table({"gpu": empty, "metric": empty.cast(pa.string()), "t": empty, "value": empty})


class FakeReceipt:
    def __init__(self, done: bool) -> None:
        self.done = done

    def wait(self, timeout: float | None = None) -> bool:
        return self.done


class FakeBroker:
    """Keeps the batches published; ``confirms`` False leaves them without an ack, ``away`` refuses at once."""

    def __init__(self) -> None:
        self.batches: list[bytes] = []
        self.receipts: list[FakeReceipt] = []
        self.confirms = True
        self.away = False
        self.live_consumer: Any = None
        self.url = "tcp://127.0.0.1:1"
        self.topic = "gpu-telemetry"

    def stats(self) -> dict[str, Any] | None:
        return None

    def reachable(self, seconds: float) -> bool:
        return not self.away

    def publish(
        self, make: Callable[[int, int], bytes], rows: int, *, seconds: float, session: int | None = None
    ) -> FakeReceipt:
        if self.away:
            raise BrokerAway("the broker cannot be reached at present: try again shortly")
        self.batches.append(make(session or 7, len(self.batches) + 1))
        self.receipts.append(FakeReceipt(self.confirms))
        return self.receipts[-1]

    def release(self, session: int | None) -> None:
        pass

    def new_producer(self, session: int | None, first_seq: int = 1) -> Any:
        raise BrokerError("there is no broker")

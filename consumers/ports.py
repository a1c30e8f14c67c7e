"""What the collector needs of the outside, as small interfaces: the broker (:class:`Source`), the store
(:class:`StoreSession`), and a delivery. ``source`` and ``store`` hold the real ones; tests bring their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from consumers.dictionary import DictionaryKeys
from consumers.merge import Address, DayBlock, Probe
from consumers.rejects import RejectBlock


class Delivery(Protocol):
    """A sealed range of one partition, held under a lease (:class:`zmqbroker.client.Delivery`)."""

    topic: str
    log_uuid: str
    seal_epoch: int
    partition: int
    first: int
    last: int
    range_id: int
    attempt: int
    maybe_repeat: bool
    rows: int
    records: np.ndarray

    def payloads(self) -> Sequence[memoryview | bytes]: ...


class Source(Protocol):
    """Where deliveries come from. Thread-safe: every worker calls it."""

    def receive(self, timeout: float) -> Any | None:
        """The next delivery, or None after ``timeout`` seconds."""

    def ack(self, delivery: Any, *, rejected_rows: int, dead_offsets: Sequence[int], reason: str) -> None:
        """The range is settled: stored, but for the records at ``dead_offsets``, which go to the dead letters."""

    def nack(self, delivery: Any, reason: str, *, failure: bool) -> None:
        """Give the range back; ``failure``: the data may be to blame, count it (R22)."""

    def working(self, delivery: Any, state: str) -> None:
        """Tell the broker that the range is being worked on: "inserting" or "waiting" (for the store)."""

    def holds(self, delivery: Any) -> bool:
        """Whether the lease is surely still ours, by our own clock: asked right before something is sent (R12)."""

    def set_credit(self, deliveries: int) -> None:
        """How many unsettled deliveries may be here at a time; 0 stops the flow."""

    @property
    def connected(self) -> bool: ...

    def close(self, timeout: float) -> None: ...


class StoreSession(Protocol):
    """One connection to one boot of the store. Every method raises :mod:`clickhouse.errors`, and nothing retries."""

    boot_id: str

    def insert_devices(self, dictionaries: Iterable[DictionaryKeys]) -> None:
        """Make label sets known; repeats are harmless. Sent before the first rows that name them."""

    def insert_block(self, block: DayBlock, *, token: str, query_id: str) -> None: ...

    def count_block(self, probes: Sequence[Probe]) -> Mapping[Address, int]:
        """Stored rows by batch, for the batches of one day's block."""

    def insert_rejects(self, block: RejectBlock, *, token: str, query_id: str) -> None: ...

    def count_rejects(self, block: RejectBlock, addresses: Sequence[Address]) -> Mapping[Address, int]:
        """Stored rejects by batch."""

    def running_inserts(self, prefix: str) -> Sequence[str]:
        """Ids of queries that run now and start with ``prefix``."""

    def kill(self, query_id: str) -> object:
        """Return when the query is dead."""

    def close(self) -> None: ...

"""The collector's two neighbours as fakes: a store that keeps whole inserts or nothing and dies on request, and a
source with a script of deliveries, leases and redelivery.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from clickhouse.errors import OutcomeUnknown, StoreRefused, StoreUnavailable
from clickhouse.insert import SampleColumns
from clickhouse.native import flat
from consumers.dictionary import DictionaryKeys
from consumers.merge import Address, DayBlock, Probe
from consumers.rejects import RejectBlock
from tests.helpers.deliveries import FakeDelivery

Fault = Callable[["FakeStore", str], None]


@dataclass
class Call:
    """One insert as the store met it."""

    table: str
    token: str
    query_id: str
    boot_id: str
    rows: int


@dataclass
class FakeStore:
    """What survives: rows, tokens. :meth:`open` is what the collector is given; faults are taken from ``script``.

    ``script`` maps an operation ("open", "devices", "samples", "rejects", "count", "kill") to faults, one used a
    call: "away" (nothing reached it), "lost-after" (committed, answer lost), "lost-before" (not committed, answer
    lost), "busy" (refused for now), "down" (it stays away until ``up``), "restart-after" (committed, then the store died), "strange".
    """

    boot: int = 1
    rows: Counter = field(default_factory=Counter)
    rejects: Counter = field(default_factory=Counter)
    labels: set[int] = field(default_factory=set)
    tokens: set[str] = field(default_factory=set)
    calls: list[Call] = field(default_factory=list)
    counted: int = 0
    killed: list[str] = field(default_factory=list)
    running: list[str] = field(default_factory=list)
    script: dict[str, deque[str]] = field(default_factory=dict)
    refuses: Callable[[Sequence[Address]], bool] = lambda addresses: False
    up: bool = True
    slow: threading.Event | None = None
    """Where given: an insert answers only when it is set."""
    sessions: int = 0
    lock: threading.RLock = field(default_factory=threading.RLock)

    def open(self) -> FakeSession:
        with self.lock:
            if not self.up or self.fault("open") == "away":
                raise StoreUnavailable("connection refused")
            self.sessions += 1
            return FakeSession(self, f"boot-{self.boot}")

    def fault(self, operation: str) -> str:
        faults = self.script.get(operation)
        return faults.popleft() if faults else ""

    def restart(self) -> None:
        with self.lock:
            self.boot += 1

    def by_batch(self) -> Counter:
        """Rows stored by (session, seq)."""
        found: Counter = Counter()
        for (session, seq, *_), count in self.rows.items():
            found[session, seq] += count
        return found


def row_by_row(columns: SampleColumns) -> SampleColumns:
    """The same with every key in its row, no codes."""
    return columns._replace(**{name: flat(getattr(columns, name)) for name in ("gpu", "labels", "session", "seq")})


class FakeSession:
    def __init__(self, store: FakeStore, boot_id: str) -> None:
        self._store = store
        self.boot_id = boot_id
        self.closed = False

    def _check(self) -> None:
        if self.closed or not self._store.up or self.boot_id != f"boot-{self._store.boot}":
            raise StoreUnavailable("the connection was lost")

    def _insert(self, table: str, token: str, query_id: str, rows: int, commit: Callable[[], None]) -> None:
        store = self._store
        self._insert_now(table, token, query_id, rows, commit)
        if store.slow is not None:
            store.slow.wait(10)

    def _insert_now(self, table: str, token: str, query_id: str, rows: int, commit: Callable[[], None]) -> None:
        store = self._store
        with store.lock:
            self._check()
            fault = store.fault(table)
            if fault == "away":
                raise StoreUnavailable("closed before anything was sent")
            if fault == "down":
                store.up = False
                raise StoreUnavailable("the server went away")
            store.calls.append(Call(table, token, query_id, self.boot_id, rows))
            if fault == "busy":
                raise StoreRefused("too many parts", 252, permanent=False)
            if fault == "strange":
                raise OutcomeUnknown("never heard of", 4242)
            if fault != "lost-before" and token not in store.tokens:
                store.tokens.add(token)
                commit()
            if fault == "restart-after":
                store.restart()
            if fault:
                raise OutcomeUnknown("the answer did not come")

    def insert_devices(self, dictionaries: Iterable[DictionaryKeys]) -> None:
        with self._store.lock:
            self._check()
            if self._store.fault("devices") == "away":
                raise StoreUnavailable("closed")
            for keys in dictionaries:
                self._store.labels.update(keys.labels.tolist())

    def insert_block(self, block: DayBlock, *, token: str, query_id: str) -> None:
        columns = row_by_row(block.columns)
        addresses = list(dict.fromkeys(Address(s, q) for s, q in zip(columns.session.tolist(), columns.seq.tolist())))
        if self._store.refuses(addresses):
            raise StoreRefused("cannot parse", 27, permanent=True)

        def commit() -> None:
            assert set(columns.labels.tolist()) <= self._store.labels, "rows before their label sets"
            for i in range(block.rows):
                self._store.rows[
                    int(columns.session[i]),
                    int(columns.seq[i]),
                    block.day,
                    int(columns.gpu[i]),
                    columns.metric_names[int(columns.metric_code[i])],
                    int(columns.ts_ms[i]),
                    float(columns.value[i]),
                ] += 1

        self._insert("samples", token, query_id, block.rows, commit)

    def count_block(self, probes: Sequence[Probe]) -> dict[Address, int]:
        with self._store.lock:
            self._check()
            self._store.counted += 1
            if self._store.fault("count") == "away":
                raise StoreUnavailable("closed")
            found: Counter = Counter()
            for (session, seq, day, *_), count in self._store.rows.items():
                found[session, seq, day] += count
            return {Address(p.session, p.seq): found[p.session, p.seq, p.day] for p in probes}

    def insert_rejects(self, block: RejectBlock, *, token: str, query_id: str) -> None:
        def commit() -> None:
            for batch, index, reason in zip(
                block.batch.tolist(), block.rejected.index.tolist(), block.rejected.reason.tolist()
            ):
                one = block.rejected.rows.batches[batch]
                self._store.rejects[one.session, one.seq, index, reason] += 1

        self._insert("rejects", token, query_id, block.rows, commit)

    def count_rejects(self, block: RejectBlock, addresses: Sequence[Address]) -> dict[Address, int]:
        with self._store.lock:
            self._check()
            found: Counter = Counter()
            for (session, seq, *_), count in self._store.rejects.items():
                found[session, seq] += count
            return {a: found[a.session, a.seq] for a in addresses}

    def running_inserts(self, prefix: str) -> Sequence[str]:
        self._check()
        return [query_id for query_id in self._store.running if query_id.startswith(prefix)]

    def kill(self, query_id: str) -> None:
        self._store.killed.append(query_id)
        self._store.running.remove(query_id)

    def close(self) -> None:
        self.closed = True


class ScriptedSource:
    """Gives out ``deliveries`` under credit, gives a returned one out again as a repeat, and records everything."""

    def __init__(self, deliveries: Iterable[FakeDelivery]) -> None:
        self._ready = deque(deliveries)
        self._condition = threading.Condition()
        self._credit = 0
        self._out: set[int] = set()
        self.lost: set[int] = set()
        """Range ids whose lease is over."""
        self.acks: list[tuple[FakeDelivery, int, list[int], str]] = []
        self.nacks: list[tuple[FakeDelivery, str, bool]] = []
        self.states: list[str] = []
        self.credits: list[int] = []
        self.connected = True

    def receive(self, timeout: float) -> FakeDelivery | None:
        with self._condition:
            self._condition.wait_for(lambda: self._ready and len(self._out) < self._credit, timeout)
            if not self._ready or len(self._out) >= self._credit:
                return None
            delivery = self._ready.popleft()
            self._out.add(delivery.range_id)
            return delivery

    def ack(self, delivery: FakeDelivery, *, rejected_rows: int, dead_offsets: Sequence[int], reason: str) -> None:
        with self._condition:
            self._out.discard(delivery.range_id)
            self.acks.append((delivery, rejected_rows, list(dead_offsets), reason))
            self._condition.notify_all()

    def nack(self, delivery: FakeDelivery, reason: str, *, failure: bool) -> None:
        with self._condition:
            self.nacks.append((delivery, reason, failure))
            self._out.discard(delivery.range_id)
            delivery.attempt += 1
            delivery.maybe_repeat = True
            if not failure and delivery.range_id not in self.lost:
                self._ready.append(delivery)
            self._condition.notify_all()

    def working(self, delivery: FakeDelivery, state: str) -> None:
        self.states.append(state)

    def holds(self, delivery: FakeDelivery) -> bool:
        return delivery.range_id not in self.lost

    def set_credit(self, deliveries: int) -> None:
        with self._condition:
            self._credit = deliveries
            self.credits.append(deliveries)
            self._condition.notify_all()

    def close(self, timeout: float) -> None:
        self.connected = False

    def wait(self, until: Callable[[], bool], timeout: float = 10.0) -> bool:
        """Wait until something was recorded."""
        with self._condition:
            return self._condition.wait_for(until, timeout)

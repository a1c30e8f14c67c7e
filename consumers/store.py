"""The real store behind :class:`consumers.ports.StoreSession`: one connection, one boot, no retries (R12)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from clickhouse.client import StoreAddress, StoreConnection, assert_server
from clickhouse.insert import RejectColumns, in_table_order, insert_devices, insert_rejects, insert_samples
from clickhouse.native import Coded
from clickhouse.queries.presence import presence, presence_of_rejects
from consumers.dictionary import DictionaryKeys
from consumers.merge import Address, DayBlock, Probe
from consumers.rejects import RejectBlock
from consumers.validate import REASONS

KNOWN_MAX = 2_000_000
"""Label sets remembered as known to the store; some 100 bytes each. Beyond it all are told again: harmless."""


class KnownLabels:
    """Which label sets this process has told to which boot of the store. Shared by its workers.

    By boot, because a server that comes back may have come back empty.
    """

    def __init__(self) -> None:
        self._boot_id = ""
        self._labels: set[int] = set()
        self._digests: set[bytes] = set()

    def unknown(self, boot_id: str, dictionaries: Iterable[DictionaryKeys]) -> list[DictionaryKeys]:
        """The dictionaries that name label sets not told yet."""
        if boot_id != self._boot_id or len(self._labels) > KNOWN_MAX:
            self._boot_id, self._labels, self._digests = boot_id, set(), set()
        return [keys for keys in dictionaries if keys.digest not in self._digests]

    def missing(self, dictionaries: Iterable[DictionaryKeys]) -> list[tuple[DictionaryKeys, int]]:
        """Each device not told yet, as (dictionary, index)."""
        labels = self._labels
        return [
            (keys, i)
            for keys in dictionaries
            for i, (key, nameless) in enumerate(zip(keys.labels.tolist(), keys.nameless.tolist()))
            if not nameless and key not in labels
        ]

    def told(self, dictionaries: Iterable[DictionaryKeys]) -> None:
        for keys in dictionaries:
            self._labels.update(keys.labels.tolist())
            self._digests.add(keys.digest)


class ClickHouseSession:
    """Adapts :class:`clickhouse.client.StoreConnection`."""

    def __init__(self, connection: StoreConnection, known: KnownLabels) -> None:
        self._connection = connection
        self._known = known
        self.boot_id = connection.boot_id

    def insert_devices(self, dictionaries: Iterable[DictionaryKeys]) -> None:
        unknown = self._known.unknown(self.boot_id, dictionaries)
        if not unknown:
            return
        insert_devices(self._connection, [keys.devices[i] for keys, i in self._known.missing(unknown)])
        self._known.told(unknown)

    def insert_block(self, block: DayBlock, *, token: str, query_id: str) -> None:
        insert_samples(self._connection, in_table_order(block.columns), token=token, query_id=query_id)

    def count_block(self, probes: Sequence[Probe]) -> Mapping[Address, int]:
        # The probed row is there or not, and with it all rows of the batch on that day: one block, one part (R15).
        found = presence(self._connection, probes)
        return {
            Address(probe.session, probe.seq): probe.rows
            for probe in probes
            if found.get((probe.session, probe.seq, probe.day))
        }

    def insert_rejects(self, block: RejectBlock, *, token: str, query_id: str) -> None:
        insert_rejects(self._connection, reject_columns(block), token=token, query_id=query_id)

    def count_rejects(self, block: RejectBlock, addresses: Sequence[Address]) -> Mapping[Address, int]:
        found = presence_of_rejects(self._connection, block.day, addresses)
        return {Address(session, seq): rows for (session, seq), rows in found.items()}

    def running_inserts(self, prefix: str) -> Sequence[str]:
        return self._connection.running(prefix)

    def kill(self, query_id: str) -> bool:
        return self._connection.kill(query_id)

    def close(self) -> None:
        self._connection.close()


def open_session(address: StoreAddress, known: KnownLabels, *, rows_max: int) -> ClickHouseSession:
    """Connect once and make sure that this server keeps the promises: raises :class:`clickhouse.errors.StoreError`."""
    connection = StoreConnection(address)
    try:
        assert_server(connection, rows_max=rows_max)
    except BaseException:
        connection.close()
        raise
    return ClickHouseSession(connection, known)


def reject_columns(block: RejectBlock) -> RejectColumns:
    """The rejected rows in words, still without an object a row: texts are codes into what the dictionaries say."""
    rows, index, reason = block.rejected.rows, block.rejected.index, block.rejected.reason
    batch = block.batch
    used, device = np.unique(rows.device[index], return_inverse=True)
    all_devices = rows.devices()
    devices = [all_devices[code] for code in used.tolist()]
    session = np.array([one.session for one in rows.batches], dtype=np.uint64)
    seq = np.array([one.seq for one in rows.batches], dtype=np.uint64)
    return RejectColumns(
        appended_ms=rows.appended_ms[batch],
        reason=Coded(reason, REASONS),
        detail=Coded.constant("", len(index)),
        log=Coded.constant(block.log_uuid, len(index)),
        partition=np.full(len(index), block.partition, dtype=np.uint32),
        offset=np.array(block.offsets, dtype=np.uint64)[batch],
        session=session[batch],
        seq=seq[batch],
        row=block.row_in_batch(),
        gpu_id=_words(device, [one.gpu_id for one in devices]),
        hostname=_words(device, [one.hostname for one in devices]),
        metric=_words(rows.metric[index], rows.raw_metrics),
        timestamp_ns=rows.ts_ns[index],
        value=rows.value[index],
    )


def _words(codes: np.ndarray, words: Sequence[str]) -> Coded:
    """A dictionary must hold a word once: many devices may share one."""
    distinct: dict[str, int] = {}
    remap = np.array([distinct.setdefault(word, len(distinct)) for word in words], dtype=np.uint32)
    return Coded(remap[codes], list(distinct))

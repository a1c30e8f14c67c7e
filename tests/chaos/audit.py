"""What must be true afterwards. Four witnesses: the feeder's journal, the raw rows, the rejects, the dead letters."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from clickhouse.client import StorePool
from tests.chaos.contents import HASH_SQL, contents, hash_of, is_garbage
from tests.chaos.journal import Journal
from zmqbroker.client import Consumer
from zmqbroker.core.state import open_envelope
from zmqbroker.storage.log import DiskLog

Address = tuple[int, int]


@dataclass
class Findings:
    """Empty ``wrong`` means: nothing lost, nothing doubled, nothing changed."""

    wrong: list[str] = field(default_factory=list)
    batches_sent: int = 0
    batches_acked: int = 0
    batches_stored: int = 0
    rows_stored: int = 0
    rows_rejected: int = 0
    batches_dead: int = 0
    minutes_rolled: int = 0

    def __str__(self) -> str:
        head = (
            f"{self.batches_sent} batches sent, {self.batches_acked} acknowledged, {self.batches_stored} stored with "
            f"{self.rows_stored} rows, {self.rows_rejected} rows rejected, {self.batches_dead} batches dead, "
            f"{self.minutes_rolled} minutes rolled up"
        )
        return "\n".join(
            [head, *self.wrong[:40], *([f"… and {len(self.wrong) - 40} more"] if len(self.wrong) > 40 else [])]
        )


def stored_batches(store: StorePool) -> dict[Address, tuple[int, int]]:
    """(session, seq) -> (rows, sum of hashes) of the raw table."""
    rows = store.query(f"SELECT _session, _seq, count(), {HASH_SQL} FROM telemetry.samples GROUP BY _session, _seq")
    return {(session, seq): (count, hash_) for session, seq, count, hash_ in rows}


def rejected_batches(store: StorePool) -> dict[Address, tuple[int, int]]:
    """(session, seq) -> (rows, distinct rows) of the rejects."""
    rows = store.query("SELECT _session, _seq, count(), uniqExact(row) FROM telemetry.rejects GROUP BY _session, _seq")
    return {(session, seq): (count, distinct) for session, seq, count, distinct in rows}


def dead_batches(broker_url: str, topic: str, expected: int, timeout_s: float = 10.0) -> list[Address]:
    """The addresses in the dead-letter topic, read by an ephemeral member from its beginning."""
    found: list[Address] = []
    if not expected:
        return found
    with Consumer(broker_url, f"{topic}.dlq", "audit", durable=False, start="earliest", credit=4) as consumer:
        while len(found) < expected:
            delivery = consumer.receive(timeout_s)
            if delivery is None:
                break
            for letter in delivery.payloads():
                origin, _ = open_envelope(letter)
                found.append((int(origin["session"]), int(origin["seq"])))
            consumer.ack(delivery)
    return found


def kept_letters(directory: Path) -> list[Address]:
    """The addresses in the dead letters that a collector without a broker keeps."""
    if not directory.exists():
        return []
    log = DiskLog(directory, 1)
    recovered = log.recover()
    for _ in recovered.entries:
        pass
    found = log.read(0, 0, recovered.next_offsets[0]).records
    log.close(b"")
    return list(zip(found["session"].tolist(), found["seq"].tolist(), strict=True))


def audit(journal: Journal, store: StorePool, dead: list[Address], *, brokerless: bool = False) -> Findings:
    """Compare the witnesses batch by batch.

    ``brokerless``: a batch whose feeder died before the ack has nobody left to send it again; of its raw rows and its
    rejects, which are two inserts, one may be there without the other.
    """
    stored, rejected = stored_batches(store), rejected_batches(store)
    found = Findings(
        batches_sent=len(journal.sent),
        batches_acked=len(journal.acked),
        batches_stored=len(stored),
        rows_stored=sum(rows for rows, _ in stored.values()),
        rows_rejected=sum(rows for rows, _ in rejected.values()),
        batches_dead=len(dead),
    )
    wrong = found.wrong
    for address in {*stored, *rejected, *dead} - journal.sent.keys():
        wrong.append(f"{name(address)} was never sent, yet it is there")
    for address in {a for a in dead if dead.count(a) > 1}:
        wrong.append(f"{name(address)} is in the dead letters more than once")
    buried = set(dead)
    for address, sent in journal.sent.items():
        rows, hash_ = stored.get(address, (0, 0))
        rejects, distinct = rejected.get(address, (0, 0))
        if is_garbage(*address):
            if rows or rejects:
                wrong.append(f"{name(address)} is garbage, yet {rows} rows of it are stored and {rejects} rejected")
            if address in journal.acked and address not in buried:
                wrong.append(f"{name(address)} is acknowledged garbage, and not in the dead letters")
            continue
        if address in buried:
            wrong.append(f"{name(address)} is in the dead letters, and it was good")
        expected = contents(*sent)
        accepted = int(expected.accepted.sum())
        unacked = address not in journal.acked  # then both outcomes are right
        if unacked and rows == 0 and rejects == 0:
            continue
        halves = unacked and brokerless
        if rows != accepted and not (halves and rows == 0):
            wrong.append(f"{name(address)}: {rows} rows stored, {accepted} expected")
        elif rows and hash_ != hash_of(expected):
            wrong.append(f"{name(address)}: {rows} rows stored, but not those that were sent")
        if (rejects != sent.rows - accepted or distinct != rejects) and not (halves and rejects == 0):
            wrong.append(f"{name(address)}: {rejects} rejects ({distinct} distinct), {sent.rows - accepted} expected")
    return found


def audit_rollups(store: StorePool, upto_s: int) -> list[str]:
    """Every bucket by minute that ended before ``upto_s`` must answer as the raw rows do."""
    sql = """
WITH toDateTime({upto:UInt32}, 'UTC') AS upto
SELECT gpu, metric, toString(bucket), sumIf(rows, side = 'raw') AS raw, sumIf(rows, side = 'rolled') AS rolled
FROM (
    SELECT 'raw' AS side, gpu, toString(metric) AS metric, toStartOfMinute(ts) AS bucket,
           count() AS rows, min(value) AS low, max(value) AS high, sum(value) AS total
    FROM telemetry.samples WHERE bucket < upto GROUP BY gpu, metric, bucket
    UNION ALL
    SELECT 'rolled', gpu, toString(metric), bucket, count, low, high, total FROM telemetry.samples_1m FINAL
    WHERE bucket < upto
)
GROUP BY gpu, metric, bucket
HAVING count() != 2 OR uniqExact(rows) != 1 OR uniqExact(low) != 1 OR uniqExact(high) != 1
    OR abs(max(total) - min(total)) > 1e-9 * abs(max(total))
ORDER BY bucket LIMIT 50"""
    return [
        f"rollup of gpu {gpu:016x} {metric} at {bucket}: {rolled} rows, {raw} raw ones, or another low, high or sum"
        for gpu, metric, bucket, raw, rolled in store.query(sql, {"upto": upto_s})
    ]


def name(address: Address) -> str:
    return f"batch {address[0]:016x}/{address[1]}"

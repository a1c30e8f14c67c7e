"""Commands that look at records: peek, trace; the shell's tail asks for pages by ``peek`` too."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any, Final

from zmqbroker.admin.handlers_look import STATES, range_report
from zmqbroker.admin.places import positions
from zmqbroker.admin.protocol import AdminError
from zmqbroker.core.broker import Core
from zmqbroker.storage.interface import TopicLog

if TYPE_CHECKING:
    from zmqbroker.admin.handlers import Admin

PEEK_BYTES_MAX: Final = 8 << 20
TRACE_RECORDS_MAX: Final = 2_000_000


def peek(
    admin: Admin, topic: str, count: int, partition: int | None, from_: str, filter: list[str], decode: str
) -> dict[str, Any]:
    """Records with their payloads (base64); the shell decodes and filters rows."""
    log = admin.log(topic)
    starts = positions(log, from_, admin.now_s)
    return read_page(admin, log, topic, starts, count, partition, newest_first=from_ == "latest")


def read_page(
    admin: Admin,
    log: TopicLog,
    topic: str,
    starts: list[int],
    count: int,
    partition: int | None = None,
    *,
    newest_first: bool = False,
) -> dict[str, Any]:
    """At most ``count`` records and 8 MiB from ``starts`` on, and where to go on; ``newest_first``: the last ones."""
    if partition is not None and partition >= len(starts):
        raise AdminError("bad_argument", f"topic {topic} has {len(starts)} partitions", "they count from 0")
    ends = log.stats().synced_offsets
    chosen = range(len(starts)) if partition is None else [partition]
    if newest_first:
        starts = [max(0, end - count) for end in ends]
    found: list[dict[str, Any]] = []
    after = {str(p): starts[p] for p in chosen}
    room = PEEK_BYTES_MAX
    left = list(chosen)
    while left and room > 0 and len(found) < count:
        # In turn, each its share of what is still wanted.
        p = left.pop(0)
        at = after[str(p)]
        wanted = -(-(count - len(found)) // (len(left) + 1))
        step = wanted
        while wanted > 0 and at < ends[p] and room > 0:
            # A record at least, so that one of any size can be looked at.
            cut = log.cut(p, at, min(ends[p], at + step), 1 << 62, room)
            chunk = log.read(p, at, cut.last)
            begin = 0
            for record in chunk.records:
                size = int(record["length"])
                found.append(
                    {
                        "partition": p,
                        "offset": int(record["offset"]),
                        "time": admin.iso(int(record["time_ms"])),
                        "session": int(record["session"]),
                        "seq": int(record["seq"]),
                        "rows": int(record["rows"]),
                        "bytes": size,
                        "payload": base64.b64encode(chunk.body[begin : begin + size]).decode(),
                    }
                )
                begin += size
            wanted -= len(chunk.records)
            # A gap may be wide.
            step = wanted if len(chunk.records) else step * 4
            room -= len(chunk.body)
            at = cut.last + 1
        after[str(p)] = at
        if at < ends[p]:
            left.append(p)
    return {"topic": topic, "records": found, "next": after, "ends": {str(p): ends[p] for p in chosen}}


def trace(admin: Admin, topic: str, batch: str) -> dict[str, Any]:
    """By SESSION/SEQ (decimal or 0x…) or PARTITION:OFFSET: where it lies, and what each group did with it."""
    log = admin.log(topic)
    stats = log.stats()
    try:
        if ":" in batch:
            partition, offset = (int(x) for x in batch.split(":"))
            session = seq = None
            if not 0 <= partition < len(stats.next_offsets):
                raise AdminError("not_found", f"topic {topic} has {len(stats.next_offsets)} partitions")
            records = log.read(partition, offset, offset).records
        else:
            session, seq = (int(x, 0) for x in batch.split("/"))
            partition, records = _find(log, session, seq)
    except ValueError:
        raise AdminError("bad_argument", f"{batch!r} is no batch", "say SESSION/SEQ or PARTITION:OFFSET") from None
    found: dict[str, Any] = {"topic": topic, "in_log": bool(len(records))}
    if len(records):
        record = records[0]
        offset, session, seq = int(record["offset"]), int(record["session"]), int(record["seq"])
        found.update(
            partition=partition,
            offset=offset,
            rows=int(record["rows"]),
            bytes=int(record["length"]),
            time=admin.iso(int(record["time_ms"])),
        )
    if session is not None:
        found.update(session=session, seq=seq)

    def look(core: Core) -> dict[str, Any]:
        t = admin.topic(core, topic)
        known = core.state.sessions.get(session) if session is not None else None
        told: dict[str, Any] = {"session_known": known is not None, "acked": bool(known and seq and known.knows(seq))}
        if len(records):
            told["groups"] = [_fate(g.parts[partition], g.name, offset, core.state.now) for g in t.groups.values()]
        return told

    found.update(admin.core(look))
    return found


def _find(log: TopicLog, session: int, seq: int) -> tuple[int, Any]:
    """Newest first, within :data:`TRACE_RECORDS_MAX`."""
    stats = log.stats()
    left = TRACE_RECORDS_MAX
    for partition, (first, end) in enumerate(zip(stats.first_offsets, stats.synced_offsets, strict=True)):
        at = end
        while at > first and left > 0:
            start = max(first, at - 2000)
            records = log.read(partition, start, at - 1).records
            hit = records[(records["session"] == session) & (records["seq"] == seq)]
            if len(hit):
                return partition, hit
            left -= at - start
            at = start
    return 0, ()


def _fate(gp: Any, group: str, offset: int, now: float) -> dict[str, Any]:
    for r in gp.outstanding.values():
        if r.first <= offset <= r.last:
            return {"group": group, "fate": STATES[r.state], **range_report(r, now)}
    return {"group": group, "fate": "settled" if offset < gp.sealed_next else "waiting to be sealed"}

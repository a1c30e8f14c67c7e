"""Commands that look and change nothing."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from telemetry import __version__
from zmqbroker.admin.protocol import Answer
from zmqbroker.core import report
from zmqbroker.core.broker import Core
from zmqbroker.core.group import BURYING, DELAYED, HELD, READY, SEALING, Range
from zmqbroker.core.session import Session
from zmqbroker.core.state import Consumer

if TYPE_CHECKING:
    from zmqbroker.admin.handlers import Admin

STATES: Final = {SEALING: "sealing", READY: "ready", HELD: "held", BURYING: "burying", DELAYED: "delayed"}


def status(admin: Admin) -> dict[str, Any]:
    found = stats(admin)
    topics = found["topics"].values()
    return {
        "version": __version__,
        "uptime_seconds": found["uptime_seconds"],
        "data_addresses": admin.broker.endpoints,
        "data_dir": str(admin.broker.config.data_dir),
        "secured": admin.broker.keys is not None,
        "topics": len(found["topics"]),
        "waiting_messages": sum(t["messages"] for t in topics),
        "waiting_rows": sum(t["rows"] for t in topics),
        "rows_per_second": round(sum(t["throughput_rows_per_sec"] for t in topics), 1),
        "disk_bytes": sum(t["disk_bytes"] for t in topics),
        "producers": found["producers"],
        "consumers": found["consumers"],
        "in_flight": sum(t["in_flight"] for t in topics),
        "dead_letters": sum(t["dead"] for t in topics),
        "oldest_age_seconds": max((t["oldest_age_seconds"] for t in topics), default=0.0),
        "credit_outstanding_bytes": found["credit_outstanding_bytes"],
        "credit_pool_bytes": found["credit_pool_bytes"],
        "stopped_topics": [name for name, t in found["topics"].items() if t["stopped"]],
        "full_topics": [name for name, t in found["topics"].items() if t["disk_full"]],
    }


def topics(admin: Admin) -> list[dict[str, Any]]:
    columns = (
        "messages",
        "rows",
        "bytes",
        "throughput_rows_per_sec",
        "in_flight",
        "oldest_age_seconds",
        "dead",
        "subscribers",
        "partitions",
        "disk_bytes",
    )
    return [
        {"topic": name, **{c: t[c] for c in columns}, "state": _state(t)} for name, t in stats(admin)["topics"].items()
    ]


def _state(t: dict[str, Any]) -> str:
    return "stopped" if t["stopped"] else "full" if t["disk_full"] else "open"


def topic_info(admin: Admin, topic: str) -> dict[str, Any]:
    def look(core: Core) -> dict[str, Any]:
        found = admin.topic(core, topic)
        told = report.topic_report(core.state, found)
        told["groups"] = sorted(found.groups)
        return {
            "topic": topic,
            "log_uuid": found.uuid.hex(),
            "seal_epoch": found.epoch,
            "draining": found.draining,
            "lost_messages": found.lost_messages,
            **told,
            "settings": asdict(found.config),
        }

    found = admin.core(look)
    stats = admin.log(topic).stats()
    found.update(segments=stats.segments, records_on_disk=stats.records, oldest_record=admin.iso(stats.oldest_time_ms))
    return dict(found)


def partitions(admin: Admin, topic: str | None) -> list[dict[str, Any]]:
    def look(core: Core) -> list[dict[str, Any]]:
        chosen = [admin.topic(core, topic)] if topic else list(core.topics.values())
        return [
            {
                "topic": t.name,
                "partition": p.index,
                "first": p.first_offset,
                "durable": p.durable_offset,
                "next": p.next_offset,
                "messages": p.next_offset - p.first_offset,
                "rows_total": p.rows_total,
                "bytes_total": p.bytes_total,
                "tail_bytes": p.tail_bytes,
            }
            for t in chosen
            for p in t.partitions
        ]

    return list(admin.core(look))


def groups(admin: Admin, topic: str | None) -> list[dict[str, Any]]:
    return [
        {
            c: g[c]
            for c in (
                "topic",
                "group",
                "mode",
                "members",
                "lag_messages",
                "lag_rows",
                "oldest_age_seconds",
                "in_flight",
                "ready",
                "delayed",
                "redelivered",
                "dead_rows",
                "lost_messages",
                "paused",
            )
        }
        for g in _groups(admin, topic, None)
    ]


def _groups(admin: Admin, topic: str | None, group: str | None) -> list[dict[str, Any]]:
    def look(core: Core) -> list[dict[str, Any]]:
        if topic and group:
            t, g = admin.group(core, topic, group)
            return [report.group_report(core.state, t, g)]
        chosen = [admin.topic(core, topic)] if topic else list(core.topics.values())
        return [report.group_report(core.state, t, g) for t in chosen for g in t.groups.values()]

    return list(admin.core(look))


def group_info(admin: Admin, topic: str, group: str) -> dict[str, Any]:
    def look(core: Core) -> dict[str, Any]:
        t, g = admin.group(core, topic, group)
        found = report.group_report(core.state, t, g)
        found["settings"] = g.config.to_json()
        found["ranges"] = [range_report(r, core.state.now) for r in list(g.ranges.values())[:200]]
        found["ranges_in_all"] = len(g.ranges)
        found["member_list"] = [_member(m, core.state.now) for m in g.members.values()]
        return found

    return dict(admin.core(look))


def range_report(r: Range, now: float) -> dict[str, Any]:
    return {
        "id": r.id,
        "partition": r.partition,
        "first": r.first,
        "last": r.last,
        "rows": r.rows,
        "bytes": r.bytes,
        "state": STATES[r.state],
        "deliveries": r.deliveries,
        "deaths": r.deaths,
        "failures": r.failures,
        "maybe_repeat": r.maybe_repeat,
        "holder": r.holder.name if r.holder else None,
        "held_seconds": round(now - r.taken_s, 3) if r.holder else None,
    }


def _member(m: Any, now: float) -> dict[str, Any]:
    return {
        "client": f"c-{m.id:016x}",
        "name": m.name,
        "credit": m.credit,
        "delivered": m.delivered,
        "holding": len(m.holding),
        "rows_held": sum(r.rows for r in m.holding.values()),
        "silent_seconds": round(now - m.last_seen_s, 3),
        "gone": m.gone_s is not None,
    }


def lag(admin: Admin, topic: str | None, group: str | None, max_rows: int | None, max_age: float | None) -> Answer:
    rows = []
    problem = False
    for g in _groups(admin, topic, group):
        over = (max_rows is not None and g["lag_rows"] > max_rows) or (
            max_age is not None and g["oldest_age_seconds"] > max_age
        )
        problem |= over
        for p in g["partitions"]:
            rows.append(
                {
                    "topic": g["topic"],
                    "group": g["group"],
                    "partition": p["partition"],
                    "acked_below": p["floor"],
                    "sealed_below": p["sealed_next"],
                    "end": p["end"],
                    "lag_messages": p["lag_messages"],
                    "lag_rows": p["lag_rows"],
                    "oldest_age_seconds": g["oldest_age_seconds"] if p["lag_messages"] else 0.0,
                    "last_ack_seconds_ago": g["last_ack_seconds_ago"],
                    "over_limit": over,
                }
            )
    return Answer(rows, problem)


def members(admin: Admin, topic: str | None, group: str | None) -> list[dict[str, Any]]:
    def look(core: Core) -> list[dict[str, Any]]:
        if topic and group:
            chosen = [admin.group(core, topic, group)]
        else:
            found = [admin.topic(core, topic)] if topic else list(core.topics.values())
            chosen = [(t, g) for t in found for g in t.groups.values()]
        now = core.state.now
        return [{"topic": t.name, "group": g.name, **_member(m, now)} for t, g in chosen for m in g.members.values()]

    return list(admin.core(look))


def clients(admin: Admin) -> list[dict[str, Any]]:
    def look(core: Core) -> list[dict[str, Any]]:
        now = core.state.now
        found = []
        for peer in core.state.peers.values():
            if isinstance(peer, Session):
                found.append(
                    {
                        "client": f"p-{peer.id:016x}",
                        "kind": "producer",
                        "topic": peer.topic,
                        "group": None,
                        "name": peer.name,
                        "credit_left_bytes": peer.granted_bytes - peer.received_bytes,
                        "unacked_bytes": peer.received_bytes - peer.freed_bytes,
                        "holding": None,
                        "connected_seconds": round(now - peer.since_s, 3),
                        "silent_seconds": round(now - peer.last_seen_s, 3),
                    }
                )
            elif isinstance(peer, Consumer):
                m = peer.member
                found.append(
                    {
                        "client": f"c-{m.id:016x}",
                        "kind": "consumer",
                        "topic": peer.topic.name,
                        "group": peer.group.name,
                        "name": m.name,
                        "credit_left_bytes": None,
                        "unacked_bytes": None,
                        "holding": len(m.holding),
                        "connected_seconds": round(now - m.since_s, 3),
                        "silent_seconds": round(now - m.last_seen_s, 3),
                    }
                )
        return found

    return list(admin.core(look))


def gaps(admin: Admin, topic: str | None) -> list[dict[str, Any]]:
    def look(core: Core) -> list[dict[str, Any]]:
        chosen = [admin.topic(core, topic)] if topic else list(core.topics.values())
        return [
            {
                "topic": t.name,
                "partition": g[0],
                "first": g[1],
                "last": g[2],
                "messages": g[2] - g[1] + 1,
                "reason": g[3],
            }
            for t in chosen
            for g in t.gaps
        ]

    return list(admin.core(look))


def stats(admin: Admin) -> dict[str, Any]:
    """What ``/stats`` tells."""
    return dict(admin.core(lambda core: report.stats(core.state, admin.broker.uptime_s)))

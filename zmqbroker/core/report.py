"""What the core can tell of itself: plain dicts for /stats, /metrics and the admin socket. Reads, never changes."""

from __future__ import annotations

from typing import Any

from zmqbroker.core.group import Group
from zmqbroker.core.session import Session
from zmqbroker.core.state import Consumer, State, dead_letter_topic
from zmqbroker.core.topic import Topic


def group_report(state: State, topic: Topic, group: Group) -> dict[str, Any]:
    """One group: lag in messages and rows, what is in flight, ages, counters."""
    waiting_messages = waiting_rows = waiting_bytes = 0
    oldest: float | None = None
    partitions = []
    for part, gp in zip(topic.partitions, group.parts, strict=True):
        lag_messages = part.next_offset - gp.sealed_next + sum(r.last - r.first + 1 for r in gp.outstanding.values())
        lag_rows = part.rows_total - gp.rows_before + sum(r.rows for r in gp.outstanding.values())
        lag_bytes = part.bytes_total - gp.bytes_before + sum(r.bytes for r in gp.outstanding.values())
        waiting_messages += lag_messages
        waiting_rows += lag_rows
        waiting_bytes += lag_bytes
        age = oldest_age_seconds(state, topic, part.index, gp.floor)
        if lag_messages and age is not None:
            oldest = age if oldest is None else max(oldest, age)
        partitions.append(
            {
                "partition": part.index,
                "floor": gp.floor,
                "sealed_next": gp.sealed_next,
                "end": part.next_offset,
                "lag_messages": lag_messages,
                "lag_rows": lag_rows,
            }
        )
    return {
        "group": group.name,
        "topic": topic.name,
        "mode": group.config.mode,
        "durable": group.config.durable,
        "generation": group.generation,
        "paused": group.paused,
        "members": len(group.members),
        "lag_messages": waiting_messages,
        "lag_rows": waiting_rows,
        "lag_bytes": waiting_bytes,
        "oldest_age_seconds": round(oldest, 3) if oldest is not None else 0.0,
        "in_flight": group.held,
        "ready": group.ready_count,
        "sealing": group.sealing,
        "delayed": len(group.delayed),
        "free_credit": max(0, group.free_credit),
        "settled_rows": group.settled_rows,
        "settled_messages": group.settled_messages,
        "rejected_rows": group.rejected_rows,
        "dead_rows": group.dead_rows,
        "redelivered": group.redelivered,
        "lost_messages": group.lost_messages,
        "order_breaks": group.order_breaks,
        "last_ack_seconds_ago": round(state.now - group.last_ack_s, 3) if group.last_ack_s is not None else None,
        "partitions": partitions,
    }


def oldest_age_seconds(state: State, topic: Topic, partition: int, offset: int) -> float | None:
    """Age of the record at ``offset`` if the tail holds it, else that of the tail's oldest (it is at least so old)."""
    part = topic.partitions[partition]
    i = max(0, offset - part.base)
    if i >= len(part.entries):
        return None
    time_ms = int.from_bytes(part.entries[i][2][36:44], "little")
    return max(0.0, (state.wall_ms - time_ms) / 1000)


def topic_report(state: State, topic: Topic) -> dict[str, Any]:
    """One topic, with the keys of DESIGN 2 first."""
    groups = [group_report(state, topic, g) for g in topic.groups.values()]
    durable = [g for g in groups if g["durable"]]
    letters = state.topics.get(dead_letter_topic(topic.name))
    stored = sum(p.next_offset - p.first_offset for p in topic.partitions)
    return {
        # Of the slowest durable group; without one, everything that is kept (R20).
        "messages": max((g["lag_messages"] for g in durable), default=stored),
        "rows": max((g["lag_rows"] for g in durable), default=topic.rows_total),
        "bytes": max((g["lag_bytes"] for g in durable), default=topic.bytes_total),
        "subscribers": sum(g["members"] for g in groups),
        "throughput_rows_per_sec": round(topic.rows_per_s, 1),
        "in_flight": sum(g["in_flight"] for g in groups),
        "oldest_age_seconds": max((g["oldest_age_seconds"] for g in durable), default=0.0),
        "dead": letters.letters.count(letters.partitions[0].next_offset) if letters and letters.letters else 0,
        "published_messages": topic.messages_total,
        "published_rows": topic.rows_total,
        "published_bytes": topic.bytes_total,
        "duplicates": topic.duplicates,
        "disk_bytes": topic.disk_bytes,
        "disk_full": topic.disk_full,
        "stopped": topic.stopped,
        "draining": topic.draining,
        "partitions": len(topic.partitions),
        "groups": {g["group"]: g for g in groups},
    }


def clients(state: State) -> list[dict[str, Any]]:
    """Who is connected, processes of one name and purpose as one: 10,000 agents of one kind are one entry."""
    found: dict[tuple[str, str, str, str], dict[str, Any]] = {}
    for peer in state.peers.values():
        if isinstance(peer, Session):
            who = ("producer", peer.topic, "", peer.name)
            since_s, seen_s, received, delivered, holding = peer.since_s, peer.last_seen_s, peer.received_bytes, 0, 0
        else:
            member = peer.member
            who = ("consumer", peer.topic.name, peer.group.name, member.name)
            since_s, seen_s, received = member.since_s, member.last_seen_s, 0
            delivered, holding = member.delivered, len(member.holding)
        one = found.get(who)
        if one is None:
            one = found[who] = {
                **dict(zip(("kind", "topic", "group", "name"), who, strict=True)),
                "connections": 0,
                "connected_seconds": 0.0,
                "silent_seconds": state.now - seen_s,
                "received_bytes": 0,
                "deliveries": 0,
                "holding": 0,
            }
        one["connections"] += 1
        one["connected_seconds"] = max(one["connected_seconds"], state.now - since_s)
        one["silent_seconds"] = min(one["silent_seconds"], state.now - seen_s)
        one["received_bytes"] += received
        one["deliveries"] += delivered
        one["holding"] += holding
    return list(found.values())


def stats(state: State, uptime_seconds: float) -> dict[str, Any]:
    """The broker's ``/stats``."""
    return {
        "topics": {name: topic_report(state, topic) for name, topic in sorted(state.topics.items())},
        "total_processed": sum(t.messages_total for t in state.topics.values()),
        "uptime_seconds": round(uptime_seconds, 3),
        "credit_outstanding_bytes": state.pool.outstanding_bytes,
        "credit_pool_bytes": state.pool.pool_bytes,
        "producers": sum(1 for p in state.peers.values() if isinstance(p, Session)),
        "consumers": sum(1 for p in state.peers.values() if isinstance(p, Consumer)),
        "clients": clients(state),
        "counters": {k: v for k, v in vars(state.counters).items() if isinstance(v, int)},
        "ingress_errors": dict(state.counters.ingress_errors),
    }

"""Settings of the core: frozen values with units in their names. The server fills them from its options."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Final

RECONNECT_GRACE_S_MIN: Final = 3.5
"""A collector thinks its lease over after 3 s of silence (R12): before that nobody else may get its range."""


@dataclass(frozen=True)
class BrokerConfig:
    """Limits that hold for the whole broker."""

    ingress_pool_bytes: int = 64 << 20
    """Bytes granted to producers and not yet durable, all together."""
    credit_floor_bytes: int = 256 << 10
    """What a producer may send ahead of asking, at most; less when there are many."""
    message_bytes_max: int = 8 << 20
    window_seqs: int = 1 << 20
    """Unacked seqs a session may have above its lowest unacked one."""
    tail_bytes: int = 64 << 20
    """Tail cache of all topics: what was just appended is delivered without reading the disk."""
    topics_max: int = 1000
    connections_max: int = 20_000
    topic_create: bool = True
    producer_expiry_s: float = 7 * 86_400.0
    heartbeat_s: float = 1.0
    """Silence towards a peer after which the broker says HEARTBEAT."""
    liveness_s: float = 15.0
    """Silence of a producer after which its credit returns to the pool."""
    reconnect_grace_s: float = RECONNECT_GRACE_S_MIN
    """After a start, or when a consumer's connection is gone or its lease was ended: how long its ranges wait. Longer
    than the silence after which a collector thinks its lease over (3 s, R12), so that it sends nothing after that."""
    in_flight_max_s: float = 60.0
    """Z: how long an insert that was sent may still commit. What another log may hold too (RESENT) waits so long."""
    pause_s: float = 1.0
    """A gap between two turns of the loop that counts as a pause of the broker: deadlines move by it (R23)."""


@dataclass(frozen=True)
class TopicConfig:
    """Settings of one topic, kept with its log."""

    partitions: int = 4
    fsync: str = "commit"
    """commit: ack after fdatasync. interval, never: ack when written, sync later; only what is synced is delivered."""
    fsync_interval_ms: int = 1000
    storage: str = "disk"
    """disk, or memory (nothing survives a restart)."""
    retention_ms: int = 15 * 60_000
    """Keep-for-replay: how long records stay after every durable group has acked them."""
    retention_bytes: int = 0
    """Keep-for-replay by size: above it what every group has acked goes, however young (0: half of the disk cap)."""
    disk_bytes_max: int = 10 << 30
    """At this size producers get no more credit (overflow = stop) or the oldest segment goes (drop-oldest)."""
    overflow: str = "stop"
    segment_bytes: int = 64 << 20

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TopicConfig:
        known = {f.name for f in fields(cls)}
        return cls(**{k: v for k, v in data.items() if k in known})


@dataclass(frozen=True)
class GroupConfig:
    """Settings of one consumer group. A SUBSCRIBE whose settings for sealing differ is refused (R21)."""

    mode: str = "shared"
    """shared: any member with credit takes the next range. ordered: one unacked range a partition, sticky members."""
    durable: bool = True
    """An ephemeral group vanishes with its last member and holds nothing back."""
    max_rows: int = 250_000
    max_bytes: int = 32 << 20
    linger_ms: int = 100
    seal_interval_ms: int = 20
    ack_timeout_s: float = 30.0
    """Silence of a consumer after which its ranges go to another."""
    max_processing_s: float = 600.0
    """How long a range may be held however lively its consumer is, except while it waits for the store."""
    max_attempts: int = 5
    """Failures (explicit NACK for the data) after which a range is dead-lettered."""
    max_deaths: int = 5
    """Deliveries that ended with the consumer's death before a range is delivered batch by batch."""
    retry_backoff_s: float = 0.5
    retry_backoff_max_s: float = 30.0
    group_expiry_s: float = 7 * 86_400.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> GroupConfig:
        known = {f.name for f in fields(cls)}
        return cls(**{k: v for k, v in data.items() if k in known})

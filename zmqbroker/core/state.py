"""What the parts of the core share: topics, peers, the credit pool, the clock of this turn, the effects."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from zmqbroker import protocol
from zmqbroker.core.config import BrokerConfig, TopicConfig
from zmqbroker.core.credit import CreditPool
from zmqbroker.core.effects import Effects
from zmqbroker.core.group import Group, Member
from zmqbroker.core.session import Session
from zmqbroker.core.topic import DEAD_LETTERS, Topic
from zmqbroker.protocol import Code, Type


@dataclass
class Counters:
    """Totals since the start of this broker, read by /metrics and the admin socket."""

    messages: int = 0
    rows: int = 0
    bytes: int = 0
    duplicates: int = 0
    over_credit: int = 0
    refused: int = 0
    garbage: int = 0
    stale: int = 0
    bad_checksums: int = 0
    deliveries: int = 0
    delivered_rows: int = 0
    redeliveries: int = 0
    settled: int = 0
    deaths: int = 0
    failures: int = 0
    dead_records: int = 0
    pauses: int = 0
    ingress_errors: dict[str, int] = field(default_factory=dict)


@dataclass
class Consumer:
    """The peer behind a consumer's connection."""

    topic: Topic
    group: Group
    member: Member


class State:
    """One broker's state. Only the modules of this package change it, within :meth:`Core.handle`."""

    def __init__(self, config: BrokerConfig, rng: random.Random, topic_config: TopicConfig) -> None:
        self.config = config
        self.rng = rng
        self.topic_config = topic_config
        """Settings of topics made on first use."""
        self.fx = Effects()
        self.topics: dict[str, Topic] = {}
        self.sessions: dict[int, Session] = {}
        self.peers: dict[bytes, Session | Consumer] = {}
        self.pool = CreditPool(config.ingress_pool_bytes, config.credit_floor_bytes)
        self.counters = Counters()
        self.now = 0.0
        self.wall_ms = 0
        self.steady_ms = 0
        """The time of day at the start, carried on by the monotonic clock: what is forgotten by age must not depend on
        a clock that somebody sets."""
        self.waiting: dict[str, list[Callable[[], None]]] = {}
        """What waits for a topic to be opened."""
        self.opening: set[str] = set()
        self.topic_configs: dict[str, TopicConfig] = {}
        self.stopping = False
        self.unmetered_bytes = 0
        """What was appended without being counted as ingress: dead letters."""

    def leave(self, session: Session) -> None:
        """A producer's conversation is over; the session stays known (R5), its credit returns."""
        if session.conn is not None:
            self.peers.pop(session.conn, None)
            session.conn = None
            self.pool.leave(session)

    def send(self, conn: bytes, *frames: bytes) -> None:
        self.fx.sends.append((conn, list(frames)))

    def error(self, conn: bytes, generation: int, code: int, reason: str, who: int = 0) -> None:
        """Answer what could not be done; counted by code."""
        name = Code(code).name.lower()
        errors = self.counters.ingress_errors
        errors[name] = errors.get(name, 0) + 1
        self.send(conn, protocol.pack(Type.ERROR, generation, e=code, a=who), reason.encode()[:1000])

    def may_begin(self, conn: bytes, generation: int, who: int) -> bool:
        """Whether a HELLO or SUBSCRIBE may begin a conversation now; answered with why where it may not."""
        if self.stopping:
            self.error(conn, generation, Code.STOPPING, "the broker is stopping: reconnect later", who)
            return False
        limit = self.config.connections_max
        if conn not in self.peers and len(self.peers) >= limit:
            self.error(conn, generation, Code.BUSY, f"{limit} connections are open already: try later", who)
            return False
        return True

    def with_topic(self, conn: bytes, generation: int, name: str, then: Callable[[Topic], None]) -> None:
        """Call ``then`` with the topic, now or when it is open; answer with an error where it cannot be."""
        topic = self.topics.get(name)
        if topic is not None:
            then(topic)
        elif not protocol.valid_topic(name):
            self.error(
                conn,
                generation,
                Code.BAD_TOPIC,
                f"{name!r:.100} is no topic name: letters, digits, . _ - and at most 200",
            )
        elif not self.config.topic_create:
            self.error(
                conn,
                generation,
                Code.BAD_TOPIC,
                f"topic {name} does not exist: create it with `zmqbroker admin topic create`",
            )
        elif len(self.topics) + len(self.opening) >= self.config.topics_max and name not in self.opening:
            self.error(conn, generation, Code.BUSY, f"the broker holds {self.config.topics_max} topics already")
        else:
            self.waiting.setdefault(name, []).append(lambda: then(self.topics[name]))
            self.open(name)

    def open(self, name: str, config: TopicConfig | None = None) -> None:
        """Ask for a topic's log once."""
        if name not in self.topics and name not in self.opening:
            self.opening.add(name)
            self.fx.opens.append((name, config or self.topic_configs.get(name, self.topic_config)))

    def sessions_of(self, topic: Topic) -> list[Session]:
        """What a snapshot taken now keeps: the sessions of a topic that are not too old."""
        expiry_ms = int(self.config.producer_expiry_s * 1000)
        kept = []
        for session in self.sessions.values():
            if session.topic == topic.name:
                session.idle_ms = max(0, self.steady_ms - session.last_ms)
                if session.idle_ms <= expiry_ms or session.conn is not None:
                    kept.append(session)
        return kept


def dead_letter_topic(topic: str) -> str:
    return topic + DEAD_LETTERS


def envelope(origin: dict[str, object], payload: bytes) -> bytes:
    """A dead letter: where it came from and why, before the payload as it was (R26)."""
    head = json.dumps(origin, separators=(",", ":")).encode()
    return b"GZDL" + len(head).to_bytes(4, "little") + head + payload


def open_envelope(letter: bytes | memoryview) -> tuple[dict[str, object], memoryview]:
    """(origin, payload) of a dead letter; raises ValueError for anything else."""
    view = memoryview(letter)
    if bytes(view[:4]) != b"GZDL":
        raise ValueError("not a dead letter")
    size = int.from_bytes(view[4:8], "little")
    return json.loads(bytes(view[8 : 8 + size])), view[8 + size :]

"""The core on a test bench: messages in, messages out, and a log that is written when the test says so.

After every turn all invariants are checked. Time stands still unless the test moves it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from crc32c import crc32c

from tests.helpers.core_invariants import check_invariants
from tests.simulation.disk import SimulatedDisk
from zmqbroker import protocol
from zmqbroker.core import events as ev
from zmqbroker.core.broker import Core
from zmqbroker.core.config import BrokerConfig, TopicConfig
from zmqbroker.core.effects import Hand
from zmqbroker.core.group import Group
from zmqbroker.core.operating import Operating
from zmqbroker.core.topic import Topic
from zmqbroker.protocol import RECORD, Flag, Header, Type
from zmqbroker.storage.interface import TopicLog
from zmqbroker.storage.log import DiskLog
from zmqbroker.storage.spare import Inline


class Sent(NamedTuple):
    """One message of the broker."""

    conn: bytes
    type: Type
    h: Header
    frames: list[bytes]

    @property
    def options(self) -> dict[str, Any]:
        return protocol.unpack_options(self.frames[1])

    @property
    def ranges(self) -> list[tuple[int, int]]:
        return protocol.unpack_ranges(self.frames[0], self.h.n)

    @property
    def seqs(self) -> list[int]:
        seqs: list[int] = np.frombuffer(self.frames[0], dtype=RECORD)["seq"].tolist()
        return seqs

    @property
    def maybe_repeat(self) -> bool:
        return bool(self.h.flags & Flag.MAYBE_REPEAT)


class Rig:
    """A core, its topics' logs in memory, and a clock that the test turns."""

    def __init__(
        self, config: BrokerConfig | None = None, topic: TopicConfig | None = None, *, commits: bool = True
    ) -> None:
        self.config = config or BrokerConfig()
        self.topic_config = topic or TopicConfig(partitions=1)
        self.commits = commits
        """Whether every turn's hands are written and synced at once; else :meth:`commit` does it."""
        self.now = 100.0
        self.wall_ms = 1_760_000_000_000
        self.logs: dict[str, TopicLog] = {}
        self.disks: dict[str, SimulatedDisk] = {}
        self._configs: dict[str, TopicConfig] = {}
        self.core = Core(self.config, random.Random(1), self.topic_config)
        self.hands: list[Hand] = []
        self.questions: list[Any] = []
        self.answers = True
        """Whether questions to the log are answered at once."""
        self.sent: list[Sent] = []
        self.notices: list[str] = []

    def restart(self) -> None:
        """kill -9: what was not written is gone, the core is a new one on the same logs."""
        self.hands.clear()
        self.questions.clear()
        self.core = Core(self.config, random.Random(2), self.topic_config)
        events = []
        for name, disk in self.disks.items():
            disk.kill()
            events.append(self._open(name, self._configs[name]))
        self.turn(*events)

    def _open(self, name: str, config: TopicConfig) -> tuple:
        disk = self.disks.setdefault(name, SimulatedDisk(len(self.disks)))
        self._configs[name] = config
        log = DiskLog("d", config.partitions, filesystem=disk, segment_bytes=1 << 16, helper=Inline())
        self.logs[name] = log
        return (ev.OPENED, name, config, log.uuid, log.recover())

    @property
    def topic(self) -> Topic:
        return self.core.topics["t"]

    def group(self, name: str = "g") -> Group:
        return self.topic.groups[name]

    # --- turns

    def turn(self, *events: tuple) -> list[Sent]:
        """Events in; what the broker said in this and the turns it led to."""
        said: list[Sent] = []
        pending = list(events)
        while True:
            fx = self.core.handle(pending, self.now, self.wall_ms)
            pending = []
            check_invariants(self.core)
            for conn, frames in fx.sends:
                h = protocol.unpack(frames[0])
                said.append(Sent(conn, Type(h.type), h, frames[1:]))
            self.notices += [text for text, _ in fx.notices]
            self.hands += fx.hands
            for name, config in fx.opens:
                pending.append(self._open(name, config))
            self.questions += [*fx.reads, *fx.cuts]
            if self.commits:
                pending += self._write()
            if self.answers:
                pending += self._answer()
            if not pending:
                break
        self.sent += said
        return said

    def operate(self, what: Callable[[Operating], Any]) -> tuple[Any, list[Sent]]:
        """What an operator does between two turns; its result, and what the broker said of it."""
        self.core.state.fx.clear()
        result = what(self.core.operating)
        fx = self.core.state.fx
        said = [Sent(c, Type(f[0][4]), protocol.unpack(f[0]), f[1:]) for c, f in fx.sends]
        self.questions += [*fx.reads, *fx.cuts]
        self.sent += said
        return result, said + self.turn()

    def commit(self) -> list[Sent]:
        """What was handed over is written and synced."""
        return self.turn(*self._write())

    def answer(self) -> list[Sent]:
        return self.turn(*self._answer())

    def wait(self, seconds: float) -> list[Sent]:
        """Let time pass, a tenth of a second at a time."""
        said: list[Sent] = []
        for _ in range(max(1, round(seconds / 0.1))):
            self.now += 0.1
            self.wall_ms += 100
            said += self.turn()
        return said

    def _write(self) -> list[tuple]:
        events: list[tuple] = []
        hands, self.hands = self.hands, []
        for hand in hands:
            done = self.logs[hand.topic].commit(hand.appends, roll_snapshot=hand.snapshot)
            events.append((ev.COMMITTED, hand.topic, hand.commit_id, {hand.commit_id: done.bad}, True))
        return events

    def _answer(self) -> list[tuple]:
        events: list[tuple] = []
        questions, self.questions = self.questions, []
        for what in questions:
            log = self.logs[what.topic]
            if hasattr(what, "purpose"):
                chunk = log.read(what.partition, what.first, what.last)
                events.append((ev.READ, what, chunk.records.tobytes(), bytes(chunk.body), chunk.gaps))
            else:
                cut = log.cut(what.partition, what.first, what.end, what.max_rows, what.max_bytes)
                events.append((ev.CUT, what, cut.last, cut.rows, cut.bytes))
        return events

    # --- messages

    def message(self, conn: bytes, header: bytes, *frames: bytes) -> list[Sent]:
        return self.turn(as_event(conn, header, *frames))

    def hello(
        self, conn: bytes = b"p1", session: int = 7, *, generation: int = 1, incarnation: int = 1, first: int = 1,
        wanted: int = 0, topic: str = "t",
    ) -> list[Sent]:  # fmt: skip
        header = protocol.pack(Type.HELLO, generation, a=session, b=incarnation, c=first, d=wanted)
        return self.message(conn, header, topic.encode(), b"{}")

    def publish(
        self, *seqs: int, conn: bytes = b"p1", session: int = 7, generation: int = 1, lowest: int = 1, rows: int = 10,
        payload: bytes = b"x" * 50, crc: int | None = None, partition: int = protocol.NO_PARTITION, flags: int = 0,
        wanted: int = 0,
    ) -> list[Sent]:  # fmt: skip
        """One PUBLISH a seq, all in one turn."""
        return self.turn(
            *[
                as_event(
                    conn,
                    protocol.pack(
                        Type.PUBLISH, generation, flags=flags, partition=partition, n=rows, a=session, b=seq, c=lowest,
                        d=wanted, e=crc32c(payload) if crc is None else crc, g=1,
                    ),
                    payload,
                )
                for seq in seqs
            ]
        )  # fmt: skip

    def subscribe(
        self, conn: bytes = b"c1", member: int = 1, *, group: str = "g", credit: int = 1, generation: int = 1,
        topic: str = "t", **options: Any,
    ) -> list[Sent]:  # fmt: skip
        header = protocol.pack(Type.SUBSCRIBE, generation, a=member, b=credit)
        return self.message(conn, header, topic.encode(), protocol.pack_options({"group": group, **options}))

    def credit(self, total: int, conn: bytes = b"c1", generation: int = 1) -> list[Sent]:
        return self.message(conn, protocol.pack(Type.CREDIT, generation, b=total))

    def settle(
        self, delivery: Sent, conn: bytes = b"c1", generation: int = 1, rejected: int = 0, dead: tuple[int, ...] = ()
    ) -> list[Sent]:
        h = delivery.h
        header = protocol.pack(Type.SETTLE, generation, a=h.a, b=rejected, e=h.e, f=h.f, n=len(dead))
        frames = [np.array(dead, dtype="<u8").tobytes(), b"bad rows"] if dead else []
        return self.message(conn, header, *frames)

    def nack(
        self, delivery: Sent, conn: bytes = b"c1", generation: int = 1, *, failure: bool = True, dead: bool = False
    ) -> list[Sent]:
        h = delivery.h
        flags = (Flag.FAILURE if failure else 0) | (Flag.DEAD if dead else 0)
        return self.message(conn, protocol.pack(Type.NACK, generation, a=h.a, e=h.e, f=h.f, flags=flags), b"why")

    def heartbeat(self, conn: bytes = b"c1", generation: int = 1) -> list[Sent]:
        return self.message(conn, protocol.pack(Type.HEARTBEAT, generation))


def as_event(conn: bytes, header: bytes, *frames: bytes) -> tuple:
    return (ev.MESSAGE, conn, protocol.HEADER.unpack(header), list(frames))


def of(said: list[Sent], type_: Type) -> list[Sent]:
    return [s for s in said if s.type == type_]


def acked(said: list[Sent]) -> list[int]:
    """Every seq that these messages ack."""
    return [seq for s in of(said, Type.ACK) for a, b in s.ranges for seq in range(a, b + 1)]


def deliveries(said: list[Sent]) -> list[Sent]:
    return of(said, Type.DELIVER)

"""The broker as a process of the simulated world: the real core, writer and reader on simulated disks.

What the real shell does with threads happens here in events of its own, so that every order of "the loop turned", "the
commit ended", "the log was read" occurs under some seed.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from tests.simulation.disk import SimulatedDisk
from tests.simulation.network import Connection, Frames
from zmqbroker import protocol
from zmqbroker.core import events as ev
from zmqbroker.core.broker import Core
from zmqbroker.core.config import TopicConfig
from zmqbroker.core.effects import Effects
from zmqbroker.protocol import HEADER_BYTES, MAGIC, VERSION, Type
from zmqbroker.reading import LogReader
from zmqbroker.storage.log import DiskLog
from zmqbroker.storage.spare import Inline
from zmqbroker.writing import LogWriter

if TYPE_CHECKING:
    from tests.simulation.world import World


T = TypeVar("T")


class Killed(BaseException):
    """The process died in the middle of a file operation."""


class MortalDisk(SimulatedDisk):
    """A disk whose machine can be made to die at its next few operations."""

    dies_in: int | None = None

    @property
    def steps(self) -> int:
        return self._steps

    @steps.setter
    def steps(self, value: int) -> None:
        self._steps = value
        if self.dies_in is not None:
            self.dies_in -= 1
            if self.dies_in < 0:
                self.dies_in = None
                raise Killed


class BrokerProcess:
    """Started, killed, paused and stopped by the world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.disks: dict[str, MortalDisk] = {}
        self.configs: dict[str, TopicConfig] = {}
        self.up = False
        self.paused = False
        self.boots = 0
        self.core: Core
        self.connections: dict[bytes, Connection] = {}

    @property
    def listens(self) -> bool:
        return self.up

    # --- life

    def start(self) -> None:
        world = self.world
        self.boots += 1
        boot = self.boots
        self._boot = boot
        self._monotonic = world.clock.between(0, 1e6) - world.clock.now
        self._inbox: deque[tuple] = deque()
        self._turn_at: float | None = None
        self._write_at: float | None = None
        self._writing = False
        self._on_their_way: list[tuple] = []
        self._logs: dict[str, DiskLog] = {}
        self.core = Core(world.profile.broker, random.Random(world.clock.rng.random()), world.profile.topic)
        self.core.state.topic_configs["t"] = world.profile.topic
        self._written: list[tuple] = []
        self.writer = LogWriter(self._written.extend, self._clock)
        self.reader = LogReader(lambda events: None, self._logs, self._open)
        self.connections = {}
        self.up = True
        self.paused = False
        try:
            events = [self._open(name, config) for name, config in list(self.configs.items())]
        except Killed:
            self.kill(power=True)
            return
        except OSError:  # a disk that fails while it is recovered: the operator starts it again
            self.kill(power=False)
            return
        self._effects(self.core.handle(events, self._clock(), world.wall_ms()))
        world.checks.recovered(self)
        self._plan_turn(0.0)
        self._plan_maintenance(boot)

    def kill(self, power: bool) -> None:
        """kill -9, or the whole machine without power."""
        if not self.up:
            return
        self.up = False
        for connection in list(self.connections.values()):
            connection.break_()
        self.connections.clear()
        for disk in self.disks.values():
            disk.dies_in = None
            if power:
                disk.lose_power()
            else:
                disk.kill()
        self.world.checks.killed(self, power)

    def stop(self) -> None:
        """SIGTERM: what came is made durable, peers are told, logs are closed cleanly."""
        if not self.up or self.paused:
            return
        self.core.state.stopping = True
        self._inbox.extend(self._on_their_way)
        try:
            for _ in range(50):
                self._turn_now()
                self._write_now()
                self._inbox.extend(self._written)
                self._written.clear()
                if not any(t.commits and not t.stopped for t in self.core.topics.values()):
                    break
            for conn, peer in list(self.core.state.peers.items()):
                generation = peer.generation if hasattr(peer, "generation") else peer.member.generation
                self._send(conn, [protocol.pack(Type.BYE, generation)])
            self.writer.finish()
            for name, log in self._logs.items():
                topic = self.core.topics.get(name)
                if topic is not None and topic.settled:
                    log.close(topic.snapshot(self.core.state.sessions_of(topic)))
        except Killed:
            self.kill(power=True)
            return
        self.kill(power=False)

    def die_in(self, operations: int) -> None:
        """Lose power in the middle of the next file operations."""
        for disk in self.disks.values():
            disk.dies_in = operations

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False
        if self.up:
            self._plan_turn(0.0)
            self._plan_write(0.0)

    # --- the loop

    def message(self, connection: Connection, frames: Frames) -> None:
        """A message has arrived at the socket."""
        if not self.up:
            return
        if connection.id not in self.connections:
            if not connection.open and connection.id in self.world.finished_connections:
                return
            self.connections[connection.id] = connection
        head = frames[0]
        h = protocol.HEADER.unpack_from(head)
        if h[0] == MAGIC and h[1] == VERSION:
            body = [head[HEADER_BYTES:]] if len(head) > HEADER_BYTES else frames[1:]
            self._inbox.append((ev.MESSAGE, connection.id, h, body))
            self._plan_turn(self.world.clock.between(0.0, 0.001))

    def _clock(self) -> float:
        return self.world.clock.now + self._monotonic

    def _plan_turn(self, in_s: float) -> None:
        at = self.world.clock.now + in_s
        if self._turn_at is None or at < self._turn_at - 1e-9:
            self._turn_at = at
            boot = self._boot
            self.world.clock.after(in_s, lambda: self._turn(boot, at))

    def _turn(self, boot: int, at: float) -> None:
        if not self.up or boot != self._boot or at != self._turn_at:
            return
        self._turn_at = None
        if self.paused:
            return
        self._turn_now()

    def _turn_now(self) -> None:
        inbox = self._inbox
        events = [inbox.popleft() for _ in range(min(len(inbox), self.world.profile.drain_messages))]
        now = self._clock()
        self._effects(self.core.handle(events, now, self.world.wall_ms()))
        self.world.checks.turned(self)
        if inbox:
            self._plan_turn(0.0)
        else:
            self._plan_turn(max(0.0, min(self.core.deadline_s - now + 1e-6, 0.5)))

    def _effects(self, fx: Effects) -> None:
        world = self.world
        if fx.hands:
            world.checks.handed(self, fx.hands)
            self.writer.hand(fx.hands)
            self._plan_write(world.clock.between(0.0, 0.002))
        for conn, frames in fx.sends:
            self._send(conn, frames)
        boot = self._boot
        for question in (*fx.reads, *fx.cuts, *fx.opens):
            delay_s = world.clock.between(0.0, 0.01) if world.chance(0.9) else world.clock.between(0.0, 0.5)
            world.clock.after(delay_s, lambda q=question: self._answer(boot, q))

    def _send(self, conn: bytes, frames: Frames) -> None:
        connection = self.connections.get(conn)
        if connection is None or not connection.open:
            self._inbox.append((ev.GONE, conn))
            self._plan_turn(0.0)
            return
        self.world.checks.sent(self, connection, frames)
        connection.send_down(frames)

    def _answer(self, boot: int, question: Any) -> None:
        if self.up and boot == self._boot:
            try:
                self._inbox.extend(self.reader.answer(question))
            except Killed:
                self.kill(power=True)
                return
            self._plan_turn(0.0)

    def call(self, what: Callable[[Core], T]) -> T:
        """As :meth:`zmqbroker.server.Broker.call`: between two turns, its effects run like those of events."""
        self._turn_now()
        fx = self.core.state.fx
        fx.clear()
        answer = what(self.core)
        self._effects(fx)
        self._plan_turn(0.0)
        return answer

    # --- the writer

    def _plan_write(self, in_s: float) -> None:
        at = self.world.clock.now + in_s
        if not self._writing and (self._write_at is None or at < self._write_at - 1e-9):
            self._write_at = at
            boot = self._boot
            self.world.clock.after(in_s, lambda: self._write(boot, at))

    def _write(self, boot: int, at: float) -> None:
        if not self.up or boot != self._boot or at != self._write_at:
            return
        self._write_at = None
        if self.paused:
            return
        try:
            wait_s = self._write_now()
        except Killed:
            self.kill(power=True)
            return
        # What was written is durable now; the loop hears of it when the sync would have ended.
        events, self._written[:] = list(self._written), []
        self._on_their_way = events
        self._writing = True

        def done() -> None:
            if self.up and boot == self._boot:
                self._writing = False
                self._on_their_way = []
                self._inbox.extend(events)
                self._plan_turn(0.0)
                if self.writer.backlog:
                    self._plan_write(0.0)
                elif wait_s is not None:
                    self._plan_write(wait_s)

        self.world.clock.after(self.world.clock.between(0.0001, 0.004), done)

    def _write_now(self) -> float | None:
        wait_s = self.writer.step()
        self.world.checks.written(self, self._written)
        return wait_s

    def _plan_maintenance(self, boot: int) -> None:
        def maintain() -> None:
            if not self.up or boot != self._boot:
                return
            if not self.paused:
                for topic in self.core.topics.values():
                    if not topic.stopped:
                        self.writer.maintain(topic.name, *topic.retention(self.world.wall_ms()))
                self._plan_write(0.0)
            self.world.clock.after(1.0, maintain)

        self.world.clock.after(1.0, maintain)

    # --- files

    def _open(self, name: str, config: TopicConfig) -> tuple:
        world = self.world
        if name not in self.disks:
            self.disks[name] = MortalDisk(world.clock.rng.randrange(1 << 30), survival=world.profile.survival)
            self.configs[name] = config
        log = DiskLog(
            "d",
            config.partitions,
            filesystem=self.disks[name],
            segment_bytes=config.segment_bytes,
            random=world.clock.rng.randbytes,
            clock=self._clock,
            helper=Inline(),
        )
        recovered = log.recover()
        recovered = recovered._replace(entries=iter(list(recovered.entries)))
        self._logs[name] = log
        self.writer.add(name, log, config.fsync, config.fsync_interval_ms / 1000)
        return (ev.OPENED, name, config, log.uuid, recovered)

    def log(self, name: str) -> DiskLog:
        return self._logs[name]


__all__ = ["BrokerProcess", "Killed", "MortalDisk"]

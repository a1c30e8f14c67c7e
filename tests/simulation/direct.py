"""The world without a broker (R30): producers with several addresses, collectors that bind, the same store and network.

``DirectWorld(seed).run(steps)``. The promise is stricter than with a broker, because an ack says more: when a producer
hears it, the rows are in the store, or the batch is among the dead letters of a collector. And still nothing twice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import ClassVar

from consumers.merge import Address
from tests.simulation.actors import SimulatedProducer
from tests.simulation.clockwork import Violation
from tests.simulation.jobs import Job
from tests.simulation.network import Connection, Frames
from tests.simulation.stage import Profile, Stage
from zmqbroker.client import runs
from zmqbroker.client.accepting import Accepting
from zmqbroker.client.consuming import Delivery
from zmqbroker.protocol import WorkState

_POLL_S = 0.4


class BindingCollector:
    """One collector process: what :mod:`zmqbroker.client.direct` and the engine do, on simulated time."""

    def __init__(self, world: DirectWorld, place: Place) -> None:
        self.world = world
        self.place = place
        self.name = place.name
        self.boot = world.store.boot_id
        self.dead = self.paused = False
        rng = world.clock.rng
        self.accepting = Accepting(
            "t", rng.randbytes(16), pool_bytes=world.pool_bytes, message_bytes_max=8192, limits=world.limits
        )
        self._monotonic = world.clock.between(0, 1e6) - world.clock.now
        self._credit = rng.randint(1, 4)
        self._connections: dict[bytes, Connection] = {}
        self._inbox: deque[tuple[bytes, Frames]] = deque()
        self._postponed: list[Callable[[], None]] = []
        self._waiting: set[int] = set()
        """Runs that wait for the store."""
        self._tick()

    # --- the process

    def kill(self) -> None:
        self.dead = True
        for connection in list(self._connections.values()):
            connection.break_()

    def leave(self) -> None:
        """SIGTERM: tell the producers, finish what can be finished in half a second."""
        self._credit = 0
        self.accepting.set_open(False)
        self.accepting.bye()
        self._turn()
        self.world.clock.after(0.5, self.kill)

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        """The thread of the socket and the workers go on, in any order."""
        self.paused = False
        later, self._postponed = self._postponed, []
        turns = [self._turn, *later] if self.world.chance(0.5) else [*later, self._turn]
        for turn in turns:
            turn()

    def alive(self, what: Callable[[], None]) -> None:
        if self.paused:
            self._postponed.append(what)
        elif not self.dead:
            what()

    # --- the socket

    def message(self, connection: Connection, frames: Frames) -> None:
        if connection.open or connection.id in self._connections:
            self._connections[connection.id] = connection
            self._inbox.append((connection.id, frames))
            self.world.clock.after(self.world.clock.between(0.0, 0.001), self._turn)

    def _clock(self) -> float:
        return self.world.clock.now + self._monotonic

    def _tick(self) -> None:
        if not self.dead:
            self._turn()
            self.world.clock.after(_POLL_S, self._tick)

    def _turn(self) -> None:
        if self.dead or self.paused:
            return
        now, accepting = self._clock(), self.accepting
        while self._inbox:
            conn, frames = self._inbox.popleft()
            accepting.receive(conn, frames, now, self.world.wall_ms())
        accepting.turn(now)
        while accepting.taken < self._credit and (delivery := accepting.take(now)) is not None:
            self.world.checks.delivered(delivery)
            self._work(delivery)
        sends, accepting.sends = accepting.sends, []
        for conn, frames in sends:
            connection = self._connections.get(conn)
            if connection is None or not connection.open:
                accepting.gone(conn)
            else:
                connection.send_down(frames)
        self.world.checks.turned(accepting)

    def _work(self, delivery: Delivery) -> None:
        expected, offsets = {}, {}
        for record, payload in zip(delivery.records.tolist(), delivery.payloads(), strict=True):
            offset, session, seq, _, rows, _, _ = record
            self.world.checks.content(session, seq, rows, bytes(payload))
            expected[Address(session, seq)], offsets[Address(session, seq)] = rows, offset
        job = Job(self, delivery, expected, offsets)
        clock = self.world.clock
        think_s = clock.between(0.0, 40.0) if self.world.chance(self.world.profile.slow_work) else 0.01
        clock.after(think_s, lambda: self.alive(lambda: job.go(job.decision.start())))

    # --- as its jobs see it

    def holds(self, delivery: Delivery) -> bool:
        return self.accepting.holds(delivery, self._clock())

    def working(self, delivery: Delivery, state: WorkState) -> None:
        """While the store is away nobody gets credit (the breaker)."""
        (self._waiting.discard if state == WorkState.INSERTING else self._waiting.add)(delivery.range_id)
        self.accepting.set_open(not self._waiting and self._credit > 0)

    def settle(self, delivery: Delivery, dead_offsets: list[int]) -> None:
        for record in delivery.records.tolist():
            if record[0] in dead_offsets:
                self.place.letters.add(Address(record[1], record[2]))
        self.working(delivery, WorkState.INSERTING)
        self.accepting.settle(delivery)
        self._turn()

    def give_back(self, delivery: Delivery, reason: str, failure: bool) -> None:
        self.working(delivery, WorkState.INSERTING)
        if self.accepting.nack(delivery, failure, self._clock()):
            self.settle(delivery, delivery.records["offset"].tolist())
        self._turn()


class Place:
    """An address where a collector listens, and its disk: processes come and go."""

    def __init__(self, world: DirectWorld, name: str) -> None:
        self.world = world
        self.name = name
        self.letters: set[Address] = set()
        """Its dead letters."""
        self.process = BindingCollector(world, self)

    @property
    def listens(self) -> bool:
        return not self.process.dead

    def message(self, connection: Connection, frames: Frames) -> None:
        if self.listens:
            self.process.message(connection, frames)

    def start(self) -> None:
        if not self.listens:
            self.process = BindingCollector(self.world, self)


class DirectChecks:
    """What is true at every step."""

    def __init__(self, world: DirectWorld) -> None:
        self.world = world
        self.acked_: set[Address] = set()
        self.deliveries = self.batches = 0
        self._given: dict[tuple[int, int], int] = {}

    @property
    def progress(self) -> int:
        return len(self.acked_) + len(self.world.store.rows)

    def published(self, session: int, seq: int, rows: int) -> None:
        pass

    def acked(self, session: int, seq: int) -> None:
        address = Address(session, seq)
        self.acked_.add(address)
        if address not in self.world.store.rows and not any(address in p.letters for p in self.world.servers):
            raise Violation(f"{address} was acked, and is neither stored nor dead")

    def content(self, session: int, seq: int, rows: int, payload: bytes) -> None:
        if (payload, rows) != self.world.batch(session, seq):
            raise Violation(f"the content of {session}/{seq} changed")

    def delivered(self, delivery: Delivery) -> None:
        """A run is of one session and without holes; within its limits, unless it is but one batch."""
        self.deliveries += 1
        records, limits = delivery.records, self.world.limits
        self.batches += len(records)
        if len(set(records["session"].tolist())) != 1 or records["seq"].tolist() != list(
            range(delivery.first, delivery.last + 1)
        ):
            raise Violation(f"{delivery} is no run of one session")
        if len(records) > 1 and (delivery.rows > limits.rows or len(delivery.body) > limits.bytes):
            raise Violation(f"{delivery} is above the limits of a run")

    def turned(self, accepting: Accepting) -> None:
        pool = accepting.pool
        if pool.outstanding_bytes > pool.pool_bytes + 4096 * max(1, pool.sessions):
            raise Violation(f"{pool.outstanding_bytes} bytes of credit are out, of {pool.pool_bytes}")
        held = sum(s.granted_bytes - s.freed_bytes for s in accepting.peers.values())
        if held != pool.outstanding_bytes:
            raise Violation(f"credit leaked: {pool.outstanding_bytes} counted, {held} held")

    def finished(self) -> str:
        for producer in self.world.producers:
            c = producer.conversation
            if c.pending:
                return (
                    f"producer {producer.session} is stuck with {list(c.pending)[:9]}: accepted {c.connected}, sent "
                    f"{c.sent_bytes} of {c.granted_bytes} granted, wants {c._wanted}, to send {len(c.to_send)}"
                )
        return ""


class DirectWorld(Stage):
    """See the module."""

    again: ClassVar[str] = "python -m tests.simulation --direct"
    checks: DirectChecks
    servers: list[Place]

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        rng = self.clock.rng

        def maybe(probability: float, value: float) -> float:
            return value * rng.random() if rng.random() < probability else 0.0

        self.profile = Profile(
            producers=rng.randint(1, 4),
            collectors=rng.randint(1, 3),
            producer_buffer_bytes=rng.choice([2000, 20_000, 200_000]),
            payload_bytes_max=rng.choice([60, 400, 3000]),
            store_refuses_now=maybe(0.3, 0.1),
            store_answers_lost=maybe(0.5, 0.2),
            corrupt_in_transit=maybe(0.3, 0.05),
            slow_work=maybe(0.5, 0.3),
            poison=rng.choice([0, 0, 50, 300]),
            fault_pause_s=rng.choice([0.3, 1.5, 5.0]),
            faults={
                name: weight * rng.random()
                for name, weight in {
                    "break_connection": 4.0,
                    "kill_collector": 1.0,
                    "pause_collector": 2.0,
                    "collector_leaves": 0.5,
                    "kill_producer": 2.0,
                    "pause_producer": 0.7,
                    "restart_store": 1.0,
                    "slow_store": 0.5,
                }.items()
            },
        )
        self.pool_bytes = rng.choice([1 << 16, 1 << 18, 1 << 22])
        self.limits = runs.Limits(
            rows=rng.choice([10, 200, 5000]), bytes=self.pool_bytes // rng.choice([8, 64]), linger_s=0.1, unacked=4
        )
        self.checks = DirectChecks(self)
        self.servers = [Place(self, f"c{n}") for n in range(self.profile.collectors)]
        self.producers = [SimulatedProducer(self, self.new_session()) for _ in range(self.profile.producers)]
        self.clock.after(self.profile.fault_pause_s, self._fault)

    def actors(self) -> list[SimulatedProducer]:
        return self.producers

    def repair(self) -> str:
        for place in self.servers:
            place.start()
        return ""

    # --- what befalls it

    def _awake(self) -> BindingCollector | None:
        awake = [p.process for p in self.servers if p.listens and not p.process.paused]
        return self.clock.rng.choice(awake) if awake else None

    def _kill_collector(self) -> None:
        if collector := self._awake():
            collector.kill()
            # Mostly soon again; sometimes its producers must go elsewhere.
            self.clock.after(self.clock.between(0.1, 100.0 if self.chance(0.3) else 3.0), collector.place.start)

    def _collector_leaves(self) -> None:
        if collector := self._awake():
            collector.leave()
            self.clock.after(self.clock.between(0.6, 10.0), collector.place.start)

    def _pause_collector(self) -> None:
        if collector := self._awake():
            collector.pause()
            self.clock.after(self.clock.between(0.1, 6.0 if self.chance(0.6) else 90.0), collector.resume)

    def _kill_producer(self) -> None:
        if not self.producers:
            return
        producer = self.clock.rng.choice(self.producers)
        self.producers.remove(producer)
        producer.kill()

        def again() -> None:
            # Resumed (R8): from a state that may lag behind what was acked, under other bounds.
            first = max(1, producer.conversation.lowest_unacked - self.clock.rng.randint(0, 5))
            resumed = self.chance(0.6)
            self.producers.append(
                SimulatedProducer(self, producer.session if resumed else self.new_session(), first if resumed else 0)
            )

        self.clock.after(self.clock.between(0.0, 2.0), again)

    def _pause_producer(self) -> None:
        producer = self.clock.rng.choice(self.producers) if self.producers else None
        if producer is not None and not producer.paused:
            producer.pause()
            self.clock.after(self.clock.between(0.5, 30.0), producer.resume)

"""Producers and collectors of the simulated world: the real conversations, the real machine of the store's doubts."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from crc32c import crc32c

from consumers.merge import Address
from consumers.source import SILENCE_S_MAX
from tests.simulation.clockwork import Violation
from tests.simulation.jobs import Job
from tests.simulation.network import SimulatedLink
from zmqbroker.client.consuming import ConsumerConversation, Delivery
from zmqbroker.client.producing import ProducerConversation
from zmqbroker.protocol import WorkState

if TYPE_CHECKING:
    from tests.simulation.stage import Stage
    from tests.simulation.world import World


class SimulatedProducer:
    """Publishes at its own pace until told to stop; can be killed, and run again with the same session."""

    def __init__(self, world: Stage, session: int, resumed_at: int = 0) -> None:
        self.world = world
        self.session = session
        rng = world.clock.rng
        self.conversation = ProducerConversation(
            session,
            "t",
            incarnation=world.next_incarnation(),
            first_seq=resumed_at or 1,
            resumed=resumed_at > 0,
            rng=rng,
            name=f"p{session}",
        )
        self.key = rng.randrange(1 << 32) if rng.random() < 0.3 else None
        self.pace_s = 10 ** world.clock.between(-3, -0.5)
        self.waiting: set[int] = set()
        self.dead = False
        self.paused = False
        self.link = SimulatedLink(world, self.conversation, self._received)
        world.clock.after(world.clock.between(0, 1), self._publish)

    def _publish(self) -> None:
        world = self.world
        if self.dead or world.draining:
            return
        if not self.paused and self.conversation.pending_bytes < world.profile.producer_buffer_bytes:
            burst = world.clock.rng.randint(1, 8) if world.chance(0.2) else 1
            for _ in range(burst):
                seq = self.conversation.next_seq
                payload, rows = world.batch(self.session, seq)
                self.conversation.add(payload, rows, crc32c(payload), self.key)
                self.waiting.add(seq)
                world.checks.published(self.session, seq, rows)
            self.link.wake()
        world.clock.after(self.pace_s * world.clock.between(0.2, 2), self._publish)

    def _received(self) -> None:
        conversation = self.conversation
        if conversation.fatal is not None:
            raise Violation(f"producer {self.session} was refused for good: {conversation.fatal}")
        if conversation.failed:
            raise Violation(f"batches of producer {self.session} were refused for good: {conversation.failed}")
        if len(self.waiting) > len(conversation.pending):
            for seq in [s for s in self.waiting if s not in conversation.pending]:
                self.waiting.discard(seq)
                self.world.checks.acked(self.session, seq)

    def kill(self) -> None:
        self.dead = True
        self.link.kill()

    def pause(self) -> None:
        self.paused = True
        self.link.pause()

    def resume(self) -> None:
        self.paused = False
        if not self.dead:
            self.link.resume()


class SimulatedCollector:
    """One collector process: one worker a delivery, one after the other; the store once-only by the real rules."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        rng = world.clock.rng
        self.conversation = ConsumerConversation(
            rng.randrange(1 << 62),
            "t",
            "clickhouse",
            credit=rng.randint(1, 3),
            name=name,
            rng=rng,
            options=world.profile.group_options,
        )
        self.dead = False
        self.paused = False
        self.boot = world.store.boot_id
        self._working: Delivery | None = None
        self._postponed: list[Callable[[], None]] = []
        self.link = SimulatedLink(world, self.conversation, self._received)

    # --- the process

    def kill(self) -> None:
        self.dead = True
        self.link.kill()

    def pause(self) -> None:
        self.paused = True
        self.link.pause()

    def resume(self) -> None:
        self.paused = False
        if self.dead:
            return
        later, self._postponed = self._postponed, []
        # The worker's thread and the link's thread: either may run first.
        if self.world.chance(0.5):
            self.link.resume()
            for what in later:
                what()
        else:
            for what in later:
                what()
            self.link.resume()

    def leave(self) -> None:
        """SIGTERM: settle what is at hand, give back the rest."""
        self.conversation.close()
        self.link.wake()
        self.world.clock.after(0.5, self.kill)

    def alive(self, what: Callable[[], None]) -> None:
        if self.dead:
            return
        if self.paused:
            self._postponed.append(what)
        else:
            what()

    # --- deliveries

    def _received(self) -> None:
        if self.conversation.fatal is not None:
            raise Violation(f"collector {self.name} was refused for good: {self.conversation.fatal}")
        self._next()

    def _next(self) -> None:
        if self._working is None and self.conversation.ready and not self.dead and not self.paused:
            delivery = self._working = self.conversation.ready.popleft()
            think_s = self.world.clock.between(0.0, 0.02)
            if self.world.chance(self.world.profile.slow_work):
                think_s = self.world.clock.between(0.0, 40.0)
            self.world.clock.after(think_s, lambda: self.alive(lambda: self._store(delivery)))

    def _store(self, delivery: Delivery) -> None:
        expected: dict[Address, int] = {}
        offsets: dict[Address, int] = {}
        for record, payload in zip(delivery.records.tolist(), delivery.payloads(), strict=True):
            offset, session, seq, _, rows, _, _ = record
            self.world.checks.content(session, seq, rows, bytes(payload))
            address = Address(session, seq)
            if address in expected:
                raise Violation(f"{address} is twice in {delivery}")
            expected[address] = rows
            offsets[address] = offset
        if any(self.world.is_killer(a) for a in expected):
            self.world.collector_died(self)
            return
        if not expected:
            self.settle(delivery, [])
            return
        job = Job(self, delivery, expected, offsets)
        job.go(job.decision.start())

    # --- as its job sees it

    def settle(self, delivery: Delivery, dead_offsets: list[int]) -> None:
        self.conversation.settle(delivery, 0, dead_offsets, "refused by the store")
        self._done()

    def give_back(self, delivery: Delivery, reason: str, failure: bool) -> None:
        self.conversation.nack(delivery, reason, False, failure)
        self._done()

    def working(self, delivery: Delivery, state: WorkState) -> None:
        self.conversation.working(delivery, state)
        self.link.wake()

    def holds(self, delivery: Delivery) -> bool:
        """As ``consumers.source``."""
        lease_s = self.world.clock.now - self.conversation.lease_from_s
        return self.conversation.holds(delivery) and lease_s < SILENCE_S_MAX

    def _done(self) -> None:
        self._working = None
        self.link.wake()
        self._next()


class OrderedReader:
    """A member of an ordered group: takes ranges one after the other, acks, sometimes fails, never stores."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        rng = world.clock.rng
        self.conversation = ConsumerConversation(
            rng.randrange(1 << 62),
            "t",
            "ordered",
            credit=rng.randint(1, 4),
            name=name,
            rng=rng,
            options={**world.profile.group_options, "mode": "ordered", "max_rows": 50},
        )
        self.dead = False
        self.link = SimulatedLink(world, self.conversation, self._received)

    def _received(self) -> None:
        if self.conversation.fatal is not None:
            raise Violation(f"reader {self.name} was refused for good: {self.conversation.fatal}")
        while self.conversation.ready:
            delivery = self.conversation.ready.popleft()
            self.world.checks.ordered(delivery)
            self.world.clock.after(self.world.clock.between(0.001, 0.1), lambda d=delivery: self._finish(d))

    def _finish(self, delivery: Delivery) -> None:
        if self.dead:
            return
        if self.world.chance(0.02):
            self.conversation.nack(delivery, "not now", False, self.world.chance(0.5))
        else:
            self.world.checks.ordered_acked(delivery)
            self.conversation.settle(delivery, 0, [], "")
        self.link.wake()

    def kill(self) -> None:
        self.dead = True
        self.link.kill()


class Tail:
    """An ephemeral reader: comes, looks for a while, goes."""

    def __init__(self, world: World) -> None:
        self.world = world
        rng = world.clock.rng
        self.conversation = ConsumerConversation(
            rng.randrange(1 << 62),
            "t",
            f"tail{rng.randrange(3)}",
            credit=2,
            rng=rng,
            options={"durable": False, "max_rows": 20, "linger_ms": 10},
        )
        self.dead = False
        self.seen: deque[Delivery] = deque(maxlen=1)
        self.link = SimulatedLink(world, self.conversation, self._received)
        world.clock.after(world.clock.between(0.5, 10), self.kill)

    def _received(self) -> None:
        if self.conversation.fatal is not None:
            raise Violation(f"a tail was refused for good: {self.conversation.fatal}")
        while self.conversation.ready:
            delivery = self.conversation.ready.popleft()
            self.seen.append(delivery)
            if self.world.chance(0.95):
                self.conversation.settle(delivery, 0, [], "")
            else:
                self.conversation.nack(delivery, "no", self.world.chance(0.5), True)
            self.link.wake()

    def kill(self) -> None:
        self.dead = True
        self.link.kill()

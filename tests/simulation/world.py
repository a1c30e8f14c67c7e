"""A seeded world: producers, a broker on failing disks, collectors, a store, a network, and what befalls them.

What befalls them here is what a broker is to withstand; see :mod:`.stage` for what is common to all worlds.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Any

from consumers.merge import Address
from tests.simulation import stage
from tests.simulation.actors import OrderedReader, SimulatedCollector, SimulatedProducer, Tail
from tests.simulation.broker import BrokerProcess
from tests.simulation.checks import Checks
from tests.simulation.operator import Operator
from tests.simulation.stage import Actor, Stage
from zmqbroker.core.config import BrokerConfig, TopicConfig


@dataclass
class Profile(stage.Profile):
    """What kind of world a seed makes."""

    broker: BrokerConfig = field(default_factory=BrokerConfig)
    topic: TopicConfig = field(default_factory=TopicConfig)
    ordered: bool = False
    survival: float = 0.5
    drain_messages: int = 512
    killer: int = 0
    """One batch in so many kills the collector that opens it."""
    check_every: int = 7
    tail_slack_bytes: int = 1 << 21
    group_options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, rng: random.Random) -> Profile:
        def maybe(probability: float, value: float) -> float:
            return value * rng.random() if rng.random() < probability else 0.0

        payload_bytes_max = rng.choice([60, 400, 3000])
        return cls(
            broker=BrokerConfig(
                ingress_pool_bytes=rng.choice([1 << 16, 1 << 18, 1 << 22]),
                credit_floor_bytes=rng.choice([4096, 1 << 15, 1 << 18]),
                message_bytes_max=8192,
                tail_bytes=rng.choice([2000, 20_000, 1 << 20]),
                heartbeat_s=1.0,
            ),
            topic=TopicConfig(
                partitions=rng.choice([1, 2, 4]),
                fsync=rng.choices(["commit", "interval", "never"], [8, 1, 1])[0],
                fsync_interval_ms=200,
                segment_bytes=rng.choice([1 << 15, 1 << 16, 1 << 18]),
                retention_ms=rng.choice([0, 2000, 900_000]),
            ),
            producers=rng.randint(1, 4),
            collectors=rng.randint(1, 3),
            ordered=rng.random() < 0.4,
            survival=rng.choice([0.0, 0.5, 0.9]),
            drain_messages=rng.choice([1, 8, 512]),
            producer_buffer_bytes=rng.choice([2000, 20_000, 200_000]),
            payload_bytes_max=payload_bytes_max,
            store_refuses_now=maybe(0.3, 0.1),
            store_answers_lost=maybe(0.4, 0.2),
            corrupt_in_transit=maybe(0.3, 0.05),
            slow_work=maybe(0.3, 0.1),
            poison=rng.choice([0, 0, 50, 300]),
            killer=rng.choice([0, 0, 0, 300]),
            fault_pause_s=rng.choice([0.3, 1.5, 5.0]),
            group_options={"max_rows": rng.choice([20, 200, 5000]), "linger_ms": rng.choice([5, 100])},
            faults={
                name: weight * rng.random()
                for name, weight in {
                    "break_connection": 6.0,
                    "kill_broker": 1.0,
                    "lose_power": 1.0,
                    "die_in_a_write": 1.0,
                    "stop_broker": 0.7,
                    "pause_broker": 0.7,
                    "kill_collector": 1.5,
                    "pause_collector": 1.5,
                    "collector_leaves": 0.5,
                    "kill_producer": 1.0,
                    "pause_producer": 0.7,
                    "restart_store": 1.0,
                    "slow_store": 0.5,
                    "jump_clock": 0.5,
                    "fill_disk": 0.7,
                    "fail_sync": 0.3,
                    "tail": 1.0,
                }.items()
            },
        )

    def operated(self, rng: random.Random) -> None:
        """Add disks that rot and an operator at work; some topics drop their oldest records."""
        for name, weight in {"rot": 2.0, "redrive": 1.0, "reset_group": 0.5}.items():
            self.faults[name] = weight * rng.random()
        if rng.random() < 0.2:
            self.topic = replace(
                self.topic, overflow="drop-oldest", disk_bytes_max=rng.choice([3, 8]) * self.topic.segment_bytes
            )
        if rng.random() < 0.5:
            self.faults["replay"] = 6.0 * rng.random()


class World(Stage):
    """See the module. ``operated=False`` is the world of the early seeds, before there were operators and rot."""

    profile: Profile
    checks: Checks

    def __init__(self, seed: int, operated: bool = True) -> None:
        super().__init__(seed)
        self.profile = Profile.of(self.clock.rng)
        if operated:
            self.profile.operated(random.Random(f"operator {seed}"))
        self.finished_connections: set[bytes] = set()
        self._names = 0
        self.checks = Checks(self)
        self.broker = BrokerProcess(self)
        self.servers = [self.broker]
        self.broker.start()
        self.operator = Operator(self)
        self.producers: list[SimulatedProducer] = []
        self.collectors: list[SimulatedCollector] = []
        self.readers: list[OrderedReader] = []
        self.tails: list[Tail] = []
        for _ in range(self.profile.producers):
            self.producers.append(SimulatedProducer(self, self.new_session()))
        for _ in range(self.profile.collectors):
            self._new_collector()
        if self.profile.ordered:
            for _ in range(2):
                self._new_reader()
        self.clock.after(self.profile.fault_pause_s, self._fault)

    def actors(self) -> list[Actor]:
        return [*self.producers, *self.collectors, *self.readers, *self.tails]

    def is_killer(self, address: Address) -> bool:
        return bool(self.profile.killer) and (address.session * 3 + address.seq * 104_729) % self.profile.killer == 1

    def collector_died(self, collector: SimulatedCollector) -> None:
        collector.kill()
        self._replace_collector(collector, self.clock.between(0.2, 2.0))

    # --- what befalls them

    def _restart_broker_later(self) -> None:
        self.clock.after(self.clock.between(0.01, 4.0), self._start_broker)

    def _start_broker(self) -> None:
        if not self.broker.up:
            self.broker.start()
            if not self.broker.up:  # it died again while it recovered
                self._restart_broker_later()

    def _kill_broker(self) -> None:
        self.broker.kill(power=False)
        self._restart_broker_later()

    def _lose_power(self) -> None:
        self.broker.kill(power=True)
        self._restart_broker_later()

    def _die_in_a_write(self) -> None:
        if self.broker.up:
            self.broker.die_in(self.clock.rng.randint(0, 12))

    def _stop_broker(self) -> None:
        self.broker.stop()
        self._restart_broker_later()

    def _pause_broker(self) -> None:
        if not self.broker.up:
            return
        self.broker.pause()
        seconds = self.clock.between(0.1, 3.0) if self.chance(0.7) else self.clock.between(10, 60)
        self.clock.after(seconds, self.broker.resume)

    def _kill_collector(self) -> None:
        alive = [c for c in self.collectors if not c.dead]
        if alive:
            self.collector_died(self.clock.rng.choice(alive))

    def _replace_collector(self, collector: SimulatedCollector, in_s: float) -> None:
        if collector in self.collectors:
            self.collectors.remove(collector)
            self.clock.after(in_s, self._new_collector)

    def _new_collector(self) -> None:
        self._names += 1
        self.collectors.append(SimulatedCollector(self, f"c{self._names}"))

    def _new_reader(self) -> None:
        self._names += 1
        self.readers.append(OrderedReader(self, f"o{self._names}"))

    def _pause_collector(self) -> None:
        alive = [c for c in self.collectors if not c.dead and not c.paused]
        if alive:
            collector = self.clock.rng.choice(alive)
            collector.pause()
            seconds = self.clock.between(0.1, 6.0) if self.chance(0.6) else self.clock.between(6, 60)
            self.clock.after(seconds, collector.resume)

    def _collector_leaves(self) -> None:
        alive = [c for c in self.collectors if not c.dead and not c.paused]
        if alive:
            collector = self.clock.rng.choice(alive)
            collector.leave()
            self._replace_collector(collector, self.clock.between(0.0, 2.0))

    def _kill_producer(self) -> None:
        if not self.producers:
            return
        producer = self.clock.rng.choice(self.producers)
        self.producers.remove(producer)
        producer.kill()

        def again() -> None:
            if self.chance(0.6):
                # Resumed (R8): from a state that may lag behind what was acked.
                first = max(1, producer.conversation.lowest_unacked - self.clock.rng.randint(0, 5))
                self.producers.append(SimulatedProducer(self, producer.session, first))
            else:
                self.producers.append(SimulatedProducer(self, self.new_session()))

        self.clock.after(self.clock.between(0.0, 2.0), again)

    def _pause_producer(self) -> None:
        producer = self.clock.rng.choice(self.producers) if self.producers else None
        if producer is not None and not producer.paused:
            producer.pause()
            self.clock.after(self.clock.between(0.5, 30.0), producer.resume)

    def _jump_clock(self) -> None:
        self._wall_ms += int(self.clock.between(-1, 1) * self.clock.rng.choice([1e3, 3.6e6, 3e9]))

    def _fill_disk(self) -> None:
        disks = list(self.broker.disks.values())
        for disk in disks:
            disk.capacity = disk.capacity - disk.free_bytes + self.clock.rng.randint(0, 4000)

        def free() -> None:
            for disk in disks:
                disk.capacity = 1 << 30

        self.clock.after(self.clock.between(0.5, 10.0), free)

    def _fail_sync(self) -> None:
        for disk in self.broker.disks.values():
            logs = [p for p in disk.paths() if p.endswith(".log")]
            if logs and self.chance(0.7):
                disk.fail_sync(logs[-1]) if self.chance(0.5) else disk.fail_write(logs[-1])
        # An operator restarts what has stopped.
        self.clock.after(self.clock.between(1, 10), self._restart_stopped)

    def _restart_stopped(self) -> None:
        if self.broker.up and not self.broker.paused and any(t.stopped for t in self.broker.core.topics.values()):
            self.broker.kill(power=self.clock.rng.random() < 0.5)
            self._restart_broker_later()

    def _rot(self) -> None:
        self.operator.rot()

    def _redrive(self) -> None:
        self.operator.redrive()

    def _reset_group(self) -> None:
        self.operator.reset_group()

    def _replay(self) -> None:
        self.operator.replay()

    def _tail(self) -> None:
        self.tails = [t for t in self.tails if not t.dead]
        if len(self.tails) < 3:
            self.tails.append(Tail(self))

    def repair(self) -> str:
        for disk in self.broker.disks.values():
            disk.capacity = 1 << 30
            disk.dies_in = None
            disk.sync_fails.clear()
            disk.write_fails.clear()
        self._restart_stopped()
        self._start_broker()
        self.profile.killer = 0  # the poisoned programs are repaired in the end
        return "" if self.broker.up else "the broker is down"

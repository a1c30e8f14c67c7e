"""The promises, checked while a world runs (GUARANTEES): nothing lost, nothing doubled, nothing unbounded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from consumers.merge import Address
from tests.helpers.core_invariants import check_invariants
from tests.simulation.clockwork import Violation
from tests.simulation.letters import LetterChecks
from zmqbroker import protocol
from zmqbroker.client.consuming import Delivery
from zmqbroker.core import events as ev
from zmqbroker.core.effects import Hand
from zmqbroker.core.group import Group, Range
from zmqbroker.core.partition import ENTRY_OVERHEAD_BYTES
from zmqbroker.core.topic import Topic
from zmqbroker.protocol import RECORD, Flag, Type
from zmqbroker.storage.interface import KIND_DATA, KIND_GAP

if TYPE_CHECKING:
    from tests.simulation.broker import BrokerProcess
    from tests.simulation.network import Connection, Frames
    from tests.simulation.world import World

SINK = "clickhouse"


class Checks:
    """What the world has seen, and what must therefore be true."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.batches: dict[Address, int] = {}
        self.acked_: set[Address] = set()
        self.durable: dict[tuple[int, int], Address] = {}
        """What topic ``t`` holds durably: (partition, offset) -> address."""
        self.places: dict[Address, tuple[int, int]] = {}
        self.letters = LetterChecks(self, SINK)
        self.rotten: set[tuple[str, int, int]] = set()
        """Records that a bit was turned over in: (topic, partition, offset)."""
        self.lost: set[Address] = set()
        """Records that a recorded gap covers, or that a policy without fsync lost with the power."""
        self._hands: dict[tuple[str, int], list[tuple]] = {}
        self._unsynced: list[tuple[str, list[tuple]]] = []
        self._ranges: dict[int, tuple[int, int, int]] = {}
        self._ordered: dict[tuple[int, int], int] = {}
        """(group generation, partition) -> the offset after what was acked."""
        self._given: dict[str, set[tuple[int, int]]] = {}
        """What each durable group was given at least once."""
        self._firsts: tuple[int, list[int]] = (-1, [])
        """First offsets of the log, as of a step."""
        self._begins: list[int] | None = None
        """Where the sink's group began."""
        self.deliveries = self.turns = self.settlements = 0

    @property
    def progress(self) -> int:
        """Grows while anything gets done."""
        return len(self.acked_) + len(self.world.store.rows) + len(self.letters.there) + self.settlements

    # --- producers

    def published(self, session: int, seq: int, rows: int) -> None:
        self.batches[Address(session, seq)] = rows

    def acked(self, session: int, seq: int) -> None:
        address = Address(session, seq)
        self.acked_.add(address)
        if self.world.profile.topic.fsync == "commit" and address not in self.places and not self.safe(address):
            raise Violation(f"{address} was acked, and is in no log")

    def safe(self, address: Address) -> bool:
        """Stored, dead-lettered, or known to be lost."""
        return (
            address in self.world.store.rows
            or address in self.lost
            or address in self.letters.addresses
            or self._was_dropped(address)
        )

    def _was_dropped(self, address: Address) -> bool:
        """With ``drop-oldest``: it lies before the oldest segment that is left."""
        place, broker = self.places.get(address), self.world.broker
        if place is None or self.world.profile.topic.overflow != "drop-oldest" or not broker.up:
            return False
        if self._firsts[0] != self.world.clock.steps:
            self._firsts = (self.world.clock.steps, broker.log("t").stats().first_offsets)
        return place[1] < self._firsts[1][place[0]]

    # --- the log

    def handed(self, broker: BrokerProcess, hands: list[Hand]) -> None:
        for hand in hands:
            self._hands[hand.topic, hand.commit_id] = hand.appends
            for kind, partition, first, _, _, last, *_ in hand.appends:
                if kind == KIND_GAP:
                    self._gap(hand.topic, partition, first, last)

    def _gap(self, topic: str, partition: int, first: int, last: int) -> None:
        """Records are no more, says the broker: of ``t`` only what has rotted may go (R28)."""
        if topic == "t.dlq":
            self.letters.gone(first, last)
            return
        for offset in range(first, last + 1):
            address = self.durable.get((partition, offset))
            if address is not None and address not in self.lost:
                if (topic, partition, offset) not in self.rotten:
                    raise Violation(f"a gap covers {address} at {partition}/{offset}, and nothing has touched it")
                self.lost.add(address)

    def written(self, broker: BrokerProcess, events: list[tuple]) -> None:
        for event in events:
            if event[0] != ev.COMMITTED:
                continue
            _, topic, commit_id, bad, synced = event
            for key in sorted(k for k in self._hands if k[0] == topic and k[1] <= commit_id):
                wrong = set(bad.get(key[1], ()))
                data = [a for i, a in enumerate(self._hands.pop(key)) if a[0] == KIND_DATA and i not in wrong]
                self._unsynced.append((topic, data))
            if synced:
                for name, data in self._unsynced:
                    if name == topic:
                        for append in data:
                            self._became_durable(name, append)
                self._unsynced = [x for x in self._unsynced if x[0] != topic]

    def _became_durable(self, topic: str, append: tuple) -> None:
        if topic == "t":
            self._place((append[1], append[2]), Address(append[3], append[4]))
        elif topic == "t.dlq":
            self.letters.durable(append[2], append[9])

    def _place(self, place: tuple[int, int], address: Address) -> None:
        if address in self.places and self.places[address] != place:
            raise Violation(f"{address} is in the log twice: at {self.places[address]} and {place}")
        if self.durable.get(place, address) != address:
            raise Violation(f"offset {place} held {self.durable[place]}, now {address}")
        self.durable[place] = address
        self.places[address] = place

    def killed(self, broker: BrokerProcess, power: bool) -> None:
        self._hands.clear()
        self._unsynced.clear()

    def recovered(self, broker: BrokerProcess) -> None:
        """The broker has started on what its disks kept."""
        core = broker.core
        self._wrap(broker)
        if "t.dlq" in core.topics:
            self.letters.recovered(core.topics["t.dlq"], broker.log("t.dlq"))
        topic = core.topics.get("t")
        if topic is None:
            return
        log = broker.log("t")
        firsts = log.stats().first_offsets
        if SINK not in topic.groups:
            # It rotted away with the only snapshot, and the sessions with it: who comes now begins anew, and may send
            # again what was dropped.
            self._begins = None
            for place, address in list(self.durable.items()):
                if place[1] < firsts[place[0]]:
                    del self.durable[place]
                    self.places.pop(address, None)
                    self.lost.add(address)
        gaps = [(g[0], g[1], g[2]) for g in topic.gaps]
        found: dict[tuple[int, int], Address] = {}
        for partition, part in enumerate(topic.partitions):
            chunk = log.read(partition, 0, part.next_offset)
            for record in chunk.records.tolist():
                found[partition, record[0]] = Address(record[1], record[2])
            for gap in chunk.gaps:
                gaps.append((gap.partition, gap.first, gap.last))
        for place, address in self.durable.items():
            if place in found:
                if found[place] != address:
                    raise Violation(f"after recovery offset {place} holds {found[place]}, not {address}")
            elif any(g[0] == place[0] and g[1] <= place[1] <= g[2] for g in gaps):
                self._gap("t", *place, place[1])
                self.places.pop(address, None)
            elif place[1] >= firsts[place[0]]:
                raise Violation(f"{address} was durable at {place}, and recovery lost it")
        self.durable = {p: a for p, a in self.durable.items() if a in self.places}
        for place, address in found.items():
            self._place(place, address)
        if self.world.profile.topic.fsync != "commit":
            for address in self.acked_:
                if address not in self.places:
                    self.lost.add(address)
        self._check_nothing_skipped(topic, firsts)

    def _check_nothing_skipped(self, topic: Topic, firsts: list[int]) -> None:
        """What is acked and neither stored nor dead must still be ahead of the sink's group."""
        group = topic.groups.get(SINK)
        for address in self._open():
            place = self.places.get(address)
            if place is None:
                raise Violation(f"{address} was acked, and is nowhere")
            if place[1] < firsts[place[0]]:
                raise Violation(f"{address} was acked, is not stored, and its segment is gone")
            if group is not None and _is_past(group, place):
                raise Violation(f"{address} at {place} was acked, is not stored, and the group is past it")

    def _open(self) -> list[Address]:
        """What is acked, and neither stored nor dead nor lost."""
        settled = self.world.store.rows.keys() | self.lost | self.letters.addresses
        return [a for a in self.acked_ - settled if not self._was_dropped(a)]

    def _check_dropped(self, topic: Topic) -> None:
        """What was dropped before the sink had it is counted, never silent; what was not dropped is not (R28)."""
        group = topic.groups.get(SINK)
        config, operator = topic.config, self.world.operator
        if (
            config.overflow == "stop"
            and config.fsync == "commit"
            and not (operator.rotten or operator.resets or operator.replays)
        ):
            # Nothing was dropped that a durable group had not had, and no disk has failed. A void is no loss.
            told = [(g.name, g.lost_messages) for g in topic.groups.values() if g.lost_messages and g.config.durable]
            if told:
                raise Violation(f"nothing was lost, and groups tell of a loss: {told}")
        if group is None:
            self._begins = None
        if group is None or topic.config.overflow != "drop-oldest":
            return
        self._begins = begins = self._begins or [gp.floor for gp in group.parts]
        settled = self.world.store.rows.keys() | self.lost | self.letters.addresses
        missed = [
            address
            for address in self.places.keys() - settled
            if self._was_dropped(address)
            and _is_past(group, self.places[address])
            and self.places[address][1] >= begins[self.places[address][0]]
        ]
        if len(missed) > group.lost_messages:
            raise Violation(
                f"the group never got {len(missed)} batches, and counts {group.lost_messages}: {missed[:3]}"
            )

    def _wrap(self, broker: BrokerProcess) -> None:
        delivering = broker.core.delivering
        settled = delivering.settled

        def checked(topic: Topic, group: Group, range_: Range, rejected: int, dead: int) -> None:
            self.settled(topic, group, range_)
            settled(topic, group, range_, rejected, dead)

        delivering.settled = checked  # type: ignore[method-assign]
        broker.core.burying.settled = checked

    # --- the core

    def turned(self, broker: BrokerProcess) -> None:
        self.turns += 1
        core, profile = broker.core, self.world.profile
        pool = core.state.pool
        floors = 2 * 4096 * max(1, pool.sessions)
        if pool.outstanding_bytes > profile.broker.ingress_pool_bytes + floors:
            raise Violation(f"{pool.outstanding_bytes} bytes of credit are out, of {pool.pool_bytes}")
        if self.turns % profile.check_every:
            return
        check_invariants(core)
        if "t" in core.topics:
            self._check_dropped(core.topics["t"])
        tail = undurable = 0
        for topic in core.topics.values():
            for part in topic.partitions:
                tail += part.tail_bytes
                keep = part.entries[max(0, part.durable_offset - part.base) :]
                undurable += sum(len(e[3] or b"") + ENTRY_OVERHEAD_BYTES for e in keep)
        if tail > 2 * profile.broker.tail_bytes + undurable + profile.tail_slack_bytes:
            raise Violation(f"the tail holds {tail} bytes, {undurable} not durable, of {profile.broker.tail_bytes}")
        for group in (g for t in core.topics.values() for g in t.groups.values()):
            if len(group.ready) + len(group.delayed) > 4 * len(group.ranges) + 200:
                raise Violation(f"group {group.name} queues {len(group.ready)} + {len(group.delayed)} dead entries")

    def settled(self, topic: Topic, group: Group, range_: Range) -> None:
        self.settlements += 1
        if topic.name != "t" or group.name != SINK:
            return
        for offset in range(range_.first, range_.last + 1):
            address = self.durable.get((range_.partition, offset))
            gone = any(g[0] == range_.partition and g[1] <= offset <= g[2] for g in topic.gaps)
            if address is not None and not gone and not self.safe(address):
                raise Violation(f"range {range_.id} is settled, and {address} at {offset} is neither stored nor dead")

    def sent(self, broker: BrokerProcess, connection: Connection, frames: Frames) -> None:
        h = protocol.unpack(frames[0])
        if h.type != Type.DELIVER:
            return
        self.deliveries += 1
        peer = broker.core.state.peers[connection.id]
        durable_group = peer.group.config.durable  # type: ignore[union-attr]
        if durable_group:
            bounds = (h.partition, h.b, h.c)
            if self._ranges.setdefault(h.a, bounds) != bounds:
                raise Violation(f"range {h.a} was {self._ranges[h.a]}, now {bounds}")
        given = self._given.setdefault(peer.group.name, set()) if durable_group else set()  # type: ignore[union-attr]
        for record in np.frombuffer(frames[1], dtype=RECORD).tolist():
            place = (h.partition, record[0])
            if self.durable.get(place) != Address(record[1], record[2]):
                raise Violation(
                    f"delivered {record[1]}/{record[2]} at {place}, durable there: {self.durable.get(place)}"
                )
            if not h.b <= record[0] <= h.c:
                raise Violation(f"record {record[0]} in range {h.b}-{h.c}")
            if place in given and not h.flags & Flag.MAYBE_REPEAT:
                raise Violation(f"{place} is given out again, and nobody says that it may be a repeat")
            if durable_group:
                given.add(place)

    # --- consumers

    def content(self, session: int, seq: int, rows: int, payload: bytes) -> None:
        expected, expected_rows = self.world.batch(session, seq)
        if payload != expected or rows != expected_rows:
            raise Violation(f"the content of {session}/{seq} changed")

    def ordered(self, delivery: Delivery) -> None:
        """A range of an ordered group comes after all before it are acked, in each generation of the group."""
        key = (delivery.group_generation, delivery.partition)
        next_ = self._ordered.setdefault(key, delivery.first)
        if delivery.first > next_ and any(
            p == delivery.partition and next_ <= o < delivery.first and a not in self.lost and not self._was_dropped(a)
            for (p, o), a in self.durable.items()
        ):
            raise Violation(f"ordered: {delivery} came before {next_} was acked")

    def ordered_acked(self, delivery: Delivery) -> None:
        key = (delivery.group_generation, delivery.partition)
        self._ordered[key] = max(self._ordered[key], delivery.last + 1)

    # --- the end

    def finished(self) -> str:
        """What is still open when everything should have drained; "" when nothing is."""
        world = self.world
        for producer in world.producers:
            if producer.conversation.pending:
                c = producer.conversation
                return (
                    f"producer {producer.session} is stuck with {len(c.pending)} batches: accepted {c.connected}, "
                    f"sent {c.sent_bytes} of {c.granted_bytes} granted, wants {c._wanted}, to send {len(c.to_send)}"
                )
        for address in self._open():
            if self.world.profile.topic.fsync != "commit" and address not in self.places:
                continue  # acked when it was written, and lost with the power before it was synced
            return f"{address} at {self.places.get(address)} is acked, and neither stored nor dead"
        topic = world.broker.core.topics.get("t")
        if topic is None:
            return ""
        for group in topic.groups.values():
            if not group.config.durable or not group.members:
                continue
            if group.ranges:
                r = next(iter(group.ranges.values()))
                return f"group {group.name} still has range {r.id} {r.first}-{r.last} in state {r.state}"
            for part, gp in zip(topic.partitions, group.parts, strict=True):
                if gp.sealed_next < part.next_offset:
                    return f"group {group.name} stands at {gp.sealed_next} of {part.next_offset}"
        pool = world.broker.core.state.pool
        ahead = sum(s.granted_bytes - s.received_bytes for s in world.broker.core.state.sessions.values())
        if pool.outstanding_bytes != ahead:
            return f"credit leaked: {pool.outstanding_bytes} out, {ahead} ahead"
        return ""


def _is_past(group: Group, place: tuple[int, int]) -> bool:
    """Whether the group will not be given this offset any more."""
    gp = group.parts[place[0]]
    return place[1] < gp.sealed_next and not any(r.first <= place[1] <= r.last for r in gp.outstanding.values())

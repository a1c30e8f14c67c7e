"""One delivery at the store: the real machine of doubts, in whichever process holds the delivery."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from consumers.doubt import (
    Abandoned,
    Ask,
    BlockInsert,
    Connected,
    Event,
    Fence,
    Finished,
    Insert,
    LeaseOver,
    Reconnect,
)
from consumers.merge import Address
from consumers.ranges import RangeAddress
from tests.simulation.clockwork import Violation
from zmqbroker.client.consuming import Delivery
from zmqbroker.protocol import WorkState

if TYPE_CHECKING:
    from tests.simulation.stage import Stage


class StoringProcess(Protocol):
    """A collector, as its jobs see it."""

    name: str
    boot: str
    """Of the store, when this process last connected to it."""

    @property
    def world(self) -> Stage: ...

    def alive(self, what: Callable[[], None]) -> None:
        """Do it unless the process is dead; later, if it stands still."""

    def holds(self, delivery: Delivery) -> bool:
        """Whether the lease lasts, as ``consumers.source`` asks it."""

    def working(self, delivery: Delivery, state: WorkState) -> None: ...

    def settle(self, delivery: Delivery, dead_offsets: list[int]) -> None: ...

    def give_back(self, delivery: Delivery, reason: str, failure: bool) -> None: ...


class Job:
    """One range at the store: actions of the machine become calls of the model, answers become events."""

    def __init__(
        self,
        collector: StoringProcess,
        delivery: Delivery,
        expected: dict[Address, int],
        offsets: dict[Address, int],
    ) -> None:
        self.collector = collector
        self.delivery = delivery
        self.expected = expected
        self.offsets = offsets
        self.address = RangeAddress.of(delivery)
        self.decision = BlockInsert(expected, boot_id=collector.boot, doubtful=delivery.maybe_repeat)
        self._asked = 0

    def go(self, action: object) -> None:
        collector, store = self.collector, self.collector.world.store
        match action:
            case Finished(dead):
                collector.settle(self.delivery, [self.offsets[a] for a in dead])
            case Abandoned(reason, failure, alarm):
                if alarm:
                    raise Violation(f"alarm of collector {collector.name}: {reason} ({self.delivery})")
                collector.give_back(self.delivery, reason, failure)
            case Insert(addresses, part):
                collector.working(self.delivery, WorkState.INSERTING)
                if not collector.holds(self.delivery):
                    self.go(self.decision.handle(LeaseOver()))
                    return
                token = self.address.token("day", collector.boot, addresses if part else None)
                collector.world.queries += 1
                query_id = (
                    f"{self.address.query_prefix}{self.address.first}-{self.address.last}/day/{collector.world.queries}"
                )
                store.insert(token, query_id, {a: self.expected[a] for a in addresses}, collector.boot, self._reply())
            case Ask(addresses):
                store.count(addresses, collector.boot, self._reply())
            case Fence():
                store.fence(self.address.overlapping, collector.boot, self._reply())
            case Reconnect():
                collector.working(self.delivery, WorkState.WAITING)
                store.connect(self._reply())

    def _reply(self) -> Callable[[Event], None]:
        self._asked += 1
        asked = self._asked

        def reply(event: Event) -> None:
            if asked == self._asked:  # an answer after the connection was given up reaches nobody
                self._asked += 1
                self.collector.alive(lambda: self._handle(event))

        return reply

    def _handle(self, event: Event) -> None:
        if isinstance(event, Connected):
            self.collector.boot = event.boot_id
        self.go(self.decision.handle(event))

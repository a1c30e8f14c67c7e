"""What must be true of dead letters: written once an origin, there until their batch is stored after all (R26)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from consumers.merge import Address
from tests.simulation.clockwork import Violation
from zmqbroker.core.state import open_envelope

if TYPE_CHECKING:
    from tests.simulation.checks import Checks
    from zmqbroker.core.topic import Topic
    from zmqbroker.storage.log import DiskLog


class Letter(NamedTuple):
    address: Address
    origin: tuple
    """(log, partition, offset, group)."""


class LetterChecks:
    """The letters of topic ``t``. ``group``: whose letters stand for rows that the store lacks."""

    def __init__(self, checks: Checks, group: str) -> None:
        self._checks = checks
        self._group = group
        self.there: dict[int, Letter] = {}
        """Durable letters by their offset."""
        self._origins: set[tuple] = set()

    @property
    def addresses(self) -> set[Address]:
        return {letter.address for letter in self.there.values() if letter.origin[3] == self._group}

    def durable(self, offset: int, payload: bytes) -> None:
        origin, _ = open_envelope(payload)
        key = (origin["log"], origin["partition"], origin["offset"], origin["group"])
        if key in self._origins:
            raise Violation(f"dead letter written twice: {key}")
        self._origins.add(key)
        self.there[offset] = Letter(Address(int(str(origin["session"])), int(str(origin["seq"]))), key)

    def gone(self, first: int, last: int) -> None:
        """A gap says that these letters are no more: they were stored after all, or the disk has lost them."""
        for offset in [o for o in self.there if first <= o <= last]:
            letter = self.there.pop(offset)
            if letter.origin[3] != self._group or letter.address in self._checks.world.store.rows:
                continue
            if ("t.dlq", 0, offset) not in self._checks.rotten:
                raise Violation(f"the letter of {letter.address} is gone, and its batch is not stored")
            self._checks.lost.add(letter.address)

    def recovered(self, topic: Topic, log: DiskLog) -> None:
        """What was durable is there; what the disk kept beyond it counts, too."""
        chunk = log.read(0, 0, topic.partitions[0].next_offset)
        before, self.there, self._origins, at = self.there, {}, set(), 0
        for offset, length in zip(chunk.records["offset"].tolist(), chunk.records["length"].tolist(), strict=True):
            self.durable(offset, bytes(chunk.body[at : at + length]))
            at += length
        for offset in [o for o in before if o not in self.there]:
            if not any(g[1] <= offset <= g[2] for g in (*topic.gaps, *((0, x.first, x.last) for x in chunk.gaps))):
                raise Violation(f"recovery lost the letter of {before[offset].address} without a gap")
            self.there[offset] = before[offset]
            self.gone(offset, offset)

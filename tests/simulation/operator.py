"""What an operator does to a running broker, and what a disk does to bytes that nobody touches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.simulation.checks import SINK
from zmqbroker.admin.handlers_change import cuts, settled_spans
from zmqbroker.admin.handlers_dead import letters_of
from zmqbroker.admin.places import positions
from zmqbroker.core.broker import Core
from zmqbroker.storage.interface import KIND_DATA
from zmqbroker.storage.record import stored_bytes
from zmqbroker.storage.recovery import Scan, scan
from zmqbroker.storage.segment import PAGE_BYTES, SegmentHead

if TYPE_CHECKING:
    from tests.simulation.world import World

_HEAD_COPY_BYTES = 2048
"""A segment's head stands there twice: one copy may rot."""


class Operator:
    """Works on topic ``t`` and its dead letters, through the doors that the admin socket uses."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.rotten = self.redriven = self.resets = self.replays = 0

    @property
    def _may_act(self) -> bool:
        broker = self.world.broker
        return broker.up and not broker.paused and "t" in broker.core.topics

    # --- commands

    def redrive(self) -> None:
        """Repair what the store refused, or think so, and give dead letters back to their groups (R26)."""
        broker, chance = self.world.broker, self.world.chance
        if not self._may_act or "t.dlq" not in broker.core.topics:
            return
        for letter in [x for x in letters_of(broker.log("t.dlq")) if chance(0.7)]:
            origin = letter.origin
            if chance(0.8):
                self.world.cure(int(origin["session"]), int(origin["seq"]))

            def give_back(core: Core, letter=letter, origin=origin) -> int | None:  # type: ignore[no-untyped-def]
                topic = core.topics["t"]
                group = topic.groups.get(origin["group"])
                if group is None or topic.stopped:
                    return None
                return core.operating.redrive(
                    topic, group, letter.offset, origin["partition"], origin["offset"], origin["rows"],
                    len(letter.payload),
                )  # fmt: skip

            self.redriven += broker.call(give_back) is not None

    def reset_group(self) -> None:
        """Set a group back to an offset, a time or the beginning (R27). Never forward: that would skip on purpose."""
        broker, rng = self.world.broker, self.world.clock.rng
        if not self._may_act:
            return
        name = rng.choice([SINK, "ordered"])
        when = rng.choice(["earliest", str(rng.randrange(200)), f"time:{self.world.wall_ms() - rng.randrange(30_000)}"])
        places = positions(broker.log("t"), when, lambda: self.world.wall_ms() / 1000)

        def reset(core: Core) -> bool:
            topic = core.topics["t"]
            group = topic.groups.get(name)
            if group is None or topic.stopped:
                return False
            ends = [min(at, gp.floor) for at, gp in zip(places, group.parts, strict=True)]
            core.operating.reset_group(topic, group, ends)
            return True

        self.resets += broker.call(reset)

    def replay(self) -> None:
        """Have what a group was given lately delivered to it once more, as a collector does after the store (R16)."""
        broker, rng = self.world.broker, self.world.clock.rng
        if not self._may_act:
            return
        log, name = broker.log("t"), rng.choice([SINK, "ordered"])
        since = f"time:{self.world.wall_ms() - rng.randrange(30_000)}"
        starts, ends = (positions(log, at, lambda: self.world.wall_ms() / 1000) for at in (since, "latest"))
        rows_max = rng.choice([20, 5000])

        def again(core: Core) -> bool:
            topic = core.topics["t"]
            group = topic.groups.get(name)
            if group is None or topic.stopped:
                return False
            config, settled = settled_spans(group)
            ranges = cuts(log, settled, starts, ends, min(config.max_rows, rows_max), config.max_bytes)
            return bool(core.operating.replay(topic, group, ranges))

        self.replays += broker.call(again)

    # --- the disk

    def rot(self) -> None:
        """One durable bit turns over: in a sealed segment anywhere, in the active one below what it tells as synced.

        Above that the end of a log cannot be told from a torn write (:mod:`zmqbroker.storage.recovery`).
        """
        broker, rng = self.world.broker, self.world.clock.rng
        if not self._may_act:
            return
        topic = rng.choice(list(broker.disks))
        disk, active = broker.disks[topic], broker.log(topic).active_path
        path = rng.choice([p for p in disk.paths() if p.endswith(".log") and p <= active])
        data = disk.platter(path)
        head = SegmentHead.decode(data[:PAGE_BYTES], path)
        if head is None:
            return
        found = scan(data, head.seed, sealed=path < active)
        end = len(data) if path < active else int(found.headers["synced_upto"].max(initial=0))
        if end <= PAGE_BYTES:
            return
        position = rng.randrange(end)
        if _HEAD_COPY_BYTES <= position < PAGE_BYTES:
            return
        for partition, offset in _records_at(found, position):
            self.world.checks.rotten.add((topic, partition, offset))
        # What was just written is read out of memory, where nothing rots.
        disk.flip_bit(path, position, rng.randrange(8), cached=path < active and rng.random() < 0.5)
        self.rotten += 1


def _records_at(found: Scan, position: int) -> list[tuple[int, int]]:
    """(partition, offset) of the data record that lies over a position of its file."""
    headers = found.headers[found.headers["kind"] == KIND_DATA]
    return [
        (int(h["partition"]), int(h["offset"]))
        for h in headers
        if int(h["position"]) <= position < int(h["position"]) + stored_bytes(int(h["length"]))
    ]

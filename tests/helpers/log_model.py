"""What a log must do, in terms simple enough to be obviously right, driven against a real log on a simulated disk.

The model keeps the stream of everything committed, and how much of it is known to be synced. After any crash, what the
log recovers must be a prefix of that stream which is no shorter than the synced part: nothing synced is lost, nothing is
invented, and no offset ever changes content (R9, R10).
"""

from __future__ import annotations

import random

from tests.helpers.log_data import SESSION, control, data, payload_for, spoiled
from tests.simulation.disk import SimulatedDisk
from zmqbroker.errors import DiskFull, LogStopped
from zmqbroker.storage.interface import Append, Recovered
from zmqbroker.storage.log import DiskLog
from zmqbroker.storage.spare import Inline

PARTITIONS = 3
Item = tuple[str, int, int, int]
"""("data" | "void", partition, offset, size), or ("control", 0, number, size)."""


class LogModel:
    def __init__(self, seed: int, *, segment_bytes: int = 24 << 10, survival: float = 0.5) -> None:
        self.chance = random.Random(seed)
        self.disk = SimulatedDisk(seed + 1, survival=survival)
        self.segment_bytes = segment_bytes
        self.stream: list[Item] = []
        self.synced = 0
        """Length of the part of ``stream`` that a sync confirmed."""
        self.next_offsets = [0] * PARTITIONS
        self.controls = 0
        self.dropped_below = [0] * PARTITIONS
        self.log = self._open()
        assert self.recovered.clean

    def _open(self) -> DiskLog:
        log = DiskLog(
            "log",
            PARTITIONS,
            filesystem=self.disk,
            segment_bytes=self.segment_bytes,
            index_cache_bytes=4096,
            random=self.disk.chance.randbytes,
            clock=lambda: 0.0,
            helper=Inline(),
        )
        self.recovered: Recovered = log.recover()
        self.entries = list(self.recovered.entries)
        return log

    # -- actions

    def commit(self, sizes: list[int], *, sync: bool) -> None:
        appends: list[Append] = []
        items: list[Item] = []
        offsets = list(self.next_offsets)
        controls = self.controls
        for size in sizes:
            draw = self.chance.random()
            if draw < 0.2:
                appends.append(control(payload_for(9, controls, size)))
                items.append(("control", 0, controls, size))
                controls += 1
                continue
            partition = self.chance.randrange(PARTITIONS)
            offset = offsets[partition]
            offsets[partition] += 1
            if draw < 0.25:
                appends.append(spoiled(partition, offset, b"?" * size))
                items.append(("void", partition, offset, 0))
            else:
                appends.append(data(partition, offset, payload_for(partition, offset, size)))
                items.append(("data", partition, offset, size))
        # The snapshot tells how many control entries it stands for: what recovery must return from there on.
        snapshot = b"%d" % self.controls if self.log.wants_roll or self.chance.random() < 0.05 else None
        try:
            done = self.log.commit(appends, sync=sync, roll_snapshot=snapshot)
        except DiskFull:
            return
        if done.rolled:
            self.synced = len(self.stream)
        assert len(done.bad) == sum(item[0] == "void" for item in items)
        self.stream += items
        self.next_offsets, self.controls = offsets, controls
        if sync:
            self.synced = len(self.stream)

    def sync(self) -> None:
        self.log.sync()
        self.synced = len(self.stream)

    def drop(self) -> None:
        """Let go of what lies below a random floor."""
        self.log.drop_before([self.chance.randint(0, n) for n in self.next_offsets], 1 << 60)
        self.dropped_below = self.log.stats().first_offsets

    def fail_sync(self) -> None:
        """An fsync error stops the log for good; only a new start helps (R11)."""
        self.stream.append(("control", 0, self.controls, 5))
        self.disk.fail_sync(self.log.active_path)
        try:
            self.log.commit([control(payload_for(9, self.controls, 5))])
        except LogStopped:
            pass
        else:
            raise AssertionError("a failed fsync was not noticed")
        self.controls += 1
        try:
            self.log.sync()
        except LogStopped:
            pass
        else:
            raise AssertionError("a failed fsync was retried")

    def close_and_reopen(self) -> None:
        self.log.close(b"%d" % self.controls)
        self.disk.kill()
        self.synced = len(self.stream)
        self.log = self._open()
        assert self.recovered.clean
        self.check_recovered()

    def crash(self, *, power: bool) -> None:
        if power:
            self.disk.lose_power()
        else:
            self.disk.kill()
        self.log = self._open()
        assert not self.recovered.clean
        self.check_recovered()

    # -- checks

    def check_recovered(self) -> None:
        """What was recovered is the synced stream and perhaps the first of the rest; go on from there."""
        assert self.recovered.gaps == []
        assert not self.recovered.journal_damaged
        base = int(self.recovered.snapshot or b"0")
        controls = [entry[1] for entry in self.entries if entry[0] == "control"]
        total = base + len(controls)
        assert controls == [payload_for(9, n, len(found)) for n, found in enumerate(controls, base)]
        length = self._prefix_length(total)
        assert length >= self.synced, f"{self.synced - length} synced items are lost"
        self.stream = self.stream[:length]
        self.synced = length
        self.controls = total
        self.next_offsets = list(self.recovered.next_offsets)
        self.check_readable()

    def _prefix_length(self, controls: int) -> int:
        """The prefix of the stream that has these next offsets and this many control entries."""
        seen, offsets = 0, [0] * PARTITIONS
        wanted = list(self.recovered.next_offsets)
        found = 0 if (seen, offsets) == (controls, wanted) else None
        for i, (kind, partition, number, _) in enumerate(self.stream, 1):
            if kind == "control":
                seen = number + 1
            else:
                offsets[partition] = number + 1
            if (seen, offsets) == (controls, wanted):
                found = i
        assert found is not None, f"recovered {controls} controls and {wanted}: no prefix of what was written"
        return found

    def check_readable(self) -> None:
        """Exactly the synced data records that were not dropped can be read, byte for byte."""
        floors = self.log.stats().first_offsets
        for partition in range(PARTITIONS):
            wanted = [
                (n, size)
                for kind, p, n, size in self.stream[: self.synced]
                if kind == "data" and p == partition and n >= max(floors[p], 0)
            ]
            chunk = self.log.read(partition, 0, 1 << 62)
            assert chunk.gaps == ()
            found = list(zip(chunk.records["offset"].tolist(), chunk.records["length"].tolist(), strict=True))
            assert found == wanted
            assert chunk.body == b"".join(payload_for(partition, n, size) for n, size in wanted)
            assert set(chunk.records["session"].tolist()) <= {SESSION}

"""Playing a simulated fleet to the broker."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from producers.batcher import Batcher, batch_parts
from producers.columns import Columns
from producers.fleet import Fleet
from producers.identities import Identities
from producers.run import Run
from producers.task import FleetTask, Position, WorkerSettings


class FleetRun(Run):
    """One worker's part of a fleet. Rows go GPU by GPU, so that a batch holds few devices and all of their metrics."""

    def __init__(
        self,
        task: FleetTask,
        settings: WorkerSettings,
        producer: Any,
        *,
        stopping: threading.Event,
        report: Callable[[Run], None],
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        super().__init__(task.lane, task.start, settings, producer, stopping=stopping, report=report, clock_ns=clock_ns)
        self.task = task
        self._fleet = Fleet(task.spec)
        identities = Identities()
        metrics = np.array([identities.metric(name) for name in task.spec.metrics], dtype=np.int32)
        devices = np.array([identities.device(device) for device in self._fleet.devices()], dtype=np.int32)
        self._batcher = Batcher(identities, settings.compression, clock_ns)
        self._metric = np.tile(metrics, len(devices))
        self._device = np.repeat(devices, len(metrics))
        self._seq = task.start.seq

    def run(self) -> bool:
        """Publish tick after tick; True when all ticks were published."""
        task = self.task
        interval_ns = int(task.spec.interval_s * 1e9)
        number = task.start.pass_number
        while not task.ticks or number < task.ticks:
            due_ns = task.began_ns + number * interval_ns
            if not task.fast:
                late = (self._clock_ns() - due_ns) // interval_ns if interval_ns else 0
                if late > 1:
                    # The broker was away or the machine too slow: a live source does not play the past.
                    number += late
                    due_ns = task.began_ns + number * interval_ns
                if not self._wait_until(due_ns):
                    return False
            values = self._fleet.tick().T.ravel()
            time_ns = due_ns if task.fast else self._clock_ns()
            if not self._publish(values, time_ns, number):
                return False
            number += 1
            self.passes += 1
        return True

    def _publish(self, values: np.ndarray, time_ns: int, number: int) -> bool:
        for start, end in batch_parts(len(values), self.task.batch_rows):
            rows = end - start
            self.rows_read += rows
            if not self._wait_for_tokens(rows):
                return False
            columns = Columns(self._device[start:end], self._metric[start:end], values[start:end], None)
            times = np.full(rows, time_ns, dtype=np.int64)
            self._seq += 1
            pack = partial(self._batcher.pack, columns, times)
            if not self.publisher.publish(pack, rows, Position(number, 0, 0, self._seq), self._stopping):
                return False
            self._report(self)
        return True

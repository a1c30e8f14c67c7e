"""What is done to whom. A fault ends by itself: what was killed is started again, what was stopped goes on."""

from __future__ import annotations

import random
import time
from typing import NamedTuple

from tests.chaos.pipeline import Pipeline


class Fault(NamedTuple):
    """``kind``: kill, restart (SIGTERM), pause (SIGSTOP), fill (its disk). ``seconds``: how long it stays so."""

    kind: str
    whom: str
    seconds: float
    then_s: float
    """Quiet time afterwards."""

    def __str__(self) -> str:
        return f"{self.kind} {self.whom} for {self.seconds:.2f} s, then {self.then_s:.2f} s of quiet"


def draw(rng: random.Random, names: list[str], disks: list[str]) -> Fault:
    """One fault; kills are most, and now and then one comes right after another. ``disks``: whose can be filled."""
    if disks and rng.random() < 0.1:
        return Fault("fill", rng.choice(disks), rng.choice((1.0, 3.0)), 1.0)
    kind = rng.choices(("kill", "pause", "restart"), (6, 3, 1))[0]
    seconds = rng.choice((0.0, 0.2, 1.0)) if kind != "pause" else rng.choice((0.3, 1.5, 4.0))
    return Fault(kind, rng.choice(names), seconds, rng.choice((0.0, 0.3, 1.0, 2.0)))


def strike(pipeline: Pipeline, fault: Fault) -> None:
    """Do it and undo it. The feeder, once it has come to its end, is left in peace."""
    program = next(p for p in pipeline.programs if p.name == fault.whom)
    if program is pipeline.feeder and not program.running and program.popen is not None and program.popen.poll() == 0:
        return
    match fault.kind:
        case "kill":
            program.kill()
            time.sleep(fault.seconds)
            program.start()
        case "pause":
            program.pause()
            time.sleep(fault.seconds)
            program.go_on()
        case "fill":
            pipeline.disks[fault.whom].fill()
            time.sleep(fault.seconds)
            pipeline.disks[fault.whom].empty()
            # Whoever is just starting may say that it cannot, with no byte left; whatever supervises it tries again.
            if not program.running and "space" in program.tail():
                program.start()
        case "restart":
            began = program.said_anything
            code = program.terminate()
            assert code == 0 or not began, f"{program.name} ended with {code} after SIGTERM:\n{program.tail()}"
            time.sleep(fault.seconds)
            program.start()
    time.sleep(fault.then_s)
    revive(pipeline)


def revive(pipeline: Pipeline) -> None:
    """What ended because a neighbour was away would be a defect: say so. The feeder may have come to its end."""
    for program in pipeline.programs:
        if not program.running and program is not pipeline.feeder:
            raise AssertionError(f"{program.name} ended by itself:\n{program.tail()}")

"""Play random histories: ``python -m tests.simulation --seeds 200`` or one again: ``--seed 17``."""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import sys
import time
import traceback

from tests.simulation.clockwork import Violation
from tests.simulation.direct import DirectWorld
from tests.simulation.world import World


def play(job: tuple[int, int, bool]) -> tuple[int, str, int, int, int]:
    """(seed, what broke or "", steps, batches acked, deliveries)."""
    seed, steps, direct = job
    logging.disable(logging.CRITICAL)
    try:
        world = DirectWorld(seed) if direct else World(seed)
        world.run(steps)
    except Violation as e:
        cause = "".join(traceback.format_exception(e.__cause__)[-6:]) if e.__cause__ is not None else ""
        return seed, f"{e}\n{cause}", 0, 0, 0
    return seed, "", world.clock.steps, len(world.checks.acked_), world.checks.deliveries


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=20, help="how many histories (20)")
    parser.add_argument("--first", type=int, default=1, help="the first seed (1)")
    parser.add_argument("--seed", type=int, help="one history alone")
    parser.add_argument("--steps", type=int, default=5000, help="events of each before it drains (5000)")
    parser.add_argument("--direct", action="store_true", help="the world without a broker")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (one a core)")
    parser.add_argument("--max-failures", type=int, default=5, help="stop after so many (5)")
    parser.add_argument("--verbose", action="store_true", help="a line a history")
    options = parser.parse_args(argv)
    seeds = [options.seed] if options.seed is not None else range(options.first, options.first + options.seeds)
    started_s = time.monotonic()
    done = failed = steps = acked = deliveries = 0
    jobs = [(seed, options.steps, options.direct) for seed in seeds]
    with multiprocessing.Pool(min(options.workers, len(jobs))) as pool:
        for seed, broken, took, batches, sent in pool.imap_unordered(play, jobs):
            done += 1
            steps += took
            acked += batches
            deliveries += sent
            if options.verbose:
                print(f"seed {seed}: {took} events, {batches} batches acked, {sent} deliveries", flush=True)
            if broken:
                failed += 1
                print(f"seed {seed}: {broken}", flush=True)
                if failed >= options.max_failures:
                    pool.terminate()
                    break
    print(
        f"{done} histories, {failed} broken; {steps} events, {acked} batches acked, {deliveries} deliveries, "
        f"{time.monotonic() - started_s:.1f} s"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

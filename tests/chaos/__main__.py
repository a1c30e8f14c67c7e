"""``python -m tests.chaos``: the long form. Environment: SEED, FAULTS=200, ROWS=1000000, RATE=50000, COLLECTORS=2.
``FILL=store`` fills only the disk of the store (default: ``broker,store``). BROKERLESS=1: without a broker.

Ends with 0 where every row is accounted for; else it prints the seed and where the logs are, and ends with 1.
"""

from __future__ import annotations

import os
import secrets
import shutil
import sys
import tempfile
from pathlib import Path

from tests.chaos.scenario import at_random, one_after_the_other


def main() -> int:
    environ = os.environ
    seed = int(environ.get("SEED") or secrets.randbits(32))
    faults = int(environ.get("FAULTS") or 200)
    rows = int(environ.get("ROWS") or 1_000_000)
    rate = float(environ.get("RATE") or 50_000)
    collectors = int(environ.get("COLLECTORS") or 2)
    brokerless = bool(environ.get("BROKERLESS"))
    directory = Path(tempfile.mkdtemp(prefix="chaos-"))
    print(
        f"SEED={seed} FAULTS={faults} ROWS={rows} RATE={rate:g} COLLECTORS={collectors}; data and logs: {directory}",
        flush=True,
    )
    try:
        for name, run in (
            ("one after the other", lambda d: one_after_the_other(d, rows, rate=max(rate, rows / 20), say=say)),
            (
                "at random",
                lambda d: at_random(
                    d, rows, faults, seed, rate=rate, collectors=collectors, brokerless=brokerless, say=say
                ),
            ),
        )[brokerless:]:
            print(f"== {name}", flush=True)
            findings = run(directory / name.replace(" ", "-"))
            print(findings, flush=True)
            if findings.wrong:
                print(f"FAILED; again with: SEED={seed} FAULTS={faults} ROWS={rows}; logs: {directory}", flush=True)
                return 1
    except BaseException as e:
        print(f"FAILED: {e}\nagain with: SEED={seed} FAULTS={faults} ROWS={rows}; logs: {directory}", flush=True)
        if not isinstance(e, Exception):
            raise
        return 1
    shutil.rmtree(directory)
    return 0


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())

"""A file of rows into the real store while streamers and broker are killed: each row is stored exactly once (R8)."""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import signal
from pathlib import Path

import psutil
import pytest

from clickhouse.errors import StoreError
from tests.chaos.pipeline import Pipeline, Program
from tests.helpers.waiting import eventually

ROWS = int(os.environ.get("RESUME_ROWS") or 60_000)
KILLS = int(os.environ.get("RESUME_KILLS") or 5)
VICTIMS = ("streamer", "worker", "broker")
CALM_S = 90.0


def write_file(path: Path, rows: int) -> None:
    """Each row has a value of its own, so that a row that is missing or there twice shows."""
    with path.open("w") as out:
        out.write("timestamp,metric_name,gpu_id,uuid,Hostname,value\n")
        for i in range(rows):
            out.write(f"2025-07-18T20:42:34Z,DCGM_FI_DEV_FB_USED,{i % 8},GPU-{i % 248},host-{i % 31},{i}\n")


def kill_one_worker(streamer: Program, rng: random.Random) -> None:
    """One of its worker processes, not the supervisor that starts it again; none where none lives at the moment."""
    assert streamer.popen is not None
    workers = []
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(streamer.popen.pid).children():
            with contextlib.suppress(psutil.Error):
                # One that was killed a moment ago is a zombie, and tells nothing.
                if "spawn_main" in " ".join(child.cmdline()):
                    workers.append(child)
    if workers:
        with contextlib.suppress(psutil.Error):
            rng.choice(workers).send_signal(signal.SIGKILL)


@pytest.mark.timeout(400)
def test_r08_every_row_of_a_resumed_file_is_stored_once_whoever_is_killed(tmp_path: Path) -> None:
    """Longer: ``SEED=… RESUME_ROWS=2000000 RESUME_KILLS=60``."""
    seed = int(os.environ.get("SEED") or secrets.randbits(32))
    print(f"SEED={seed}")
    rng = random.Random(seed)
    path = tmp_path / "a.csv"
    write_file(path, ROWS)
    with Pipeline(tmp_path / "run", rows=0, collectors=1) as pipeline:
        streamer = Program(
            "streamer",
            "producers.cli",
            ["csv", str(path), "--resume", "--workers", "2", "--batch-rows", "200", "--rate", str(ROWS / 8),
             "--connect", pipeline.broker_url, "--state-dir", str(tmp_path / "state"), "--http", "off"],
            pipeline.logs,
        )  # fmt: skip
        everything = [pipeline.store, pipeline.broker, *pipeline.collectors, pipeline.rollup, streamer]
        try:
            for program in everything:
                program.start()
            with pipeline.open_store() as store:

                def stored() -> int:
                    try:
                        return int(store.query("SELECT count() FROM telemetry.samples")[0][0])
                    except StoreError:
                        return -1  # not up yet

                victims = rng.sample(VICTIMS, len(VICTIMS)) + rng.choices(VICTIMS, k=max(0, KILLS - len(VICTIMS)))
                for number, victim in enumerate(victims, 1):
                    wanted = ROWS * number // (len(victims) + 2)
                    eventually(lambda: stored() >= wanted, CALM_S, f"{wanted} rows stored, SEED={seed}")  # noqa: B023
                    print(f"[{number}/{len(victims)}] kill -9 {victim} after {wanted} rows")
                    if victim == "worker":
                        kill_one_worker(streamer, rng)
                        continue
                    program = streamer if victim == "streamer" else pipeline.broker
                    program.kill()
                    program.start()
                assert streamer.popen is not None
                assert streamer.popen.wait(CALM_S) == 0, f"SEED={seed}\n{streamer.tail()}"
                pipeline.wait_until_drained(CALM_S)
                rows, values, last = store.query("SELECT count(), uniqExact(value), max(value) FROM telemetry.samples")[
                    0
                ]
        finally:
            streamer.kill()
    assert (int(rows), int(values), int(last)) == (ROWS, ROWS, ROWS - 1), f"SEED={seed}"

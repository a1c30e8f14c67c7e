"""Resumed runs (R8): after any end, a file continues without gap or repeat.

The plan of a run is written down before anything is sent: blocks, batches, times. So a batch made again is the same
batch, and it goes out under the same (session, seq): session = hash(file identity, mapping, pass, shard, lane), seq
counts the lane's batches. What is kept a session is the position of the first batch not known to be durable; it may
lag behind the truth (a kill between ack and write), never run ahead of it, and the broker knows what comes twice.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from producers.source import Source
from producers.task import Position
from telemetry.options import UsageError

VERSION: Final = 1
_ENDS_BYTES: Final = 64 << 10


@dataclass(slots=True)
class LaneState:
    """One session of a run."""

    session: int
    first: int
    last: int
    position: Position
    done: bool = False


class RunState:
    """The written plan and progress of one pass over one file (of one shard of it). Held by one process at a time."""

    def __init__(self, path: Path, plan: dict[str, Any], lanes: list[LaneState], lock_fd: int) -> None:
        self.path = path
        self.plan = plan
        self.lanes = lanes
        self._lock_fd = lock_fd

    @property
    def done(self) -> bool:
        return all(lane.done for lane in self.lanes)

    def save(self) -> None:
        """Write atomically: whole and new, or as it was."""
        state = self.plan | {
            "lanes": [
                {
                    "session": f"{lane.session:016x}",
                    "first": lane.first,
                    "last": lane.last,
                    "position": list(lane.position),
                    "done": lane.done,
                }
                for lane in self.lanes
            ]
        }
        part = self.path.with_suffix(".part")
        with part.open("w", encoding="utf-8") as out:
            json.dump(state, out, indent=1)
            out.flush()
            os.fsync(out.fileno())
        os.replace(part, self.path)

    def close(self) -> None:
        """Let another process have it."""
        os.close(self._lock_fd)


def open_run(
    folder: Path, source: Source, *, pass_name: str, shard: tuple[int, int], make_plan: Callable[[], dict[str, Any]]
) -> RunState:
    """The run over ``source`` that began earlier, or a new one by ``make_plan``: its numbers, and ``spans``, the blocks
    of each lane.

    Raises :class:`UsageError` where another process is at it, the file has changed since, or the state is damaged.
    """
    key = _key(source, pass_name, shard)
    lock_fd = hold(folder / f"{key}.lock", source.path)
    path = folder / f"{key}.json"
    try:
        if path.exists():
            return _read(path, lock_fd)
        _refuse_changed(folder, source, pass_name, shard)
        plan = make_plan()
        spans = plan.pop("spans")
        lanes = [
            LaneState(_session(key, number), first, last, Position(0, first))
            for number, (first, last) in enumerate(spans)
        ]
        head = {"version": VERSION, "file": os.path.abspath(source.path), "pass": pass_name, "shard": list(shard)}
        run = RunState(path, head | plan, lanes, lock_fd)
        run.save()
        return run
    except BaseException:
        os.close(lock_fd)
        raise


def hold(lock: Path, source: str) -> int:
    """Keep other processes from what ``lock`` stands for until the descriptor is closed. Raises :class:`UsageError`."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise UsageError(f"{source}: another streamer is resuming this file; wait for it or stop it") from None
    return fd


def _read(path: Path, lock_fd: int) -> RunState:
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        if state["version"] != VERSION:
            raise UsageError(f"{path}: written by another version; finish the run with that one, or remove the file")
        lanes = [
            LaneState(int(lane["session"], 16), lane["first"], lane["last"], Position(*lane["position"]), lane["done"])
            for lane in state.pop("lanes")
        ]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UsageError(f"{path}: the state of the run cannot be read ({e}); remove it to begin anew") from None
    return RunState(path, state, lanes, lock_fd)


def _refuse_changed(folder: Path, source: Source, pass_name: str, shard: tuple[int, int]) -> None:
    """A file that changed after its run began is another file: sending it whole would repeat what it shares."""
    for path in folder.glob("*.json"):
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            same = (state["file"], state["pass"], tuple(state["shard"])) == (
                os.path.abspath(source.path),
                pass_name,
                shard,
            )
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if same:
            raise UsageError(
                f"{source.path}: the file or its mapping has changed since --resume began with it; "
                f"name a new pass (--pass NAME) to send it whole, or remove {path}"
            )


def _key(source: Source, pass_name: str, shard: tuple[int, int]) -> str:
    """What makes a run this run. A file is known by size, time of change and both ends, wherever it is mounted."""
    digest = hashlib.blake2b(digest_size=16)
    _, _, size, modified_ns = source.identity
    digest.update(json.dumps([size, modified_ns, pass_name, list(shard)]).encode())
    digest.update(source.mapping.digest)
    with open(source.path, "rb") as f:
        digest.update(f.read(_ENDS_BYTES))
        f.seek(max(0, size - _ENDS_BYTES))
        digest.update(f.read(_ENDS_BYTES))
    return digest.hexdigest()


def _session(key: str, lane: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{key}/{lane}".encode(), digest_size=8).digest(), "little") or 1

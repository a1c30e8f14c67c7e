"""How far a followed file is: what must be known to go on with it without gap or repeat (R8).

A growing file has no size to know it by, and its name passes to another file when it is rotated. It is known by its
inode and its first bytes. Where a piece ends depends on what had been written by then, so the end is kept before any of
the piece is published: whoever goes on cuts just the same, and what comes twice has the same address.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final, NamedTuple

from telemetry.options import UsageError

HEAD_BYTES: Final = 4096
VERSION: Final = 1


class Mark(NamedTuple):
    """Which file it is, whatever its name is by now and however long it has become."""

    inode: int
    sample_bytes: int
    """How many of its first bytes told what its columns mean: more of them may tell something else."""
    head: str
    """Digest of the first of these bytes."""

    @classmethod
    def of(cls, fd: int, sample_bytes: int) -> Mark:
        """The mark of an open file that was understood by its first ``sample_bytes``."""
        head = os.pread(fd, min(sample_bytes, HEAD_BYTES), 0)
        return cls(os.fstat(fd).st_ino, sample_bytes, hashlib.blake2b(head, digest_size=16).hexdigest())

    def fits(self, fd: int) -> bool:
        """Whether an open file is this one. False also where it was cut short and written anew."""
        return Mark.of(fd, self.sample_bytes) == self


class Cut(NamedTuple):
    """Where a piece ends that is published and not all durable."""

    end: int
    made_ns: int
    """When it was cut: the time of its rows, where rows get the present one."""


@dataclass(frozen=True, slots=True)
class Following:
    """What passes from one reader of a followed file to the next, beside its session and position."""

    mark: Mark
    cuts: tuple[Cut, ...] = ()
    keep_in: Path | None = None
    """Where --resume writes it down; None: a new run begins anew."""


def find(path: str, mark: Mark, at: int) -> str | None:
    """The name that the marked file of at least ``at`` bytes has now: ``path``, or one that begins so (rotated)."""
    for name in (path, *sorted(glob.glob(glob.escape(path) + "*"))):
        try:
            fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            if mark.fits(fd) and os.fstat(fd).st_size >= at:
                return name
        finally:
            os.close(fd)
    return None


@dataclass(frozen=True, slots=True)
class Kept:
    """What --resume keeps of a followed file: enough to make every batch that may be on its way once more."""

    file: str
    mapping: str
    """Digest of what the columns mean."""
    session: int
    position: tuple[int, int, int, int]
    mark: Mark
    cuts: tuple[Cut, ...]
    batch_rows: int
    timestamps: str
    began_ns: int
    origin_ns: int

    @property
    def end(self) -> int:
        """The file has at least so many bytes."""
        return max([self.position[1], *(cut.end for cut in self.cuts)])

    def save(self, path: Path) -> None:
        """Write atomically, and durably before anything that follows from it is sent."""
        part = path.with_suffix(".part")
        with part.open("w", encoding="utf-8") as out:
            json.dump({"version": VERSION, **asdict(self), "session": f"{self.session:016x}"}, out)
            out.flush()
            os.fsync(out.fileno())
        os.replace(part, path)

    @classmethod
    def load(cls, path: Path) -> Kept:
        """Raises :class:`UsageError` for what another version wrote or what is damaged."""
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            if told.pop("version") != VERSION:
                raise UsageError(f"{path}: written by another version; remove the file to begin anew")
            kept = cls(**told)
            return replace(
                kept,
                session=int(told["session"], 16),
                position=tuple(kept.position),
                mark=Mark(*kept.mark),
                cuts=tuple(Cut(*cut) for cut in kept.cuts),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
            raise UsageError(f"{path}: the state of the run cannot be read ({e}); remove it to begin anew") from None

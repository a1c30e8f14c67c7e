"""Copying a topic's log while it is written.

Sealed segments never change and the active one only grows, so files copied oldest first make a log that recovery
understands: at worst its tail is torn. The identity is not copied, so the copy gets a uuid of its own (R10).
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from zmqbroker.errors import BrokerError
from zmqbroker.storage.filesystem import OsFilesystem
from zmqbroker.storage.identity import IDENTITY

_LEFT_OUT = {"LOCK", IDENTITY, "spare", "prepare.tmp"}


def copy_log(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> int:
    """Copy a topic's directory into ``target``, which must be empty or new; bytes copied. Raises BrokerError."""
    source, target = Path(source), Path(target)
    filesystem = OsFilesystem()
    if not source.is_dir():
        raise BrokerError(f"{source} is no directory of a topic")
    if target.exists() and any(target.iterdir()):
        raise BrokerError(f"{target} is not empty: choose another directory")
    filesystem.make_directory(str(target))
    copied = 0
    for path in sorted(source.iterdir()):
        if path.name in _LEFT_OUT or path.name.endswith(".tmp"):
            continue
        try:
            shutil.copyfile(path, target / path.name)
        except FileNotFoundError:
            continue  # dropped meanwhile: it was the oldest
        with filesystem.open(str(target / path.name)) as file:
            file.sync()
            copied += file.size()
    filesystem.sync_directory(str(target))
    return copied


def restore_logs(
    backup: str | os.PathLike[str], data_dir: str | os.PathLike[str], topic: str | None = None
) -> dict[str, int]:
    """Put the topics of a backup into a data directory that no broker holds; bytes by topic.

    Raises :class:`DirectoryLocked`, and BrokerError for a topic that exists.
    """
    filesystem = OsFilesystem()
    filesystem.make_directory(os.fspath(data_dir))
    lock = filesystem.lock(f"{os.fspath(data_dir)}/LOCK")
    try:
        names = (
            [p.name for p in sorted(Path(backup).iterdir()) if p.is_dir() and topic in (None, p.name)]
            if Path(backup).is_dir()
            else []
        )
        if not names:
            raise BrokerError(f"{backup} holds no backup of {topic or 'any topic'}")
        return {name: copy_log(Path(backup) / name, Path(data_dir) / name) for name in names}
    finally:
        lock.release()

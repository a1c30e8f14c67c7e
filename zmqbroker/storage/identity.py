"""Which incarnation of a topic a directory holds (R10).

A log's uuid stands in deduplication tokens, so two directories must never share one and then go different ways. The
file ``identity.json`` remembers the inodes of itself and of its directory: a copy or a restored backup has others, and
gets a new uuid. So does a directory that has lost its segments. A directory that was only renamed keeps its uuid.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Final

from zmqbroker.storage.filesystem import Filesystem

log = logging.getLogger(__name__)

IDENTITY: Final = "identity.json"


def read_identity(filesystem: Filesystem, directory: str) -> bytes | None:
    """The uuid, where the directory is the one that it was given to; else None."""
    try:
        found = json.loads(filesystem.read_file(f"{directory}/{IDENTITY}") or b"")
        uuid = bytes.fromhex(found["uuid"])
        with filesystem.open(f"{directory}/{IDENTITY}") as file:
            same = found["inode"] == file.inode() and found["directory_inode"] == filesystem.directory_inode(directory)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return uuid if same and len(uuid) == 16 else None


def claim_identity(filesystem: Filesystem, directory: str, *, holds_log: bool, random: Callable[[int], bytes]) -> bytes:
    """The directory's uuid; a new one, written down durably, where it has none of its own."""
    uuid = read_identity(filesystem, directory) if holds_log else None
    if uuid is not None:
        return uuid
    uuid = random(16)
    if holds_log:
        log.warning("this log was copied or restored: it gets a new uuid, %s: %s", uuid.hex(), directory)
    temporary = f"{directory}/{IDENTITY}.tmp"
    with filesystem.open(temporary, create=True) as file:
        found = {"uuid": uuid.hex(), "inode": file.inode(), "directory_inode": filesystem.directory_inode(directory)}
        file.write([json.dumps(found).encode()], 0)
        file.sync()
    filesystem.rename(temporary, f"{directory}/{IDENTITY}")
    filesystem.sync_directory(directory)
    return uuid

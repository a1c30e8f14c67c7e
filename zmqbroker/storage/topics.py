"""The data directory: one folder a topic, named as the topic, with its settings beside its log.

    DATA_DIR/LOCK               held by the one broker
    DATA_DIR/TOPIC/topic.json   settings (:class:`zmqbroker.core.config.TopicConfig`)
    DATA_DIR/TOPIC/…            the log (:mod:`zmqbroker.storage.log`)

A topic with ``storage = memory`` has no folder: it ends with the process.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Final

from zmqbroker.core.config import TopicConfig
from zmqbroker.errors import CorruptLog
from zmqbroker.storage.filesystem import Filesystem, Lock, OsFilesystem
from zmqbroker.storage.interface import TopicLog
from zmqbroker.storage.log import DiskLog
from zmqbroker.storage.memory import MemoryLog

SETTINGS: Final = "topic.json"


class TopicStore:
    """Opens the logs of one data directory."""

    def __init__(self, data_dir: str | os.PathLike[str], filesystem: Filesystem | None = None) -> None:
        self.data_dir = os.fspath(data_dir)
        self._filesystem = filesystem or OsFilesystem()
        self._lock: Lock | None = None

    def lock(self) -> None:
        """Make and take the directory. Raises :class:`DirectoryLocked` where another process holds it."""
        self._filesystem.make_directory(self.data_dir)
        self._lock = self._filesystem.lock(f"{self.data_dir}/LOCK")

    def unlock(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def list(self) -> list[tuple[str, TopicConfig]]:
        """Every topic on disk with its settings."""
        found = []
        for name in self._filesystem.list(self.data_dir):
            data = self._filesystem.read_file(f"{self.data_dir}/{name}/{SETTINGS}") if name != "LOCK" else None
            if data is not None:
                try:
                    found.append((name, TopicConfig.from_json(json.loads(data))))
                except (ValueError, TypeError) as e:
                    raise CorruptLog(f"{self.data_dir}/{name}/{SETTINGS} cannot be read ({e}): restore it") from None
        return found

    def open(self, name: str, config: TopicConfig) -> TopicLog:
        """Open a topic's log, or make it. The caller recovers it before anything else."""
        if config.storage == "memory":
            return MemoryLog(config.partitions, segment_bytes=config.segment_bytes)
        directory = f"{self.data_dir}/{name}"
        self._filesystem.make_directory(directory)
        log = DiskLog(directory, config.partitions, filesystem=self._filesystem, segment_bytes=config.segment_bytes)
        if self._filesystem.read_file(f"{directory}/{SETTINGS}") is None:
            self.save(name, config)
        return log

    def save(self, name: str, config: TopicConfig) -> None:
        """Keep a topic's settings."""
        data = json.dumps(config.to_json(), indent=1).encode()
        if self._filesystem.read_file(f"{self.data_dir}/{name}/{SETTINGS}") != data:
            self._filesystem.write_atomic(f"{self.data_dir}/{name}", SETTINGS, data)

    def delete(self, name: str) -> None:
        """Remove a closed topic's folder. The settings go first: without them it is no topic any more."""
        self._filesystem.remove(f"{self.data_dir}/{name}/{SETTINGS}")
        self._filesystem.sync_directory(f"{self.data_dir}/{name}")
        shutil.rmtree(Path(self.data_dir) / name, ignore_errors=True)

"""What the core is told: plain tuples whose first element says which. For speed they are no classes.

(MESSAGE, connection: bytes, header: protocol.Header or its plain tuple, frames: list of bytes after frame 0)
(COMMITTED, topic, commit_id, bad: dict[commit_id, list of indexes into that hand's appends], synced: bool)
    every hand up to ``commit_id`` is written, and durable where ``synced``
(READ, Read, records: bytes (protocol.RECORD each), payloads: bytes, gaps: what was found damaged, as
    (partition, first, last, reason))
(FAILED, Read or CutAsk)         the log could not be read; it may be asked again
(CUT, CutAsk, last, rows, bytes)
(OPENED, topic, TopicConfig, log uuid, Recovered or None)
(OPEN_FAILED, topic, reason)
(GONE, connection)               the connection cannot be written to any more
(DISK, topic, used_bytes, first_offsets, full: bool, wants_roll: bool)
(LOG_STOPPED, topic, reason)
"""

from typing import Final

MESSAGE: Final = 0
COMMITTED: Final = 1
READ: Final = 2
CUT: Final = 3
OPENED: Final = 4
OPEN_FAILED: Final = 5
GONE: Final = 6
DISK: Final = 7
LOG_STOPPED: Final = 8
FAILED: Final = 9

DELIVER: Final = 1
BURY: Final = 2
SPLIT: Final = 3
"""Purposes of a Read."""

"""The feeder's journal: what it was about to send, and what was acknowledged. Survives a kill of the feeder.

One line of JSON an event, written before the batch is handed to the producer ("sent") and after the broker's
acknowledgement ("acked"). A torn last line is left out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple


class Sent(NamedTuple):
    session: int
    seq: int
    base_ms: int
    rows: int


class Journal(NamedTuple):
    sent: dict[tuple[int, int], Sent]
    acked: set[tuple[int, int]]

    @property
    def acked_rows(self) -> int:
        return sum(self.sent[address].rows for address in self.acked)


def read(path: Path) -> Journal:
    """What the journal says so far."""
    sent: dict[tuple[int, int], Sent] = {}
    acked: set[tuple[int, int]] = set()
    if path.exists():
        for line in path.read_bytes().split(b"\n"):
            try:
                kind, *fields = json.loads(line)
            except ValueError:
                continue
            if kind == "sent":
                one = Sent(*fields)
                sent[one.session, one.seq] = one
            else:
                acked.add((fields[0], fields[1]))
    return Journal(sent, acked)

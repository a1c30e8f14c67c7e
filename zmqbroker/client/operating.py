"""What a client may ask of the broker's admin socket on its own behalf."""

from __future__ import annotations

from typing import NamedTuple

from zmqbroker.admin.client import AdminClient
from zmqbroker.admin.protocol import AdminError
from zmqbroker.security import ClientKeys

REPLAY_TIMEOUT_S = 60.0
"""Cutting fifteen minutes of records into ranges reads their index, nothing else."""


class Replayed(NamedTuple):
    """What is delivered once more."""

    ranges: int
    rows: int


def replay(url: str, topic: str, group: str, since_s: float, *, keys: ClientKeys | None = None) -> Replayed:
    """Have what ``group`` was given of ``topic`` since then (unix seconds) delivered to it again, as doubtful (R27).

    ``url`` is the broker's admin address; with keys ours needs the role "admin". A group that the broker does not know
    was given nothing. Raises :class:`zmqbroker.errors.BrokerError`: nobody answers, or the broker refuses.
    """
    client = AdminClient(url, keys=keys)
    try:
        told = client.call(
            "replay", timeout_s=REPLAY_TIMEOUT_S, topic=topic, into=group, **{"from": f"time:{since_s:.3f}"}
        ).result
    except AdminError as e:
        if e.code != "not_found":
            raise
        return Replayed(0, 0)
    finally:
        client.close()
    return Replayed(int(told["ranges"]), int(told["rows"]))

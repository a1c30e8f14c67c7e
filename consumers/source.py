"""The broker as the collector's source: one member of a consumer group, shared by all workers.

The lease (R12). The broker takes a range back when its member has been silent for the group's ``ack_timeout``
(30 s), or shortly after its connection is gone. Both sides say a heartbeat every second, so a broker that was
heard within :data:`SILENCE_S_MAX` has heard us not much earlier. After a longer silence (a network fault, or this
very process stopped between two instructions) the lease counts as over, before the broker gives the range to another:
its ``reconnect_grace_s`` is longer. What it takes back while we talk, it tells.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from zmqbroker.client import Consumer, DirectConsumer
from zmqbroker.errors import BrokerError, ConsumerClosed

SILENCE_S_MAX = 3.0


class BrokerSource:
    """Adapts :class:`zmqbroker.client.Consumer` to :class:`consumers.ports.Source`."""

    def __init__(self, consumer: Consumer | DirectConsumer) -> None:
        self._consumer = consumer
        self.error: BrokerError | None = None
        """What the broker refused this member for; nothing will be received any more."""

    def receive(self, timeout: float) -> Any | None:
        try:
            return self._consumer.receive(timeout)
        except ConsumerClosed:
            return None
        except BrokerError as e:
            self.error = e
            return None

    def ack(self, delivery: Any, *, rejected_rows: int, dead_offsets: Sequence[int], reason: str) -> None:
        self._consumer.ack(delivery, rejected_rows, dead_offsets, reason)

    def nack(self, delivery: Any, reason: str, *, failure: bool) -> None:
        self._consumer.nack(delivery, reason, failure=failure)

    def working(self, delivery: Any, state: str) -> None:
        self._consumer.working(delivery, state)

    def holds(self, delivery: Any) -> bool:
        return self._consumer.holds(delivery) and self._consumer.silence_s < SILENCE_S_MAX

    def set_credit(self, deliveries: int) -> None:
        self._consumer.set_credit(deliveries)

    @property
    def connected(self) -> bool:
        return self._consumer.connected

    def close(self, timeout: float) -> None:
        self._consumer.close(timeout)

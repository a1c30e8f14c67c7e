"""Clients of the broker: :class:`Producer` and :class:`Consumer`.

Decisions are in :mod:`.producing` and :mod:`.consuming` (frames in, frames out, no sockets and no clocks); the
sockets and the thread are in :mod:`.transport`.
"""

from zmqbroker.client.consumer import Consumer, ConsumerStats
from zmqbroker.client.consuming import Delivery
from zmqbroker.client.direct import DirectConsumer
from zmqbroker.client.producer import Producer, ProducerStats, Receipt

__all__ = ["Consumer", "ConsumerStats", "Delivery", "DirectConsumer", "Producer", "ProducerStats", "Receipt"]

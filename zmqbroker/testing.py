"""A broker in this very process, for tests of what talks to one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zmqbroker.core import report
from zmqbroker.core.config import BrokerConfig, TopicConfig
from zmqbroker.server import Broker, ServerConfig


@contextmanager
def running_broker(
    data_dir: Path, *, bind: str = "tcp://127.0.0.1:*", topic: TopicConfig | None = None, **broker: Any
) -> Iterator[Broker]:
    """A broker on a free port; ``broker.endpoints[0]`` is its address. ``broker`` are fields of BrokerConfig."""
    running = Broker(
        ServerConfig(data_dir, (bind,), BrokerConfig(**broker), topic or TopicConfig(segment_bytes=4 << 20))
    )
    running.start()
    try:
        yield running
    finally:
        running.stop()


def topic_stats(broker: Broker, topic: str) -> dict[str, Any]:
    """The topic's part of ``/stats``."""
    found: dict[str, Any] = broker.call(lambda core: report.stats(core.state, 0.0))["topics"][topic]
    return found

"""A real broker at its disk cap: producers stop, or the oldest goes, as the topic says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.waiting import eventually
from zmqbroker.client import Consumer, Producer
from zmqbroker.core.config import BrokerConfig, TopicConfig
from zmqbroker.errors import PublishTimeout
from zmqbroker.server import Broker, ServerConfig

CAP = 2 << 20
PAYLOAD = bytes(20_000)


@pytest.fixture
def broker(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Broker]:
    topic = TopicConfig(partitions=1, segment_bytes=1 << 18, disk_bytes_max=CAP, overflow=request.param, retention_ms=0)
    config = ServerConfig(
        tmp_path, bind=("tcp://127.0.0.1:0",), topic=topic, broker=BrokerConfig(ingress_pool_bytes=1 << 19)
    )
    broker = Broker(config)
    broker.start()
    yield broker
    broker.stop()


@pytest.mark.parametrize("broker", ["stop"], indirect=True)
def test_r11_at_the_cap_producers_wait_and_go_on_when_a_group_has_taken_what_there_is(broker: Broker) -> None:
    url = broker.endpoints[0]
    with (
        Producer(url, "t", buffer_bytes=1 << 17) as producer,
        Consumer(url, "t", "g", credit=0, linger_ms=5, max_rows=10) as consumer,
    ):
        published = 0
        with pytest.raises(PublishTimeout):
            while published < 1000:
                producer.publish(PAYLOAD, timeout=3)
                published += 1
        assert published * len(PAYLOAD) < 2 * CAP
        consumer.set_credit(4)
        taken = 0
        while taken < published and (delivery := consumer.receive(15)) is not None:
            taken += len(delivery.records)
            consumer.ack(delivery)
        assert taken == published
        assert producer.flush(20)
        assert producer.publish(PAYLOAD).wait(20)


@pytest.mark.parametrize("broker", ["drop-oldest"], indirect=True)
def test_r28_with_drop_oldest_producers_go_on_and_the_group_is_told_what_it_missed(broker: Broker) -> None:
    url = broker.endpoints[0]
    count = 400
    with Consumer(url, "t", "g", credit=0, linger_ms=5, max_rows=10) as consumer:
        eventually(lambda: consumer.connected)
        with Producer(url, "t", buffer_bytes=1 << 17) as producer:
            for _ in range(count):
                producer.publish(PAYLOAD, timeout=20)
            assert producer.flush(20)
        eventually(lambda: broker.call(lambda core: core.topics["t"].groups["g"].lost_messages) > 0, 10)
        consumer.set_credit(4)
        taken: list[int] = []
        while (delivery := consumer.receive(2)) is not None:
            taken += delivery.records["offset"].tolist()
            consumer.ack(delivery)
        lost = broker.call(lambda core: core.topics["t"].groups["g"].lost_messages)
        assert taken[-1] == count - 1
        assert lost + len(taken) == count
        gaps = consumer._conversation.gaps
        assert sum(last - first + 1 for _, first, last, _ in gaps) == lost

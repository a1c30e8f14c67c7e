"""The durability policies of a topic, over real sockets and real files."""

from __future__ import annotations

from pathlib import Path

import pytest

from zmqbroker.client import Consumer, Producer
from zmqbroker.core.config import TopicConfig
from zmqbroker.errors import BatchesRefused, MessageTooLarge
from zmqbroker.testing import running_broker, topic_stats


@pytest.mark.parametrize(
    "config",
    [
        TopicConfig(fsync="commit", segment_bytes=1 << 20),
        TopicConfig(fsync="interval", fsync_interval_ms=50, segment_bytes=1 << 20),
        TopicConfig(fsync="never", segment_bytes=1 << 20),
        TopicConfig(storage="memory", segment_bytes=1 << 20),
    ],
    ids=["commit", "interval", "never", "memory"],
)
def test_everything_published_is_acked_and_delivered_once_under_every_policy(
    tmp_path: Path, config: TopicConfig
) -> None:
    with running_broker(tmp_path, topic=config) as broker:
        url = broker.endpoints[0]
        with Producer(url, "t") as producer, Consumer(url, "t", "g", linger_ms=10) as consumer:
            for i in range(3000):
                producer.publish(i.to_bytes(4, "little") * 250, rows=10)
            assert producer.flush(20)
            seen: list[int] = []
            while len(seen) < 3000:
                delivery = consumer.receive(10)
                assert delivery is not None, f"nothing came after {len(seen)}"
                assert not delivery.maybe_repeat
                seen += [int.from_bytes(p[:4], "little") for p in delivery.payloads()]
                consumer.ack(delivery)
        assert sorted(seen) == list(range(3000))
        assert topic_stats(broker, "t")["published_rows"] == 30_000


@pytest.mark.parametrize("fsync", ["commit", "interval", "never"])
def test_a_clean_stop_keeps_everything_under_every_policy(tmp_path: Path, fsync: str) -> None:
    config = TopicConfig(fsync=fsync, segment_bytes=1 << 20)
    with running_broker(tmp_path, topic=config) as broker, Producer(broker.endpoints[0], "t") as producer:
        for _ in range(500):
            producer.publish(b"x" * 1000, rows=7)
        assert producer.flush(20)
    with running_broker(tmp_path, topic=config) as broker:
        assert topic_stats(broker, "t")["published_rows"] == 3500
        with Consumer(broker.endpoints[0], "t", "g") as consumer:
            rows = 0
            while rows < 3500:
                delivery = consumer.receive(10)
                assert delivery is not None
                rows += delivery.rows
                consumer.ack(delivery)


def test_r20_a_group_that_stalls_holds_its_records_and_they_are_read_back_from_disk(tmp_path: Path) -> None:
    """The backlog is far above the tail cache, so ranges are cut and read from files."""
    config = TopicConfig(segment_bytes=1 << 20, retention_ms=0)
    with running_broker(tmp_path, topic=config, tail_bytes=1 << 20) as broker:
        url = broker.endpoints[0]
        with Consumer(url, "t", "g", credit=0, max_rows=5000) as consumer, Producer(url, "t") as producer:
            for i in range(10_000):
                producer.publish(i.to_bytes(4, "little") * 250, rows=10)
            assert producer.flush(30)
            assert topic_stats(broker, "t")["messages"] == 10_000
            # The budget, what may come between two looks at it, and what was not durable at the last one.
            assert sum(p.tail_bytes for p in broker.core.topics["t"].partitions) < 5 << 20
            consumer.set_credit(2)
            seen: list[int] = []
            while len(seen) < 10_000:
                delivery = consumer.receive(10)
                assert delivery is not None, f"nothing came after {len(seen)}"
                assert delivery.rows <= 5000
                seen += [int.from_bytes(p[:4], "little") for p in delivery.payloads()]
                consumer.ack(delivery)
            assert sorted(seen) == list(range(10_000))


def test_what_is_kept_for_replay_alone_never_stops_producers(tmp_path: Path) -> None:
    """The cap is reached many times over by records that every group has acked, all younger than the retention."""
    config = TopicConfig(segment_bytes=1 << 20, disk_bytes_max=24 << 20, retention_ms=3_600_000)
    with running_broker(tmp_path, topic=config, ingress_pool_bytes=2 << 20) as broker:
        url = broker.endpoints[0]
        with Producer(url, "t") as producer, Consumer(url, "t", "g", linger_ms=10) as consumer:
            sent = settled = 0
            while settled < 6000:
                while sent < 6000 and sent - settled < 500:
                    producer.publish(b"x" * 10_000, rows=10, timeout=30)
                    sent += 1
                delivery = consumer.receive(30)
                assert delivery is not None, f"stuck after {settled} of {sent}"
                settled += len(delivery.records)
                consumer.ack(delivery)
            assert producer.flush(30)
            assert not topic_stats(broker, "t")["disk_full"]


def test_flush_and_close_tell_of_batches_that_will_never_be_durable(tmp_path: Path) -> None:
    """What is above the limit can be published before the broker has told its limit."""
    url = f"ipc://{tmp_path}/broker"
    with Producer(url, "t") as producer:
        small, large = producer.publish(b"small"), producer.publish(b"x" * 1001)
        with running_broker(tmp_path / "data", bind=url, message_bytes_max=1000):
            with pytest.raises(BatchesRefused, match="1 batch was refused for good") as refused:
                producer.flush(30)
            assert isinstance(refused.value.first, MessageTooLarge)
            assert (small.error, large.error) == (None, refused.value.first)
            assert producer.flush(30), "it was told of"
            assert (producer.stats.acked, producer.stats.failed) == (1, 1)
            assert producer.close() == 0

"""The collector's source against a real broker that dies."""

from __future__ import annotations

from pathlib import Path

import pytest

from consumers.source import BrokerSource
from tests.chaos.pipeline import Pipeline
from tests.helpers.waiting import eventually
from zmqbroker.client import Consumer, Producer


@pytest.fixture
def pipeline(tmp_path: Path):
    with Pipeline(tmp_path / "run", rows=1) as made:
        made.broker.start()
        yield made


def test_a_range_given_back_while_the_broker_was_down_is_delivered_again(pipeline):
    """The broker forgets how often it delivered; the member that kept the range must still be able to return it."""
    with Producer(pipeline.broker_url) as producer, Consumer(pipeline.broker_url) as consumer:
        producer.publish(b"x", 1)
        assert producer.flush(10)
        source = BrokerSource(consumer)
        delivery = source.receive(10)
        assert delivery is not None
        pipeline.broker.kill()
        source.nack(delivery, "the lease is over", failure=False)
        pipeline.broker.start()
        again = source.receive(15)
        assert again is not None
        assert (again.first, again.last, again.maybe_repeat) == (delivery.first, delivery.last, True)


def test_r12_the_lease_is_over_when_the_broker_is_silent_and_ours_again_when_it_is_back(pipeline):
    with Producer(pipeline.broker_url) as producer, Consumer(pipeline.broker_url) as consumer:
        producer.publish(b"x", 1)
        source = BrokerSource(consumer)
        delivery = source.receive(10)
        assert delivery is not None
        assert source.holds(delivery)
        pipeline.broker.pause()
        eventually(lambda: not source.holds(delivery), 10, "a silent broker may have given the range away")
        pipeline.broker.go_on()
        eventually(lambda: source.holds(delivery), 10, "the lease is ours again")

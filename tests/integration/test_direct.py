"""Without a broker (R30, R7): producers hand batches straight to collectors that bind, over tcp and ipc."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from consumers import cli as collector
from tests.helpers.waiting import eventually
from zmqbroker.client import Consumer, Delivery, DirectConsumer, Producer
from zmqbroker.client.accepting import name_of
from zmqbroker.client.options import client_keys, listening_keys
from zmqbroker.security import load_public, make_keys


def take(consumer: DirectConsumer | Consumer, count: int, timeout: float = 30.0) -> list[Delivery]:
    """Take and ack until ``count`` batches have come."""
    found: list[Delivery] = []
    until = time.monotonic() + timeout
    while sum(len(d.records) for d in found) < count and time.monotonic() < until:
        delivery = consumer.receive(0.5)
        if delivery is not None:
            found.append(delivery)
            consumer.ack(delivery)
    return found


@pytest.mark.parametrize("transport", ["tcp://127.0.0.1:*", "ipc"])
def test_r30_a_run_of_batches_is_one_delivery_and_is_acked_when_it_is_stored(transport: str, tmp_path: Path) -> None:
    bind = transport if transport != "ipc" else f"ipc://{tmp_path}/collector"
    with DirectConsumer(bind, "t", credit=4) as consumer, Producer(consumer.endpoints[0], "t") as producer:
        receipts = [producer.publish(b"batch %d" % i, rows=3) for i in range(20)]
        assert not receipts[0].wait(0.3)
        found = take(consumer, 20)
        assert {int(s) for d in found for s in d.records["session"]} == {producer.session}
        assert sorted(int(seq) for d in found for seq in d.records["seq"]) == list(range(1, 21))
        assert all((d.first, d.last) == (d.records["seq"][0], d.records["seq"][-1]) for d in found)
        assert len(found) < 20
        assert not any(d.maybe_repeat for d in found)
        payloads = {int(seq): bytes(body) for d in found for seq, body in zip(d.records["seq"], d.payloads())}
        assert payloads[5] == b"batch 4"
        assert producer.flush(10)


def test_r30_the_name_of_a_batch_is_the_same_at_every_collector() -> None:
    """Two collectors that meet the same batch must come to the same token, and find each other's inserts."""
    with DirectConsumer("tcp://127.0.0.1:*", "t") as a, DirectConsumer("tcp://127.0.0.1:*", "t") as b:
        names = set()
        for consumer in (a, b):
            with Producer(consumer.endpoints[0], "t", session=77) as producer:
                producer.publish(b"x")
                (delivery,) = take(consumer, 1)
                names.add((delivery.log_uuid, delivery.seal_epoch, delivery.partition, delivery.first, delivery.last))
        assert names == {(name_of(77), 0, 0, 1, 1)}


def test_r30_an_insert_is_begun_only_while_its_producer_is_heard() -> None:
    with DirectConsumer("tcp://127.0.0.1:*", "t") as consumer:
        producer = Producer(consumer.endpoints[0], "t")
        producer.publish(b"x")
        delivery = consumer.receive(10)
        assert delivery is not None
        eventually(lambda: consumer.holds(delivery), 30, "the producer answers")
        producer.close(0)
        eventually(lambda: not consumer.holds(delivery), 30, "it is heard no more")


def test_r30_a_batch_that_failed_comes_again_doubtful_and_dead_ones_are_kept_before_the_ack(tmp_path: Path) -> None:
    with (
        DirectConsumer("tcp://127.0.0.1:*", "t", dead_letters=tmp_path / "dead") as consumer,
        Producer(consumer.endpoints[0], "t") as producer,
    ):
        receipt = producer.publish(b"bad", rows=2)
        first = consumer.receive(10)
        assert first is not None
        consumer.nack(first, "the store stumbled")
        again = consumer.receive(10)
        assert again is not None
        assert (again.attempt, again.maybe_repeat) == (2, True)
        consumer.ack(again, dead=[again.first], reason="cannot be decoded")
        assert receipt.wait(10)
        assert consumer._letters is not None
        letters = consumer._letters.read(0, 0, 10)
        assert letters.records["seq"].tolist() == [1]
        assert letters.body.endswith(b"bad")


def test_r07_a_batch_goes_to_another_collector_only_after_lease_and_z_and_is_marked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first collector dies while it stores. What it never saw goes on at once; what it had waits."""
    monkeypatch.setattr("zmqbroker.client.accepting.IN_FLIGHT_MAX_S", 5.0)
    first, second = (DirectConsumer("tcp://127.0.0.1:*", "t", credit=1) for _ in range(2))
    with Producer(f"{first.endpoints[0]},{second.endpoints[0]}", "t") as producer:
        producer.publish(b"one")
        assert first.receive(10) is not None
        first.close()
        parted_s = time.monotonic()
        producer.publish(b"two")
        doubtful: dict[int, bool] = {}
        while len(doubtful) < 2:
            delivery = second.receive(60)
            assert delivery is not None
            doubtful[delivery.first] = delivery.maybe_repeat
            if delivery.first == 1:
                assert time.monotonic() - parted_s > 8.0
            second.ack(delivery)
        assert doubtful == {1: True, 2: False}
        assert producer.flush(10)
    second.close()


def test_r13_batches_of_a_resumed_session_are_doubtful() -> None:
    with (
        DirectConsumer("tcp://127.0.0.1:*", "t") as consumer,
        Producer(consumer.endpoints[0], "t", session=5, first_seq=9) as producer,
    ):
        producer.publish(b"x")
        (delivery,) = take(consumer, 1)
        assert delivery.maybe_repeat


def test_r06_without_credit_producers_wait_and_go_on_with_it() -> None:
    with (
        DirectConsumer("tcp://127.0.0.1:*", "t", credit=0) as consumer,
        Producer(consumer.endpoints[0], "t") as producer,
    ):
        receipt = producer.publish(b"x" * 10_000)
        assert consumer.receive(1.5) is None
        assert not receipt.done
        consumer.set_credit(1)
        assert len(take(consumer, 1)) == 1
        assert receipt.wait(10)


def test_with_keys_only_producers_on_the_allow_list_get_in(tmp_path: Path) -> None:
    for name in ("collector", "agent", "reader", "stranger"):
        make_keys(name, tmp_path)
    public = {name: load_public(str(tmp_path / f"{name}.key")).decode() for name in ("agent", "reader")}
    (tmp_path / "allow").write_text(f"{public['agent']} produce agent\n{public['reader']} consume reader\n")
    server = listening_keys(
        tmp_path / "collector.key_secret", tmp_path / "allow", ["tcp://0.0.0.0:5555"], insecure=False
    )
    clients = {
        name: client_keys(tmp_path / f"{name}.key_secret", str(tmp_path / "collector.key"))
        for name in ("agent", "reader", "stranger")
    }
    with DirectConsumer("tcp://127.0.0.1:*", "t", credit=4, keys=server) as consumer:
        with Producer(consumer.endpoints[0], "t", keys=clients["agent"]) as producer:
            producer.publish(b"sealed")
            assert bytes(take(consumer, 1)[0].payloads()[0]) == b"sealed"
            assert producer.flush(30)
        reader = Producer(consumer.endpoints[0], "t", keys=clients["reader"])
        eventually(lambda: reader.error is not None, 30)
        assert "no role produce" in str(reader.error)
        reader.close(0)
        for keys in (clients["stranger"], None):
            outside = Producer(consumer.endpoints[0], "t", keys=keys)
            outside.publish(b"let me in")
            assert not outside.flush(1.0)
            assert not outside.stats.connected
            outside.close(0)


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        (["--bind", "tcp://0.0.0.0:0"], "without keys"),
        (["--bind", "tcp://[::]:0"], "without keys"),
        (["--bind", "tcp://127.0.0.1:0", "--curve-key", "nowhere"], "go together"),
        (["--bind", "tcp://127.0.0.1:0", "--server-key", "x" * 40], "no use with --bind"),
        (["--allow-list", "nowhere"], "for --bind"),
    ],
)
def test_a_collector_says_in_a_line_which_keys_it_lacks(
    options: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        collector.main([*options, "--http", "127.0.0.1:0"])
    assert ended.value.code == 2
    assert hint in capsys.readouterr().err

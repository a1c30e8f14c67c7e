"""Receiving by the binding's own methods: what is copied, and what is only looked at."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import zmq

from zmqbroker.sockets import SHARE_FROM_BYTES, VIEW_FROM_BYTES, receiver, sender

SIZES = [0, 1, VIEW_FROM_BYTES - 1, VIEW_FROM_BYTES, SHARE_FROM_BYTES, 1 << 20]


@pytest.fixture
def pair() -> Iterator[tuple[zmq.Socket, zmq.Socket]]:
    with zmq.Context() as context, context.socket(zmq.PAIR) as ours, context.socket(zmq.PAIR) as theirs:
        ours.bind("inproc://pair")
        theirs.connect("inproc://pair")
        yield ours, theirs


@pytest.mark.parametrize("views", [False, True])
def test_what_is_sent_arrives_whatever_its_size(pair: tuple[zmq.Socket, zmq.Socket], views: bool) -> None:
    message = [b"first", *(bytes([size % 251]) * size for size in SIZES)]
    sender(pair[0])(message)
    receive = receiver(pair[1], views=views)
    got = receive()
    assert [bytes(frame) for frame in got] == message
    assert [isinstance(frame, bytes) for frame in got] == [
        not views or len(frame) < VIEW_FROM_BYTES for frame in message
    ]
    with pytest.raises(zmq.Again):
        receive()


def test_a_view_outlives_the_messages_after_it(pair: tuple[zmq.Socket, zmq.Socket]) -> None:
    send, receive = sender(pair[0]), receiver(pair[1], views=True)
    kept = []
    for i in range(50):
        send([b"header", bytes([i]) * VIEW_FROM_BYTES])
        kept.append(receive()[1])
    assert [bytes(view) for view in kept] == [bytes([i]) * VIEW_FROM_BYTES for i in range(50)]

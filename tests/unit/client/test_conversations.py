"""Both clients' conversations, without a socket: what they send, what they make of what comes back (R4-R8, R12, R21)."""

from __future__ import annotations

import random

from crc32c import crc32c

from zmqbroker import protocol
from zmqbroker.client.consuming import ConsumerConversation
from zmqbroker.client.producing import ProducerConversation
from zmqbroker.errors import MessageTooLarge, Refused
from zmqbroker.protocol import HEADER_BYTES, RECORD_STRUCT, Code, Flag, Header, Type

LOG_A, LOG_B = b"a" * 16, b"b" * 16


def headers(messages: list[list[bytes]]) -> list[Header]:
    return [Header._make(protocol.HEADER.unpack_from(m[0])) for m in messages]


class ProducerBench:
    def __init__(self, **options: object) -> None:
        self.c = ProducerConversation(7, "t", incarnation=1, rng=random.Random(1), **options)  # type: ignore[arg-type]
        self.now = 10.0
        self.c.begin(self.now)

    def add(self, *payloads: bytes) -> None:
        for payload in payloads:
            self.c.add(payload, 5, crc32c(payload))

    def out(self) -> list[Header]:
        return headers(self.c.outgoing(self.now))

    def published(self) -> list[int]:
        return [h.b for h in self.out() if h.type == Type.PUBLISH]

    def tell(self, type_: Type, *frames: bytes, generation: int | None = None, **fields: int) -> None:
        header = protocol.pack(type_, self.c.opening.generation if generation is None else generation, **fields)
        self.c.receive(protocol.unpack(header), list(frames), self.now)

    def welcome(
        self, credit: int = 1 << 20, log: bytes = LOG_A, known: bool = False, options: dict | None = None, **fields: int
    ) -> None:
        self.c.outgoing(self.now)
        fields = {"c": 1000, "d": 1 << 20, **fields}
        self.tell(
            Type.WELCOME,
            log,
            protocol.pack_options(options or {}),
            b=credit,
            flags=Flag.KNOWN if known else 0,
            **fields,
        )

    def ack(self, *ranges: tuple[int, int], credit: int = 0, generation: int | None = None) -> None:
        self.tell(Type.ACK, protocol.pack_ranges(list(ranges)), b=credit, n=len(ranges), generation=generation)

    def reconnect(self) -> None:
        self.c.begin(self.now)


def test_r04_what_is_not_acked_is_sent_again_in_the_next_conversation_lowest_first() -> None:
    bench = ProducerBench()
    bench.welcome()
    bench.add(b"one", b"two", b"three")
    assert bench.published() == [1, 2, 3]
    bench.ack((2, 2))
    bench.reconnect()
    bench.welcome(known=True)
    assert bench.published() == [1, 3]


def test_r04_an_ack_of_an_earlier_conversation_is_not_heard_but_its_batch_is_asked_for_again() -> None:
    bench = ProducerBench()
    bench.welcome()
    old = bench.c.opening.generation
    bench.add(b"one")
    bench.published()
    bench.reconnect()
    bench.ack((1, 1), generation=old)
    assert list(bench.c.pending) == [1]


def test_r04_publish_says_the_lowest_unacked_seq() -> None:
    bench = ProducerBench()
    bench.welcome()
    bench.add(b"one", b"two")
    bench.out()
    bench.ack((1, 1))
    bench.add(b"three")
    (publish,) = bench.out()
    assert (publish.b, publish.c) == (3, 2)


def test_r04_a_refused_batch_is_sent_again_but_one_that_will_never_be_taken_is_given_up_with_the_reason() -> None:
    bench = ProducerBench()
    bench.welcome()
    bench.add(b"one", b"two")
    bench.out()
    bench.tell(Type.REFUSE, b"damaged", b=1, e=Code.BAD_CHECKSUM)
    bench.tell(Type.REFUSE, b"no such partition", b=2, e=Code.NO_PARTITION)
    bench.now += 1
    assert bench.published() == [1]
    assert isinstance(bench.c.failed[2], Refused)
    assert list(bench.c.pending) == [1]


def test_r04_nothing_is_sent_beyond_the_window() -> None:
    bench = ProducerBench()
    bench.welcome(c=2)
    bench.add(b"a", b"b", b"c")
    assert bench.published() == [1, 2]
    bench.ack((1, 1))
    assert bench.published() == [3]


def test_r05_an_unknown_session_that_had_sent_batches_counts_possible_duplicates() -> None:
    bench = ProducerBench()
    bench.welcome()
    bench.add(b"one", b"two")
    bench.out()
    bench.reconnect()
    bench.welcome(known=False)
    assert bench.c.possible_duplicates == 2


def test_r05_a_fenced_producer_stops_for_good() -> None:
    bench = ProducerBench()
    bench.welcome()
    bench.tell(Type.ERROR, b"a newer run is connected", e=Code.FENCED)
    assert isinstance(bench.c.fatal, Refused)
    assert bench.out() == []


def test_r06_no_more_is_sent_than_granted_and_more_is_asked_for() -> None:
    bench = ProducerBench()
    bench.welcome(credit=HEADER_BYTES + 3)
    bench.add(b"one", b"two")
    (first,) = bench.out()
    assert (first.type, first.b, first.d) == (Type.PUBLISH, 1, 2 * (HEADER_BYTES + 3))
    bench.tell(Type.HEARTBEAT, b=2 * (HEADER_BYTES + 3))
    assert bench.published() == [2]


def test_r06_who_is_served_fast_asks_further_ahead_than_who_is_not() -> None:
    asked = []
    for seconds_an_ack in (0.001, 1.0):
        bench = ProducerBench()
        bench.welcome(credit=1 << 30)
        for seq in range(1, 101):
            bench.add(bytes(100_000))
            bench.published()
            bench.now += seconds_an_ack
            bench.ack((seq, seq))
        bench.add(*[bytes(100_000)] * 100)
        asked.append(bench.out()[0].d - bench.c.sent_bytes + bench.c.pending_bytes)
    assert asked[0] > 4 << 20
    assert asked[1] < 2 << 20


def test_r06_grants_that_come_late_or_twice_change_nothing() -> None:
    bench = ProducerBench()
    bench.welcome(credit=1000)
    bench.tell(Type.HEARTBEAT, b=500)
    bench.tell(Type.HEARTBEAT, b=1000)
    assert bench.c.granted_bytes == 1000


def test_r07_batches_once_sent_wait_for_their_own_log_and_others_go_on() -> None:
    bench = ProducerBench()
    bench.welcome(log=LOG_A)
    bench.add(b"one")
    bench.out()
    bench.add(b"two")
    bench.reconnect()
    bench.welcome(log=LOG_B)
    assert bench.published() == [2]
    bench.reconnect()
    bench.welcome(log=LOG_A, known=True)
    assert bench.published() == [1]


def test_r07_with_failover_resend_they_go_elsewhere_and_stay_marked() -> None:
    """Marked once only, a second attempt at the same new log would look like a batch that no other has."""
    bench = ProducerBench(failover="resend")
    bench.welcome(log=LOG_A)
    bench.add(b"one")
    bench.out()
    for _ in range(2):
        bench.reconnect()
        bench.welcome(log=LOG_B)
        (publish,) = [h for h in bench.out() if h.type == Type.PUBLISH]
        assert publish.flags & Flag.RESENT


def test_r13_what_a_log_may_have_lost_is_sent_again_as_a_possible_repeat() -> None:
    """The disk under the broker lost a record that was delivered: its seq is not known there any more."""
    bench = ProducerBench()
    bench.welcome()
    bench.add(b"one")
    bench.out()
    bench.reconnect()
    bench.welcome(known=True, options={"doubt_below": 3})
    bench.add(b"two")
    again, fresh = [h for h in bench.out() if h.type == Type.PUBLISH]
    assert again.flags & Flag.RESENT
    assert not fresh.flags & Flag.RESENT

    resumed = ProducerBench(first_seq=2, resumed=True)
    resumed.welcome(known=True, options={"doubt_below": 3})
    resumed.add(b"two", b"three")
    first, second = [h for h in resumed.out() if h.type == Type.PUBLISH]
    assert first.flags & Flag.RESENT
    assert not second.flags & Flag.RESENT


def test_r08_a_resumed_session_continues_where_it_ended() -> None:
    bench = ProducerBench(first_seq=41)
    (hello,) = bench.out()
    assert hello.c == 41
    bench.welcome(known=True)
    bench.add(b"one")
    assert bench.published() == [41]


def test_a_payload_of_no_bytes_is_a_publish_with_a_frame() -> None:
    bench = ProducerBench()
    bench.welcome()
    bench.add(b"")
    (message,) = bench.c.outgoing(bench.now)
    assert message[1] == b""


def test_what_is_larger_than_the_broker_takes_is_given_up_here() -> None:
    """Sent, it would end the connection, and the next, and the next."""
    bench = ProducerBench()
    bench.add(b"x" * 200, b"ok")
    bench.welcome(d=100)
    assert bench.published() == [2]
    assert isinstance(bench.c.failed[1], MessageTooLarge)


class ConsumerBench:
    def __init__(self, credit: int = 2) -> None:
        self.c = ConsumerConversation(5, "t", "g", credit=credit, rng=random.Random(1))
        self.now = 10.0
        self.c.begin(self.now)

    def out(self) -> list[list[bytes]]:
        return self.c.outgoing(self.now)

    def tell(self, type_: Type, *frames: bytes, generation: int | None = None, **fields: int) -> None:
        header = protocol.pack(type_, self.c.opening.generation if generation is None else generation, **fields)
        self.c.receive(protocol.unpack(header), list(frames), self.now)

    def subscribed(self, log: bytes = LOG_A, holding: list[list[int]] | None = None) -> dict:
        (message,) = self.out()
        self.tell(Type.SUBSCRIBED, log, protocol.pack_options({"holding": holding or []}))
        return protocol.unpack_options(message[2])

    def deliver(self, range_id: int, attempt: int = 1) -> None:
        record = RECORD_STRUCT.pack(range_id, 7, range_id, 1, 5, 0, 1)
        self.tell(Type.DELIVER, record, b"x", a=range_id, b=range_id, c=range_id, e=attempt, f=1, n=1, partition=0)

    def reconnect(self) -> None:
        self.c.begin(self.now)


def test_r06_credit_covers_what_was_received_and_the_room_that_is_left() -> None:
    bench = ConsumerBench(credit=2)
    bench.subscribed()
    bench.deliver(1)
    assert headers(bench.out()) == []
    bench.c.settle(bench.c.ready.popleft(), 0, [], "")
    settle, credit = headers(bench.out())
    assert (settle.type, credit.type, credit.b) == (Type.SETTLE, Type.CREDIT, 3)


def test_r12_a_range_that_the_broker_does_not_leave_with_us_is_no_longer_ours() -> None:
    bench = ConsumerBench()
    bench.subscribed()
    bench.deliver(1)
    bench.deliver(2)
    kept, lost = bench.c.ready
    bench.reconnect()
    assert not bench.c.holds(kept)
    assert bench.subscribed(holding=[[1, 1]])["holding"] == [[1, 1], [2, 1]]
    assert bench.c.holds(kept)
    assert not bench.c.holds(lost)
    assert list(bench.c.ready) == [kept]


def test_r23_a_revoked_range_is_no_longer_ours() -> None:
    bench = ConsumerBench()
    bench.subscribed()
    bench.deliver(1)
    (delivery,) = bench.c.ready
    bench.tell(Type.REVOKE, b"too long", a=1, e=2, f=1)
    assert bench.c.holds(delivery)
    bench.tell(Type.REVOKE, b"too long", a=1, e=1, f=1)
    assert not bench.c.holds(delivery)
    assert not bench.c.ready


def test_r21_a_settlement_that_could_not_be_sent_is_said_in_the_next_conversation() -> None:
    bench = ConsumerBench()
    bench.subscribed()
    bench.deliver(1)
    bench.c.settle(bench.c.ready.popleft(), 0, [], "")
    bench.c.unsent(bench.out(), bench.now)
    assert bench.subscribed(holding=[[1, 1]])["holding"] == [[1, 1]]
    (settle, *_) = headers(bench.out())
    assert (settle.type, settle.a, settle.generation) == (Type.SETTLE, 1, bench.c.opening.generation)


def test_r21_what_was_decided_about_one_log_is_not_said_to_another() -> None:
    """Ids of ranges begin anew with a log: a settlement of the old one's range 1 would settle the new one's."""
    bench = ConsumerBench()
    bench.subscribed(LOG_A)
    bench.deliver(1)
    bench.deliver(2)
    first, second = bench.c.ready
    bench.c.settle(first, 0, [], "")
    bench.reconnect()
    bench.subscribed(LOG_B)
    bench.c.settle(second, 0, [], "")
    assert Type.SETTLE not in [h.type for h in headers(bench.out())]
    assert not bench.c.holding


def test_a_later_attempt_at_the_same_range_is_held_apart() -> None:
    bench = ConsumerBench()
    bench.subscribed()
    bench.deliver(1, attempt=1)
    bench.deliver(1, attempt=2)
    first, second = bench.c.ready
    bench.c.settle(first, 0, [], "")
    assert bench.c.holding == {1: second}


def test_r28_gaps_are_counted_and_kept() -> None:
    bench = ConsumerBench()
    bench.subscribed()
    bench.tell(Type.GAP, b"dropped", partition=3, b=10, c=19)
    assert bench.c.gaps_total == 1
    assert list(bench.c.gaps) == [(3, 10, 19, "dropped")]


def test_messages_of_an_earlier_conversation_are_dropped() -> None:
    bench = ConsumerBench()
    bench.subscribed()
    old = bench.c.opening.generation
    bench.reconnect()
    bench.subscribed()
    bench.tell(Type.DELIVER, b"", b"", generation=old, a=1, e=1)
    assert not bench.c.ready


def test_a_delivery_without_records_has_no_payloads() -> None:
    bench = ConsumerBench()
    bench.subscribed()
    bench.tell(Type.DELIVER, b"", b"", a=1, b=0, c=0, e=1, f=1)
    assert bench.c.ready[0].payloads() == []

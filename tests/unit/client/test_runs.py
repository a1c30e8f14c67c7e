"""What a producer seals for a collector without a broker (R24, R30), and what that collector makes of it."""

from __future__ import annotations

from crc32c import crc32c

from zmqbroker import protocol
from zmqbroker.client.accepting import LEASE_S, Accepting
from zmqbroker.client.consuming import Delivery
from zmqbroker.client.producing import Pending
from zmqbroker.client.runs import BATCHES_MAX, Limits, Sealing, place_of, run_at
from zmqbroker.protocol import Flag, Header, Type

LIMITS = Limits(rows=10, bytes=10_000, linger_s=0.1, unacked=2)


def batches(count: int, rows: int = 1, first: int = 1) -> dict[int, Pending]:
    return {seq: Pending(b"x" * 36, rows, 0, None, protocol.NO_PARTITION, 1) for seq in range(first, first + count)}


def sealing() -> Sealing:
    found = Sealing()
    found.limits = LIMITS
    return found


class TestSealing:
    def test_r24_the_first_is_sealed_at_once_and_the_rest_waits_for_the_linger_time(self) -> None:
        s, queue = sealing(), batches(3)
        assert s.sendable(list(queue.items())[:1], 1000, 5.0) == 100
        rest = list(queue.items())[1:]
        assert s.sendable(rest, 1000, 5.0) == 0
        assert s.due_s == 5.1
        assert s.sendable(rest, 1000, 5.2) == 200
        assert [b.run for b in queue.values()] == [(1, 1), (2, 3), (2, 3)]

    def test_r30_a_run_is_full_by_rows_or_bytes_and_keeps_its_bounds(self) -> None:
        s, queue = sealing(), batches(7, rows=4)
        assert s.sendable(queue.items(), 1000, 5.0) == 400
        assert [b.run for b in queue.values()] == [(1, 2)] * 2 + [(3, 4)] * 2 + [None] * 3
        s.unacked.clear()
        assert s.sendable(queue.items(), 1000, 6.0) == 400, "what was sealed counts before what is new"
        assert queue[1].run == (1, 2)

    def test_r06_a_run_is_sent_when_the_credit_covers_all_of_it(self) -> None:
        s, queue = sealing(), batches(2)
        s.sendable(queue.items(), 1000, 5.0)
        assert s.sendable(queue.items(), 199, 6.0) == 0
        assert s.sendable(queue.items(), 200, 6.0) == 200

    def test_a_seq_that_was_given_up_ends_a_run(self) -> None:
        s, queue = sealing(), batches(4)
        del queue[2]
        s.sendable(queue.items(), 1000, 5.0)
        assert queue[1].run == (1, 1)

    def test_without_anything_to_seal_nothing_is_due(self) -> None:
        s = sealing()
        s.sendable(batches(1).items(), 10, 5.0)
        assert s.due_s > 1e9

    def test_the_limits_of_a_welcome_that_make_no_sense_are_no_runs(self) -> None:
        assert Limits.of(LIMITS.to_options()) == LIMITS
        for said in (None, 7, {}, {"rows": "x"}, {"rows": 1, "bytes": 1, "linger_ms": -1, "unacked": 1}):
            assert Limits.of({"runs": said}) is None
        assert run_at(7, place_of(7, (5, 9))) == (5, 9)
        assert run_at(7, 0) == (7, 7)


class Collector:
    """An accepting half with one producer that has said HELLO and is heard."""

    def __init__(self) -> None:
        self.a = Accepting("t", b"u" * 16)
        self.now = 100.0
        self.said: list[Header] = []
        self.hello()

    def hello(self, conn: bytes = b"p", incarnation: int = 1, flags: int = 0) -> None:
        self.generation = incarnation * 10
        head = protocol.pack(Type.HELLO, self.generation, a=7, b=incarnation, c=1, d=1 << 20, flags=flags)
        self.tell(conn, head, b"t", b"{}")
        self.hear(conn)

    def hear(self, conn: bytes = b"p") -> None:
        self.tell(conn, protocol.pack(Type.HEARTBEAT, self.generation, a=7, c=int(self.now * 1000) + 1))

    def tell(self, conn: bytes, *frames: bytes) -> None:
        self.a.receive(conn, list(frames), self.now, 1000)
        self.a.turn(self.now)
        self.said += [protocol.unpack(frames[0]) for _, frames in self.a.sends]
        self.a.sends.clear()

    def publish(self, seq: int, run: tuple[int, int], conn: bytes = b"p", flags: int = 0) -> None:
        payload = b"batch %d" % seq
        head = protocol.pack(
            Type.PUBLISH, self.generation, flags=flags, n=3, a=7, b=seq, c=1, d=1 << 20, e=crc32c(payload), g=1,
            h=place_of(seq, run),
        )  # fmt: skip
        self.tell(conn, head, payload)

    def take(self) -> Delivery | None:
        return self.a.take(self.now)

    def acked(self) -> int:
        return sum(h.type == Type.ACK for h in self.said)


class TestAccepting:
    def test_r30_a_run_is_given_out_when_it_is_whole_and_acked_when_it_is_stored(self) -> None:
        c = Collector()
        c.publish(2, (1, 3))
        c.publish(3, (1, 3))
        assert c.take() is None
        c.publish(1, (1, 3))
        delivery = c.take()
        assert delivery is not None
        assert (delivery.first, delivery.last, delivery.rows, delivery.maybe_repeat) == (1, 3, 9, False)
        assert [bytes(p) for p in delivery.payloads()] == [b"batch 1", b"batch 2", b"batch 3"]
        assert not c.acked()
        c.a.settle(delivery)
        c.hear()
        assert c.acked() == 1

    def test_r14_a_run_beside_one_that_overlaps_it_waits(self) -> None:
        """Its inserts would have other names, and could run beside those of the other."""
        c = Collector()
        c.publish(1, (1, 2))
        c.publish(2, (1, 2))
        first = c.take()
        assert first is not None
        c.publish(2, (2, 3), flags=Flag.RESENT)
        c.publish(3, (2, 3), flags=Flag.RESENT)
        assert c.take() is None
        c.a.settle(first)
        second = c.take()
        assert second is not None
        assert (second.first, second.last, second.maybe_repeat) == (2, 3, True)

    def test_r14_another_process_of_a_session_waits_until_the_lease_of_the_first_is_over(self) -> None:
        c = Collector()
        c.publish(1, (1, 1))
        old = c.take()
        assert old is not None
        assert c.a.holds(old, c.now)
        c.hello(b"q", incarnation=2, flags=Flag.RESUMED)
        assert not c.a.holds(old, c.now), "what the first process sent may have other bounds now"
        c.publish(1, (1, 2), b"q")
        c.publish(2, (1, 2), b"q")
        assert not c.a.nack(old, False, c.now)
        assert c.take() is None
        c.now += LEASE_S + 1
        c.hear(b"q")
        again = c.take()
        assert again is not None
        assert (again.first, again.last, again.maybe_repeat) == (1, 2, True)

    def test_r22_a_run_that_fails_too_often_is_stored_batch_by_batch_and_acked_as_a_whole(self) -> None:
        c = Collector()
        for seq in (1, 2):
            c.publish(seq, (1, 2))
        for _ in range(5):
            delivery = c.take()
            assert delivery is not None
            assert not c.a.nack(delivery, True, c.now)
            c.now += 40
        pieces = [c.take(), c.take()]
        assert [(d.first, d.last, d.maybe_repeat) for d in pieces if d] == [(1, 1, True), (2, 2, True)]
        assert pieces[0] is not None
        assert pieces[1] is not None
        c.a.settle(pieces[0])
        c.hear()
        assert not c.acked()
        for _ in range(4):
            assert not c.a.nack(pieces[1], True, c.now)
            c.now += 40
            pieces[1] = c.take()
            assert pieces[1] is not None
        assert c.a.nack(pieces[1], True, c.now), "a dead letter"
        c.a.settle(pieces[1])
        c.hear()
        assert c.acked() == 1

    def test_r06_credit_that_an_idle_producer_does_not_use_goes_to_those_who_wait(self) -> None:
        c = Collector()
        c.a.pool.pool_bytes = 1 << 16
        c.hello(b"q", incarnation=2)
        wants = protocol.pack(Type.HELLO, 99, a=8, b=1, c=1, d=1 << 20)
        for _ in range(4):
            c.tell(b"r", wants, b"t", b"{}")
            c.now += 1
            c.hear(b"q")
        taken_back = [h for h in c.said if h.type == Type.ERROR and h.a == 7]
        assert taken_back
        assert c.a.sessions[8].granted_bytes >= 1 << 15

    def test_a_place_that_no_run_has_is_refused(self) -> None:
        c = Collector()
        c.publish(5, (5, 5 + BATCHES_MAX))
        assert [h.type for h in c.said][-1] == Type.REFUSE
        head = protocol.pack(Type.PUBLISH, c.generation, n=1, a=7, b=5, c=1, e=crc32c(b"x"), h=9 << 16)
        c.tell(b"p", head, b"x")
        assert [h.type for h in c.said][-1] == Type.REFUSE

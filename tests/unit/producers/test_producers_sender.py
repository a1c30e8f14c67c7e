"""What a live source measured: durable within a second, and after an absence of the broker sent oldest first."""

import itertools
import logging

import numpy as np
import pytest

from producers.batcher import Batcher
from producers.catchup import BURST_BYTES_MAX, BURST_BYTES_MIN, SharePace
from producers.columns import Columns
from producers.identities import Identities
from producers.sender import AT_RISK_S, TURN_S, LiveSender
from producers.spool import Spool
from telemetry.batch import BatchDecoder, Device
from zmqbroker.errors import PublishTimeout


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Receipt:
    error = None

    def __init__(self, session, seq, payload):
        self.session, self.seq, self.payload = session, seq, payload
        self.done = False
        self._calls = []

    def add_done_callback(self, call):
        self._calls.append(call)

    def acknowledge(self):
        self.done = True
        for call in self._calls:
            call(self)


class Broker:
    """Producers whose batches wait until :meth:`acknowledge`. ``credit``: batches that may wait."""

    def __init__(self):
        self.waiting = []
        self.taken = []
        self.credit = 1_000
        self.quick = False
        self.connected = True
        self._sessions = itertools.count(1)

    def make(self, session, first_seq):
        return _Producer(self, session or next(self._sessions), first_seq)

    def acknowledge(self):
        for receipt in self.waiting:
            self.taken.append((receipt.session, receipt.seq, receipt.payload))
            receipt.acknowledge()
        self.waiting = []


class _Producer:
    pending_bytes = credit_wait_seconds = reconnects = possible_duplicates = 0

    def __init__(self, broker, session, seq):
        self._broker, self.session, self._seq = broker, session, seq

    @property
    def stats(self):
        return self

    @property
    def connected(self):
        return self._broker.connected

    def publish(self, payload, rows, timeout=None):
        if len(self._broker.waiting) >= self._broker.credit:
            raise PublishTimeout("no credit")
        body = payload(self.session, self._seq) if callable(payload) else payload
        receipt = Receipt(self.session, self._seq, body)
        self._seq += 1
        self._broker.waiting.append(receipt)
        if self._broker.quick:
            self._broker.acknowledge()
        return receipt

    def close(self, timeout=0):
        return 0


class Rig:
    def __init__(self, directory):
        self.directory = directory
        self.clock, self.broker = Clock(), Broker()
        self.measured = 0
        self.start()

    def start(self):
        identities = Identities()
        identities.device(Device(uuid="GPU-1"))
        identities.metric("M")
        self.spool = Spool(self.directory, 64 << 20)
        self.sender = LiveSender(
            self.broker.make,
            Batcher(identities),
            batch_rows=1000,
            linger_s=0.2,
            log=logging.getLogger("test"),
            spool=self.spool,
            clock=self.clock,
        )

    def kill(self):
        """The process is gone, with all that was in its memory."""
        self.spool._log.release()
        self.broker.waiting = []

    def measure(self, rows=10):
        values = np.arange(self.measured, self.measured + rows, dtype=float)
        self.measured += rows
        codes = np.zeros(rows, np.int32)
        self.sender.add(Columns(codes, codes, values, np.full(rows, 1_700_000_000_000_000_000)))

    def turns(self, seconds):
        for _ in range(round(seconds / TURN_S)):
            self.clock.now += TURN_S
            self.sender.pump()

    def values_taken(self):
        decoder = BatchDecoder()
        return [value for *_, payload in self.broker.taken for value in decoder.decode(payload).value.tolist()]


@pytest.fixture
def rig(tmp_path):
    return Rig(tmp_path / "spool")


def test_what_is_not_acknowledged_is_on_disk_a_second_after_it_was_measured(rig):
    """The broker has stopped a moment ago: kill -9 of the agent loses the last second at most."""
    for _ in range(4):
        rig.measure()
        rig.turns(TURN_S)
    assert rig.sender.totals.rows_published > 0
    assert not rig.sender.stalled
    rig.turns(AT_RISK_S)
    assert not rig.sender.stalled
    rig.kill()
    rig.start()
    rig.broker.quick = True
    rig.turns(5)
    assert sorted(rig.values_taken()) == list(range(40))


def test_a_batch_that_was_kept_and_then_acknowledged_is_not_sent_again(rig):
    rig.measure()
    rig.turns(2)
    assert rig.spool.rows == 10
    rig.broker.acknowledge()
    rig.broker.quick = True
    rig.turns(2)
    assert rig.spool.rows == 0
    assert rig.values_taken() == list(range(10))
    assert rig.sender.totals.rows_acked == 10


def test_nothing_is_written_while_the_broker_answers(rig):
    rig.broker.quick = True
    for _ in range(20):
        rig.measure()
        rig.turns(TURN_S)
        assert rig.spool.batches == 0
    rig.turns(1)
    assert rig.values_taken() == list(range(200))


def test_after_an_absence_everything_comes_once_and_what_waited_comes_in_order(rig):
    for _ in range(100):
        rig.measure()
        rig.turns(TURN_S)
    assert rig.sender.stalled
    rig.broker.acknowledge()
    rig.broker.quick = True
    while rig.spool.rows:
        rig.measure()
        rig.turns(TURN_S)
    rig.turns(1)
    values = rig.values_taken()
    assert sorted(values) == list(range(rig.measured))
    addresses = [address[:2] for address in rig.broker.taken]
    assert len(set(addresses)) == len(addresses)
    for session in {session for session, _ in addresses}:
        seqs = [seq for own, seq in addresses if own == session]
        assert seqs == sorted(seqs)


def test_without_credit_nothing_of_the_spool_is_sent_and_nothing_is_lost(rig):
    rig.broker.credit = 0
    for _ in range(20):
        rig.measure()
        rig.turns(TURN_S)
    assert rig.broker.waiting == []
    rig.broker.credit, rig.broker.quick = 1_000, True
    rig.turns(10)
    assert sorted(rig.values_taken()) == list(range(200))


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("takes_s", [0.01, 0.2, 3.0])
def test_what_was_spooled_takes_its_share_of_the_brokers_time(share, takes_s):
    clock = Clock()
    pace = SharePace(share, clock)
    busy, start = 0.0, clock.now
    while clock.now - start < 600:
        if pace.bytes_now():
            pace.begin()
            assert not pace.bytes_now()
            clock.now += takes_s
            busy += takes_s
            pace.end(clock.now)
        else:
            clock.now += 0.001
    assert busy / (clock.now - start) == pytest.approx(share, rel=0.1)


def test_bursts_grow_while_they_are_taken_quickly_and_shrink_when_not():
    clock = Clock()
    pace = SharePace(1.0, clock)

    def burst(takes_s):
        clock.now += 1_000
        size = pace.bytes_now()
        pace.begin()
        clock.now += takes_s
        pace.end(clock.now)
        return size

    sizes = [burst(0.01) for _ in range(10)]
    assert sizes[0] == BURST_BYTES_MIN
    assert sizes == sorted(sizes)
    assert sizes[-1] == BURST_BYTES_MAX
    assert burst(0.5) == burst(0.5) == BURST_BYTES_MAX
    sizes = [burst(5) for _ in range(10)]
    assert sizes[-1] == BURST_BYTES_MIN

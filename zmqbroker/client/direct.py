"""A collector that binds: batches straight from producers, without a broker (R30).

:class:`DirectConsumer` has what :class:`zmqbroker.client.Consumer` has, so that whoever consumes need not know which of
the two it is. Decisions are in :mod:`.accepting`; here are the socket, its thread and the dead letters' log.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import zmq
from crc32c import crc32c

from zmqbroker.client.accepting import RUN, Accepting
from zmqbroker.client.consumer import ConsumerStats
from zmqbroker.client.consuming import Delivery
from zmqbroker.core.state import envelope
from zmqbroker.errors import BrokerError, ConsumerClosed
from zmqbroker.protocol import HEADER_BYTES
from zmqbroker.security import DATA_DOMAIN, ServerKeys
from zmqbroker.sockets import receiver, sender
from zmqbroker.storage.interface import KIND_DATA
from zmqbroker.storage.log import DiskLog

_log = logging.getLogger(__name__)


class DirectConsumer:
    """Listens for producers on ``bind`` (several addresses with commas between them).

    ``max_rows``, ``max_bytes`` and ``linger_ms`` bound a delivery: what producers may seal together. ``dead_letters``:
    a directory for batches that can be neither decoded nor stored; without one they stay with their producer. ``keys``:
    encryption, and an allow-list of producers. Raises :class:`BrokerError` for an address in use.
    """

    def __init__(
        self,
        bind: str,
        topic: str = "gpu-telemetry",
        *,
        credit: int = 2,
        max_rows: int = RUN.rows,
        max_bytes: int = RUN.bytes,
        linger_ms: int = round(RUN.linger_s * 1000),
        pool_bytes: int = 64 << 20,
        dead_letters: str | os.PathLike[str] | None = None,
        keys: ServerKeys | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._lock = threading.Condition()
        limits = RUN._replace(rows=max_rows, bytes=max_bytes, linger_s=linger_ms / 1000)
        self._accepting = Accepting(topic, secrets.token_bytes(16), pool_bytes=pool_bytes, limits=limits)
        self._credit = credit
        self._accepting.set_open(credit > 0)
        self._closed = False
        self._deliveries = self._settled = self._repeats = 0
        self._letters = DiskLog(dead_letters, 1, segment_bytes=16 << 20) if dead_letters is not None else None
        self._next_letter = 0
        if self._letters is not None:
            recovered = self._letters.recover()
            for _ in recovered.entries:
                pass
            self._next_letter = recovered.next_offsets[0]
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._context: zmq.Context[Any] = zmq.Context(io_threads=1)
        router = self._context.socket(zmq.ROUTER)
        router.set(zmq.ROUTER_MANDATORY, 1)
        router.set(zmq.LINGER, 0)
        router.set(zmq.SNDHWM, 0)
        router.set(zmq.MAXMSGSIZE, self._accepting.message_bytes_max + HEADER_BYTES)
        self._keys = keys
        if keys is not None:
            keys.start(self._context)
            keys.secure_server(router, DATA_DOMAIN)
        self.endpoints: list[str] = []
        for address in bind.split(","):
            try:
                router.bind(address.strip())
            except zmq.ZMQError as e:
                self._end_context()
                raise BrokerError(f"cannot listen on {address}: {e.strerror or e}") from None
            self.endpoints.append(router.get_string(zmq.LAST_ENDPOINT))
        self._router = router
        self._thread = threading.Thread(target=self._run, name="direct-consumer", daemon=True)
        self._thread.start()

    # --- as Consumer -----------------------------------------------------------------------------------------------

    def receive(self, timeout: float | None = None) -> Delivery | None:
        """The next run of one producer, or None at the time-out (seconds)."""
        deadline = None if timeout is None else self._clock() + timeout
        with self._lock:
            while True:
                if self._closed:
                    raise ConsumerClosed("the consumer was closed")
                if self._accepting.taken < self._credit:
                    delivery = self._accepting.take(self._clock())
                    if delivery is not None:
                        self._deliveries += 1
                        self._repeats += delivery.maybe_repeat
                        return delivery
                left = None if deadline is None else deadline - self._clock()
                if left is not None and left <= 0:
                    return None
                self._lock.wait(min(left, 0.2) if left is not None else 0.2)

    def ack(self, delivery: Delivery, rejected_rows: int = 0, dead: Sequence[int] = (), reason: str = "") -> None:
        """The run is stored; what is ``dead`` of it goes to the dead letters, durably, before its producer hears."""
        with self._lock:
            if not dead or self._bury(delivery, dead, reason):
                self._accepting.settle(delivery)
                self._settled += 1
            self._lock.notify_all()
        self._wake()

    def nack(self, delivery: Delivery, reason: str, dead: bool = False, failure: bool = True) -> None:
        with self._lock:
            offsets = delivery.records["offset"].tolist()
            dead = dead or self._accepting.nack(delivery, failure, self._clock())
            if dead and self._bury(delivery, offsets, reason):
                self._accepting.settle(delivery)
            self._lock.notify_all()
        self._wake()

    def _bury(self, delivery: Delivery, dead: Sequence[int], reason: str) -> bool:
        """Keep batches that cannot be stored, durably. False where there is no place for them."""
        if self._letters is None:
            _log.error(
                "batches cannot be stored and there is no place for dead letters: their producer keeps them",
                extra={"session": int(delivery.records["session"][0]), "seqs": list(dead), "reason": reason},
            )
            self._accepting.nack(delivery, False, self._clock())
            return False
        appends = []
        now_ms = int(time.time() * 1000)
        for record, body in zip(delivery.records.tolist(), delivery.payloads(), strict=True):
            offset, session, seq, _, rows, _, _ = record
            if offset in dead:
                letter = envelope({"session": session, "seq": seq, "rows": rows, "reason": reason[:1000]}, bytes(body))
                at = self._next_letter
                appends.append((KIND_DATA, 0, at, session, seq, 0, rows, now_ms, crc32c(letter), letter))
                self._next_letter += 1
        self._letters.commit(appends)
        return True

    def working(self, delivery: Delivery, state: str) -> None:
        """Nothing: the lease here is the producer's."""

    def set_credit(self, credit: int) -> None:
        with self._lock:
            self._credit = credit
            self._accepting.set_open(credit > 0)
        self._wake()

    @property
    def credit(self) -> int:
        return self._credit

    @property
    def connected(self) -> bool:
        """Whether we listen; that nobody has come yet is no fault."""
        return self._thread.is_alive()

    @property
    def silence_s(self) -> float:
        """No silence of one producer ends the leases of the others: see :meth:`holds`."""
        return 0.0

    def holds(self, delivery: Delivery) -> bool:
        """Whether an insert of this run may be begun: its producer was heard lately."""
        with self._lock:
            return self._accepting.holds(delivery, self._clock())

    @property
    def error(self) -> BrokerError | None:
        return None

    @property
    def stats(self) -> ConsumerStats:
        return ConsumerStats(self._deliveries, self._settled, self._repeats, self._accepting.taken, self.connected, 0)

    @property
    def producers(self) -> int:
        return len(self._accepting.peers)

    def close(self, timeout: float = 5.0) -> None:
        """Tell the producers, and leave. What was not acked stays with them."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._accepting.bye()
            self._lock.notify_all()
        self._wake()
        self._thread.join(timeout)
        with self._lock:
            # Here, not at the thread's own end: the number may be another file's at once, and we would write to that.
            os.close(self._wake_fd)
            self._wake_fd = -1
        self._router.close(200)
        self._end_context()
        if self._letters is not None:
            self._letters.close(b"")

    def _end_context(self) -> None:
        if self._keys is not None:
            self._keys.stop()
        self._context.destroy(200)

    def __enter__(self) -> DirectConsumer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- the thread ------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        with self._lock:
            if self._wake_fd >= 0:
                os.eventfd_write(self._wake_fd, 1)

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._router, zmq.POLLIN)
        poller.register(self._wake_fd, zmq.POLLIN)
        send = sender(self._router)
        refuse = lambda conn, frames: self._accepting.sends.append((conn, frames))
        receive = receiver(self._router) if self._keys is None else self._keys.receiver(self._router, refuse)
        while True:
            ready = dict(poller.poll(400))
            if self._wake_fd in ready:
                os.eventfd_read(self._wake_fd)
            with self._lock:
                accepting, now = self._accepting, self._clock()
                if self._router in ready:
                    self._drain(receive, now)
                accepting.turn(now)
                sends, accepting.sends = accepting.sends, []
                closed = self._closed
                self._lock.notify_all()
            for conn, frames in sends:
                try:
                    send([conn, *frames])
                except zmq.ZMQError:
                    with self._lock:
                        accepting.gone(conn)
            if closed:
                return

    def _drain(self, receive: Callable[[], list[bytes]], now: float) -> None:
        try:
            for _ in range(256):
                conn, *frames = receive()
                self._accepting.receive(conn, frames, now, int(time.time() * 1000))
        except zmq.Again:
            return

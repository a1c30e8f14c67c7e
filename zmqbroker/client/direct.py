"""A collector that binds: batches straight from producers, without a broker (R30).

:class:`DirectConsumer` has what :class:`zmqbroker.client.Consumer` has, so that whoever consumes need not know which of
the two it is. Decisions are in :mod:`.accepting`; here are the socket, its thread and the dead letters' log.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import zmq
from crc32c import crc32c

from zmqbroker.client.accepting import Accepting, DeadLetter
from zmqbroker.client.consumer import ConsumerStats
from zmqbroker.client.consuming import Delivery
from zmqbroker.errors import BrokerError, ConsumerClosed
from zmqbroker.protocol import HEADER_BYTES
from zmqbroker.sockets import receiver, sender
from zmqbroker.storage.interface import KIND_DATA
from zmqbroker.storage.log import DiskLog

_log = logging.getLogger(__name__)


class DirectConsumer:
    """Listens for producers on ``bind`` (several addresses with commas between them).

    ``dead_letters``: a directory for batches that can be neither decoded nor stored; without one they stay with their
    producer. Raises :class:`BrokerError` for an address in use.
    """

    def __init__(
        self,
        bind: str,
        topic: str = "gpu-telemetry",
        *,
        credit: int = 2,
        pool_bytes: int = 64 << 20,
        dead_letters: str | os.PathLike[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
        secure: Callable[[zmq.Context[Any], zmq.Socket[Any]], None] | None = None,
    ) -> None:
        self._clock = clock
        self._lock = threading.Condition()
        self._accepting = Accepting(topic, secrets.token_bytes(16), pool_bytes=pool_bytes)
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
        if secure is not None:
            secure(self._context, router)
        self.endpoints: list[str] = []
        for address in bind.split(","):
            try:
                router.bind(address.strip())
            except zmq.ZMQError as e:
                self._context.destroy(0)
                raise BrokerError(f"cannot listen on {address}: {e.strerror or e}") from None
            self.endpoints.append(router.get_string(zmq.LAST_ENDPOINT))
        self._router = router
        self._thread = threading.Thread(target=self._run, name="direct-consumer", daemon=True)
        self._thread.start()

    # --- as Consumer -----------------------------------------------------------------------------------------------

    def receive(self, timeout: float | None = None) -> Delivery | None:
        """The next batch as a range of its own, or None at the time-out (seconds)."""
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
        """The batch is stored; or it is ``dead`` and goes to the dead letters, durably, before its producer hears."""
        with self._lock:
            if dead:
                self._bury(self._accepting.dead_letter(delivery, reason), delivery)
            else:
                self._accepting.settle(delivery)
                self._settled += 1
            self._lock.notify_all()
        self._wake()

    def nack(self, delivery: Delivery, reason: str, dead: bool = False, failure: bool = True) -> None:
        with self._lock:
            if dead:
                letter = self._accepting.dead_letter(delivery, reason)
            else:
                letter = self._accepting.nack(delivery, failure, self._clock())
            if letter is not None:
                self._bury(letter._replace(reason=reason), delivery)
            self._lock.notify_all()
        self._wake()

    def _bury(self, letter: DeadLetter | None, delivery: Delivery) -> None:
        if letter is None:
            return
        if self._letters is None:
            _log.error(
                "a batch cannot be stored and there is no place for dead letters: its producer keeps it",
                extra={"session": letter.session, "seq": letter.seq, "reason": letter.reason},
            )
            self._accepting.nack(delivery, False, self._clock())
            return
        origin = {"session": letter.session, "seq": letter.seq, "rows": letter.rows, "reason": letter.reason[:1000]}
        head = json.dumps(origin, separators=(",", ":")).encode()
        payload = b"GZDL" + len(head).to_bytes(4, "little") + head + letter.payload
        now_ms, crc = int(time.time() * 1000), crc32c(payload)
        self._letters.commit(
            [(KIND_DATA, 0, self._next_letter, letter.session, letter.seq, 0, letter.rows, now_ms, crc, payload)]
        )
        self._next_letter += 1
        self._accepting.settle(delivery)

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
        """Whether an insert of this batch may be begun: its producer was heard lately."""
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
        self._context.term()
        if self._letters is not None:
            self._letters.close(b"")

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
        receive, send = receiver(self._router), sender(self._router)
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

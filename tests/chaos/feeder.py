"""``python -m tests.chaos.feeder``: streams known rows until enough are acknowledged, in as many lives as it takes."""

from __future__ import annotations

import argparse
import json
import random
import signal
import threading
import time
from pathlib import Path

from tests.chaos import journal
from tests.chaos.contents import payload
from zmqbroker.client import Producer, Receipt


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--connect", required=True)
    parser.add_argument("--journal", type=Path, required=True)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--rate", type=float, default=100_000, help="rows a second")
    parser.add_argument("--until", type=Path, help="go on beyond the rows until this file exists")
    args = parser.parse_args()
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    feed(args.connect, args.journal, args.rows, args.rate, stopping, args.until)


def feed(
    url: str, path: Path, rows_wanted: int, rate: float, stopping: threading.Event, until: Path | None = None
) -> None:
    """Each life is a session of its own. Ends when ``rows_wanted`` rows are acknowledged over all lives."""
    acked_rows = journal.read(path).acked_rows
    lock = threading.Lock()
    with path.open("ab", buffering=0) as out:
        out.write(b"\n")  # a torn line of an earlier life ends here
        producer = Producer(url, name="feeder")
        rows_of: dict[int, int] = {}

        def write(*event: object) -> None:
            with lock:
                out.write(json.dumps(event).encode() + b"\n")

        def acknowledged(receipt: Receipt) -> None:
            nonlocal acked_rows
            write("acked", producer.session, receipt.seq)
            acked_rows += rows_of.pop(receipt.seq)

        sizes = random.Random(producer.session)
        started_s, sent_rows = time.monotonic(), 0
        while not stopping.is_set():
            missing = rows_wanted - acked_rows - sum(list(rows_of.values()))
            if missing <= 0 and until is not None and not until.exists():
                missing = 5000
            if missing <= 0:
                if not rows_of:
                    break
                time.sleep(0.01)
                continue
            rows = min(missing, sizes.choice((1, 50, 500, 1000, 1000, 2000, 5000)))
            base_ms = time.time_ns() // 1_000_000

            def make(session: int, seq: int, base_ms: int = base_ms, rows: int = rows) -> bytes:
                rows_of[seq] = rows
                write("sent", session, seq, base_ms, rows)
                return payload(session, seq, base_ms, rows)

            producer.publish(make, rows).add_done_callback(acknowledged)
            sent_rows += rows
            ahead_s = sent_rows / rate - (time.monotonic() - started_s)
            if ahead_s > 0:
                stopping.wait(ahead_s)
        producer.close(10.0 if stopping.is_set() else 120.0)


if __name__ == "__main__":
    main()

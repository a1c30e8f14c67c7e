"""``telemetry-streamer``: the command line."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import import_module
from typing import Final

from producers.fleet import DEFAULT_METRICS, metrics_named
from producers.values import parse_time_ns
from telemetry.batch import COMPRESSIONS, ROWS_MAX
from telemetry.options import (
    Command,
    CommandLine,
    Option,
    Positional,
    common,
    duration_seconds,
    flag,
    host_port,
    non_negative_float,
    non_negative_int,
    path,
    positive_int,
    size_bytes,
    url,
    usage_errors,
)
from zmqbroker.client.options import CURVE_OPTIONS

PROG: Final = "telemetry-streamer"


def shard(text: str) -> tuple[int, int]:
    """``i/n``: part i (from 0) of n; n alone takes i from the ordinal at the end of the host name (StatefulSet)."""
    index, slash, count = text.rpartition("/")
    if not slash:
        index = os.environ.get("HOSTNAME", "").rpartition("-")[2]
    try:
        part, parts = int(index), int(count)
    except ValueError:
        raise ValueError("is not i/n, as in 0/3 (or n alone on a host whose name ends in -i)") from None
    if not 0 <= part < parts:
        raise ValueError("is not i/n with i from 0 to n-1")
    return part, parts


def label(text: str) -> tuple[str, str]:
    """``NAME=VALUE``."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier() or not value:
        raise ValueError("is not NAME=VALUE")
    return name, value


def moment(text: str) -> datetime:
    """A time: ISO 8601 or unix."""
    time_ns = parse_time_ns(text)
    if time_ns is None:
        raise ValueError("is not a time such as 2025-07-18T20:42:34Z")
    return datetime.fromtimestamp(time_ns / 1e9, UTC)


def share_of_time(text: str) -> float:
    """Above 0, at most 1."""
    part = float(text)
    if not 0 < part <= 1:
        raise ValueError("is not a share above 0 and at most 1, as in 0.5")
    return part


def batch_rows(text: str) -> int:
    """Rows a batch, within what a batch holds."""
    rows = positive_int(text)
    if rows > ROWS_MAX:
        raise ValueError(f"is above {ROWS_MAX}, the most a batch holds")
    return rows


BROKER: Final = (
    Option(
        "connect",
        "address of the broker, or of a collector that binds",
        "tcp://127.0.0.1:5555",
        url,
        env="ZMQBROKER_URL",
    ),
    *CURVE_OPTIONS,
    Option("topic", "topic to publish to", "gpu-telemetry"),
    Option("compression", "compression of batches", "lz4", choices=tuple(COMPRESSIONS)),
    Option("batch-rows", "rows a batch at most", 20_000, batch_rows, "rows"),
    Option(
        "state-dir",
        "what must outlive the process: rejects, progress, spool "
        "(default: telemetry-streamer in the user's state folder)",
        None,
        path,
    ),
    Option("producer", "class that publishes (package.module:Class)", "zmqbroker.client:Producer"),
)

PACE: Final = (
    Option("rate", "rows a second of each worker; 0 is no limit", 0.0, non_negative_float, "rows/s"),
    Option("duration", "end after this time; 0 is no limit", 0.0, duration_seconds, "seconds"),
    Option("interval", "begin a pass every so often; 0 is one pass, or with --loop one after the other", 0.0,
           duration_seconds, "seconds"),
    Option("loop", "begin again at the end", False, flag),
    Option("timestamps", "time of a row: now (when it is processed), shift (the file's own, moved so that its last "
           "is now), original", "now", choices=("now", "shift", "original")),
    Option("workers", "worker processes", max(1, min(4, os.cpu_count() or 1)), positive_int, "processes"),
    Option("shard", "play part i (from 0) of n, so that n streamers share the files", (0, 1), shard, metavar="I/N"),
)  # fmt: skip

READING: Final = (
    Option("rejects", "file that keeps bad rows (default: rejects.ndjson in the state folder)", None, path),
    Option("strict", "stop at the first bad row", False, flag),
    Option("map", "YAML file that says what the columns mean", None, path),
    Option("exporter-version", "version of the exporter that wrote the file, where its labels do not tell", None),
    Option("follow", "at the end of a file wait for more, also when it is rotated or cut short", False, flag),
    Option("resume", "go on where the last run over this file ended, without gap or repeat", False, flag),
    Option("pass", "name of the pass that --resume goes on with; a new name sends the file anew", "1"),
    Option("explain", "print what is understood of the files, and end", False, flag),
)

FLEET: Final = (
    Option("hosts", "hosts of the fleet", 4, positive_int, "hosts"),
    Option("gpus-per-host", "GPUs of each host", 8, positive_int, "GPUs"),
    Option(
        "metrics", "metrics of each GPU: how many, or their names", DEFAULT_METRICS, metrics_named, metavar="N|NAMES"
    ),
    Option("seed", "the same seed plays the same fleet", 1, non_negative_int),
    Option("interval", "time between two samples of a metric", 1.0, duration_seconds, "seconds"),
    Option(
        "duration",
        "end after this time (with --out or --fast: simulated time); 0 is no limit",
        0.0,
        duration_seconds,
        "seconds",
    ),
    Option("rows", "end after so many rows; 0 is no limit", 0, non_negative_int, "rows"),
    Option("start", "time of the first sample, with --out or --fast (default: now)", None, moment),
    Option("fast", "do not wait between samples: rows carry simulated time from --start on", False, flag),
    Option("exporter", "serve the fleet as a dcgm-exporter would, here, instead of publishing", "", host_port),
    Option(
        "generation",
        "labels and units of --exporter: classic, or 4.9 for those since that version",
        "classic",
        choices=("classic", "4.9"),
    ),
    Option("out", "write a DCGM CSV here (- is standard output) instead of publishing", None, path, metavar="FILE"),
    Option("rate", "rows a second of each worker; 0 is no limit", 0.0, non_negative_float, "rows/s"),
    Option("workers", "worker processes, which share the hosts", 1, positive_int, "processes"),
    Option("shard", "play part i (from 0) of n of the fleet", (0, 1), shard, metavar="I/N"),
)

LIVE: Final = (
    Option(
        "spool",
        "disk for rows while the broker is away; 0 is none, and rows are lost then",
        1 << 30,
        size_bytes,
        "bytes",
    ),
    Option(
        "catchup-share", "share of the broker's time that spooled rows may take beside new ones", 0.5, share_of_time
    ),
    Option("linger", "longest time that rows wait for others of their batch", 0.2, duration_seconds, "seconds"),
    Option("duration", "end after this time; 0 is no limit", 0.0, duration_seconds, "seconds"),
    Option(
        "label",
        "a label for every row, NAME=VALUE (cluster=lab); may be repeated",
        (),
        label,
        multiple=True,
        metavar="NAME=VALUE",
    ),
)

DCGM: Final = (
    *LIVE,
    Option("interval", "period of scrapes of each address", 1.0, duration_seconds, "seconds"),
    Option(
        "scrape-timeout",
        "longest wait for an answer; 0 is the interval, between 1 s and 10 s",
        0.0,
        duration_seconds,
        "seconds",
    ),
    Option("exporter-version", "version of the exporters, where neither labels nor help texts tell", None),
    Option("shard", "scrape part i (from 0) of n of the addresses", (0, 1), shard, metavar="I/N"),
)

NVML: Final = (
    *LIVE,
    Option("interval", "period of readings", 1.0, duration_seconds, "seconds"),
    Option("hostname", "name of this host (default: its own)", ""),
    Option("pcie", "read PCIe throughput where GPM does not tell it: waits 40 ms a GPU and reading", False, flag),
)

SERVE: Final = (
    Option("upload-max", "largest upload", 4 << 30, size_bytes, "bytes"),
    Option("waiting", "uploads that may wait or run; more are sent away with 503", 16, positive_int, "uploads"),
    Option("workers", "uploads that are read at the same time", 2, positive_int, "threads"),
    Option("keys-file", "API keys, a line NAME SCOPES SHA256 each; needed beyond loopback", None, path),
    Option("rejects", "file that keeps bad rows (default: rejects.ndjson in the state folder)", None, path),
)

COMMAND_LINE: Final = CommandLine(
    PROG,
    "STREAMER",
    "Stream GPU telemetry to the broker.",
    (*common("127.0.0.1:8081"), *BROKER),
    {
        "csv": Command(
            "play CSV files: DCGM long format, wide formats, _field/_value",
            (*PACE, *READING),
            (Positional("files", "files, globs, or - for standard input", "+"),),
        ),
        "dcgm": Command(
            "scrape dcgm-exporters on a period",
            DCGM,
            (Positional("urls", "addresses: HOST, HOST:PORT or URL of /metrics", "+"),),
        ),
        "nvml": Command("read this host's GPUs through NVIDIA's management library", NVML),
        "serve": Command("take CSV files over HTTP: POST /api/v1/csv/upload", SERVE),
        "simulate": Command("play a made-up fleet, to the broker or into a DCGM CSV file", FLEET),
    },
)

# Imported when it is run: the agent of a host has no use for what reads files, and pays for it in memory.
_RUNNERS: Final = {
    "csv": "producers.csv_command",
    "dcgm": "producers.dcgm",
    "nvml": "producers.nvml",
    "serve": "producers.serve",
    "simulate": "producers.simulate",
}


def main(argv: list[str] | None = None) -> int:
    """Entry of the console script; the exit code."""
    args = COMMAND_LINE.parse(argv)
    args.pass_ = getattr(args, "pass", "")
    run: Callable[[argparse.Namespace], int] = import_module(_RUNNERS[args.command]).run
    with usage_errors(PROG):
        return run(args)
    raise AssertionError("unreachable")


if __name__ == "__main__":
    raise SystemExit(main())

"""parse: one worker, CSV to packed batches; and the replay of a small file, taken by a broker, with two workers.

``csv_rows_per_s``: a file of distinct rows, read, parsed and packed (timestamp, metric, value and every device column;
lz4) in one thread, by CPU seconds of the process, without a broker. Baseline: pyarrow's streaming reader over the same
columns, one thread, by the same clock; it reads into plain columns and makes no batches. The rows stand scrape after
scrape, as an export writes them.
``csv_shuffled_rows_per_s``: the same rows in no order at all, where nothing can be learned from the line before.
``loop_rows_per_s``: ``telemetry-streamer csv --loop`` with two workers, rows that a broker has made durable.
"""

from __future__ import annotations

import itertools
import random
import shutil
import time
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

import orjson
import pyarrow as pa
import pyarrow.csv as pacsv

from loadtest.bench.fleet_file import fleet_csv
from loadtest.bench.frame import Figure, Settings, compare
from loadtest.bench.processes import Program, free_port, programs, start_broker
from producers.batcher import Batcher, batch_parts
from producers.blocks import FileBlocks, block_count
from producers.csv import BlockParser
from producers.identities import Identities
from producers.source import Source, block_bytes_for, open_source, pieces_of

ROWS: Final = 2_000_000
SHUFFLED_ROWS: Final = 500_000
SEED: Final = 7
BATCH_ROWS: Final = 20_000
LOOP_ROWS: Final = 2_480
LOOP_S: Final = 5.0


def run(settings: Settings) -> Iterator[Figure]:
    """Three figures."""
    path, rows = fleet_csv(settings, ROWS)
    yield beside_pyarrow(settings, "csv_rows_per_s", path, rows)
    few, rows = fleet_csv(settings, SHUFFLED_ROWS)
    yield beside_pyarrow(settings, "csv_shuffled_rows_per_s", shuffled(few), rows)
    small, _ = fleet_csv(Settings(settings.directory, scale=LOOP_ROWS / 10_000), 10_000)
    rates = [loop_rate(settings, small) for _ in range(settings.runs)]
    yield compare("parse", "loop_rows_per_s", "rows/s", rates)


def beside_pyarrow(settings: Settings, metric: str, path: Path, rows: int) -> Figure:
    """Rows a CPU second that are parsed and packed, beside those that pyarrow reads."""
    ours, theirs = [], []
    for _ in range(settings.runs):
        theirs.append(rows / baseline_cpu_s(path, rows))
        ours.append(rows / parse_cpu_s(path, rows))
    return compare("parse", metric, "rows/s", ours, "pyarrow reading the same columns, one thread", theirs)


def shuffled(path: Path) -> Path:
    """The same file with its lines in no order; the same one for the same file."""
    header, *lines = path.read_bytes().splitlines(keepends=True)
    random.Random(SEED).shuffle(lines)
    out = path.with_name(f"{path.stem}-shuffled.csv")
    out.write_bytes(header + b"".join(lines))
    return out


def parse_cpu_s(path: Path, rows: int) -> float:
    """CPU seconds of reading, parsing and packing the whole file."""
    source, _ = open_source(str(path))
    started = time.process_time()
    packed = sum(rows_of for rows_of, _ in packed_batches(source))
    seconds = time.process_time() - started
    assert packed == rows, (packed, rows)
    return seconds


def packed_batches(source: Source) -> Iterator[tuple[int, bytes]]:
    """(rows, batch) of a whole file, as a worker makes them."""
    identities = Identities()
    parser = BlockParser(source.mapping, identities, want_times=True)
    batcher = Batcher(identities)
    block_bytes = block_bytes_for(source, BATCH_ROWS, 1)
    piece_bytes = block_bytes // pieces_of(block_bytes)
    seqs = itertools.count(1)
    with FileBlocks(source.path, piece_bytes, source.data_start, source.size, reuse=True) as blocks:
        for block in blocks.read(0, block_count(source.size, piece_bytes)):
            columns = parser.parse(block.data).columns
            for start, end in batch_parts(columns.rows, BATCH_ROWS):
                part = columns.part(start, end)
                pack = partial(batcher.pack, part, part.timestamp_ns)
                yield part.rows, pack(1, next(seqs))


def baseline_cpu_s(path: Path, rows: int) -> float:
    """CPU seconds of pyarrow's streaming reader over the columns that a batch needs."""
    names = ["timestamp", "metric_name", "gpu_id", "device", "uuid", "modelName", "Hostname"]
    names += ["container", "pod", "namespace", "value"]
    options = pacsv.ConvertOptions(include_columns=names, column_types={"value": pa.float64()})
    started = time.process_time()
    reader = pacsv.open_csv(path, pacsv.ReadOptions(use_threads=False), convert_options=options)
    read = sum(batch.num_rows for batch in reader)
    seconds = time.process_time() - started
    assert read == rows, (read, rows)
    return seconds


def loop_rate(settings: Settings, path: Path) -> float:
    """Rows a second that a broker has made durable, over the middle of a run of :data:`LOOP_S`."""
    directory = settings.directory / "parse"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    with programs() as started:
        broker, url = start_broker(started, directory)
        broker.wait_ready()
        port = free_port()
        seconds = max(1.0, LOOP_S * settings.scale)
        args = ["csv", str(path), "--loop", "--workers", "2", "--connect", url, "--state-dir", str(directory / "state")]
        streamer = Program("streamer", "producers.cli", args, directory, port)
        started.append(streamer)
        streamer.wait_ready()
        before, began = acked(port), time.perf_counter()
        time.sleep(seconds)
        rate = (acked(port) - before) / (time.perf_counter() - began)
    shutil.rmtree(directory, ignore_errors=True)
    return rate


def acked(port: int) -> int:
    """Rows that the streamer knows to be durable."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/status", timeout=5) as answer:
        return int(orjson.loads(answer.read())["rows_acked"])

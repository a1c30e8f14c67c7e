"""The archive: every row once, whatever is delivered again and wherever it was killed."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers import archive_formats
from consumers.archive import Archiver, ArchiveSettings
from consumers.checkpoint import Directory
from consumers.offsets import Offsets
from telemetry.options import UsageError
from tests.helpers.collector_fakes import ScriptedSource
from tests.helpers.deliveries import NOON_MS, Row, delivery_of, gpu, simple_rows


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 8)), max_size=25), st.lists(st.integers(0, 80), max_size=20)
)
def test_offsets_are_a_set_of_whole_numbers(ranges, probes):
    offsets, plain = Offsets(), set()
    for first, size in ranges:
        offsets.add(first, first + size)
        plain |= set(range(first, first + size + 1))
    assert offsets.contains(np.array(probes, dtype=np.uint64)).tolist() == [probe in plain for probe in probes]
    assert {n for first, last in offsets.ranges() for n in range(first, last + 1)} == plain
    flat = [edge for pair in offsets.ranges() for edge in pair]
    assert all(b > a + 1 for (_, a), (b, _) in zip(offsets.ranges(), offsets.ranges()[1:])), "neighbours are joined"
    assert flat == sorted(flat)


def deliveries(first: int = 0, count: int = 4, rows: int = 20):
    return [
        delivery_of([(7, n * 2 + b, simple_rows(rows, gpus=12)) for b in range(2)], first=n * 2, range_id=n)
        for n in range(first, first + count)
    ]


def archiver(source: ScriptedSource, root: Path, format: str = "parquet", **settings: object) -> Archiver:
    made = Archiver(source, Directory(root, format), ArchiveSettings(**settings), log=logging.getLogger("test"))
    source.set_credit(100)
    return made


def take_all(one: Archiver, source: ScriptedSource) -> None:
    while (delivery := source.receive(0)) is not None:
        one.take(delivery)
    one.commit()


def rows_in(root: Path, format: str = "parquet") -> Counter:
    """Every archived row, by address and value, with what its path says."""
    found: Counter = Counter()
    if format == "parquet":
        for path in root.glob("day=*/host=*/*.parquet"):
            for row in pq.ParquetFile(path).read().to_pylist():
                assert path.parent.name == f"host={row['hostname']}"
                assert path.parent.parent.name == f"day={row['timestamp'].date()}"
                found[row["_session"], row["_seq"], row["value"]] += 1
    else:
        for path in root.glob("*.jsonl"):
            for line in path.read_text().splitlines():
                row = json.loads(line)
                assert path.stem == row["gpu_id"]
                found[row["_session"], row["_seq"], row["value"]] += 1
    return found


def expected(count: int, rows: int = 20) -> Counter:
    return Counter({(7, seq, float(i)): 1 for seq in range(2 * count) for i in range(rows)})


@pytest.mark.parametrize("format", ["parquet", "jsonl"])
def test_every_row_is_archived_once_and_acknowledged_after_the_checkpoint(tmp_path, format):
    source = ScriptedSource(deliveries())
    one = archiver(source, tmp_path, format, rows_max=100)
    while (delivery := source.receive(0)) is not None:
        one.take(delivery)
        assert len(source.acks) * 40 <= one.archived_rows
    one.commit()
    assert rows_in(tmp_path, format) == expected(4)
    assert len(source.acks) == 4
    assert one.archived_rows == 160


@pytest.mark.parametrize("format", ["parquet", "jsonl"])
def test_what_comes_again_in_other_bounds_is_recognised_by_its_offsets(tmp_path, format):
    source = ScriptedSource(deliveries(count=3))
    one = archiver(source, tmp_path, format)
    take_all(one, source)
    one._directory.close()
    again = ScriptedSource(
        [
            delivery_of([(7, seq, simple_rows(20, gpus=12)) for seq in range(3, 8)], first=3, range_id=9),
            *deliveries(first=1, count=1),
        ]
    )
    other = archiver(again, tmp_path, format)
    take_all(other, again)
    assert rows_in(tmp_path, format) == expected(4)
    assert other.skipped_records == 5
    assert len(again.acks) == 2


class Killed(BaseException):
    pass


@pytest.mark.parametrize("format", ["parquet", "jsonl"])
@pytest.mark.parametrize("where", ["before-checkpoint", "before-finish", "in-finish", "before-ack"])
def test_a_kill_at_any_point_of_a_commit_neither_loses_nor_doubles(tmp_path, format, where, monkeypatch):
    source = ScriptedSource(deliveries(count=1))
    one = archiver(source, tmp_path, format)
    take_all(one, source)
    second = ScriptedSource(deliveries(first=1, count=2))
    one._source = second
    second.set_credit(100)

    def killed(*_: object, **__: object) -> None:
        raise Killed

    if where == "before-checkpoint":
        monkeypatch.setattr(Directory, "write", killed)
    elif where == "before-finish":
        monkeypatch.setattr(type(one._format), "finish", killed)
    elif where == "in-finish":
        monkeypatch.setattr(archive_formats, "sync_directory", killed)
    else:
        monkeypatch.setattr(ScriptedSource, "ack", killed)
    with pytest.raises(Killed):
        take_all(one, second)
    monkeypatch.undo()
    one._directory.close()
    again = ScriptedSource(deliveries(first=1, count=2))
    other = archiver(again, tmp_path, format)
    take_all(other, again)
    assert rows_in(tmp_path, format) == expected(3)
    assert len(again.acks) == 2


def test_a_commit_is_made_after_its_time_or_when_no_more_credit_is_left(tmp_path):
    now = [0.0]
    source = ScriptedSource(deliveries(count=5))
    one = Archiver(
        source,
        Directory(tmp_path, "parquet"),
        ArchiveSettings(every_s=30, credit=3),
        log=logging.getLogger("t"),
        clock=lambda: now[0],
    )
    source.set_credit(3)
    one.take(source.receive(0))
    one.take(None)
    assert one.commits == 0
    now[0] = 31.0
    one.take(None)
    assert one.commits == 1
    for _ in range(3):
        one.take(source.receive(0))
    assert one.commits == 2, "three held and none more allowed: waiting would be for ever"


def test_rejected_rows_are_left_out_and_undecodable_batches_are_dead(tmp_path):
    bad = Row(NOON_MS, gpu(0), "m", float("nan"))
    delivery = delivery_of([(1, 1, [*simple_rows(3), bad]), (1, 2, simple_rows(2))])
    delivery.bodies[1] = b"garbage"
    source = ScriptedSource([delivery])
    one = archiver(source, tmp_path)
    take_all(one, source)
    assert sum(rows_in(tmp_path).values()) == 3
    assert source.acks[0][1:3] == (1, [1])


def test_a_directory_serves_one_process_and_one_format(tmp_path):
    one = archiver(ScriptedSource([]), tmp_path)
    with pytest.raises(UsageError, match="another archive process"):
        archiver(ScriptedSource([]), tmp_path)
    source = ScriptedSource(deliveries(count=1))
    one._source = source
    source.set_credit(9)
    take_all(one, source)
    one._directory.close()
    with pytest.raises(UsageError, match="holds a parquet archive"):
        archiver(ScriptedSource([]), tmp_path, "jsonl")
    (tmp_path / "_checkpoint.json").write_text("{")
    with pytest.raises(UsageError, match="cannot be read"):
        archiver(ScriptedSource([]), tmp_path)


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b", "", "x" * 400, "ü€", "."])
def test_no_name_leads_out_of_the_archive(tmp_path, name):
    from telemetry.batch import Device

    row = Row(NOON_MS, Device(uuid=name or "g", hostname=name), "m", 1.0)
    for format in ("parquet", "jsonl"):
        root = tmp_path / format
        source = ScriptedSource([delivery_of([(1, 1, [row])])])
        take_all(archiver(source, root, format), source)
        kept = [p for p in tmp_path.rglob("*") if p.suffix in (".parquet", ".jsonl")]
        assert all(p.is_relative_to(tmp_path) for p in kept)
    assert len([p for p in tmp_path.rglob("*") if p.suffix in (".parquet", ".jsonl")]) == 2


def test_json_lines_are_readable_one_by_one(tmp_path):
    source = ScriptedSource(
        [delivery_of([(1, 1, [Row(NOON_MS, gpu(0, pod="train-7"), "DCGM_FI_DEV_GPU_TEMP", 41.5)])])]
    )
    take_all(archiver(source, tmp_path, "jsonl"), source)
    (line,) = (tmp_path / "GPU-0000.jsonl").read_text().splitlines()
    row = json.loads(line)
    assert row["timestamp"] == "2025-11-20T12:00:00.000Z"
    assert (row["metric_name"], row["value"], row["pod"]) == ("DCGM_FI_DEV_GPU_TEMP", 41.5, "train-7")

"""Lines that repeat but for time and value: read by comparing memory, and never otherwise than line by line."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from producers.csv import BlockParser
from producers.identities import Identities
from producers.mapping import detect
from producers.repeats import LINES_MAX, RepeatedLines

HEADER = "timestamp,metric_name,gpu_id,uuid,Hostname,value,labels_raw"
HOST = "host-1"
GPUS = 5
METRICS = ("DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_DEV_SM_CLOCK", "a metric of my own")


def line(second, gpu, metric, value, *, time=None, pod="train"):
    cells = [time or f"2025-07-18T20:{second // 60:02}:{second % 60:02}Z", metric, str(gpu), f"GPU-{gpu}", HOST]
    labels = f'gpu=""{gpu}"",pod=""{pod}""'
    return ",".join(f'"{cell}"' for cell in [*cells, value, labels]).encode() + b"\n"


def scrape(second, **changes):
    return [line(second, gpu, metric, str(second * gpu + 0.5), **changes) for metric in METRICS for gpu in range(GPUS)]


def parser(*, want_times=True):
    sample = scrape(0)[0].decode()
    return BlockParser(detect(HEADER, [sample], source="test.csv"), Identities(), want_times=want_times)


def rows_of(reader, parsed):
    columns = parsed.columns
    devices, metrics = reader._identities.devices, reader._identities.metrics
    times = [None] * columns.rows if columns.timestamp_ns is None else columns.timestamp_ns.tolist()
    return [
        (devices[device].uuid, devices[device].pod, metrics[metric], value, time)
        for device, metric, value, time in zip(
            columns.device.tolist(), columns.metric.tolist(), columns.value.tolist(), times, strict=True
        )
    ]


def taught(*, want_times=True):
    """A parser that has met the fleet's lines."""
    reader = parser(want_times=want_times)
    for second in range(3):
        reader.parse(b"".join(scrape(second)))
    return reader


def is_repeat(reader, data):
    """Whether the block is read by comparing, and not cell by cell."""
    assert reader._repeated is not None
    return reader._repeated.read(data) is not None


def usual(*, want_times=True):
    """A parser that has met them too, and reads every block cell by cell."""
    reader = parser(want_times=want_times)
    reader._repeated = None
    reader.parse(b"".join(scrape(0)))
    return reader


def usually(data, *, want_times=True):
    reader = usual(want_times=want_times)
    return rows_of(reader, reader.parse(data))


ORDERS = {
    "scrape after scrape": [row for second in range(10, 40) for row in scrape(second)],
    "from the middle of a scrape": [row for second in range(10, 40) for row in scrape(second)][7:],
    "series after series": [
        line(second, gpu, metric, str(second)) for metric in METRICS for gpu in range(GPUS) for second in range(60)
    ],
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("want_times", [True, False])
def test_known_lines_in_a_regular_order_are_read_by_comparing_them(order, want_times):
    data = b"".join(ORDERS[order])
    reader = taught(want_times=want_times)
    assert is_repeat(reader, data)
    assert rows_of(reader, reader.parse(data)) == usually(data, want_times=want_times)


def test_a_line_that_is_missing_or_new_label_text_breaks_the_order_once():
    rows = [row for second in range(10, 100) for row in scrape(second)]
    del rows[50]
    reader = taught()
    assert is_repeat(reader, b"".join(rows))
    rows[100:115] = scrape(11, pod="infer")
    data = b"".join(rows)
    assert not is_repeat(reader, data)
    assert rows_of(reader, reader.parse(data)) == usually(data)
    reader.parse(b"".join(scrape(12, pod="infer")))
    # Old label text, then new: the order is found again without what is not there any more.
    assert is_repeat(reader, data)
    assert is_repeat(reader, b"".join(row for second in range(40) for row in scrape(second, pod="infer")))
    assert rows_of(reader, reader.parse(data)) == usually(data)


@pytest.mark.parametrize(
    "changed",
    {
        "no number": line(9, 2, METRICS[0], "many"),
        "no value": line(9, 2, METRICS[0], ""),
        "a quote in the value": line(9, 2, METRICS[0], '5""'),
        "another cell in the value": line(9, 2, METRICS[0], '5","6'),
        "no time": line(9, 2, METRICS[0], "5", time="2025-07-18T20:42:3xZ"),
        "another cell in the time": line(9, 2, METRICS[0], "5", time='2025-07-18T","0:00Z'),
        "a longer time": line(9, 2, METRICS[0], "5", time="2025-07-18T20:42:34.5Z"),
        "cut short": line(9, 2, METRICS[0], "5")[:40] + b"\n",
        "an empty line": b"\n",
        "a lone carriage return": line(9, 2, METRICS[0], "5").replace(b"train", b"tr\rin"),
        "no line end": line(9, 2, METRICS[0], "5")[:-1],
        "nothing": b"",
    }.items(),
    ids=lambda item: item[0],
)
def test_one_line_that_differs_is_judged_as_it_would_be_usually(changed):
    data = b"".join([*scrape(9), changed[1], *(scrape(10) if changed[1].endswith(b"\n") else ())])
    data = data if changed[1] else b""
    reader, other = taught(), usual()
    mine, theirs = reader.parse(data), other.parse(data)
    assert rows_of(reader, mine) == rows_of(other, theirs)
    assert mine.bad == theirs.bad
    assert mine.lines == theirs.lines


PIECES = st.sampled_from([b",", b'"', b'""', b"\r", b"\n", b"0", b"GPU-1", b"2025", b'","', b"", b"\xff"])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2 * GPUS * len(METRICS) * 120), PIECES, st.integers(0, 3)), max_size=4))
def test_a_block_with_bytes_put_anywhere_gives_what_it_gives_usually(edits):
    data = b"".join([*scrape(20), *scrape(21)])
    for at, put, over in edits:
        data = data[:at] + put + data[at + over :]
    reader, other = taught(), usual()
    if not data:
        return
    mine, theirs = reader.parse(data), other.parse(data)
    assert rows_of(reader, mine) == rows_of(other, theirs)
    assert sorted(mine.bad) == sorted(theirs.bad)


def test_units_of_newer_exporters_are_brought_to_classic_ones():
    def block(value):
        row = b'2025-07-18T20:42:34Z,DCGM_FI_DEV_SM_CLOCK,0,GPU-n,h,%d,"DCGM_FI_SYSTEM_DRIVER_VERSION=""580"""\n'
        return row % value * 20

    reader = parser()
    for value in (1_410_000_000, 1_500_000_000):
        reader.parse(block(value))
    assert is_repeat(reader, block(1_980_000_000))
    assert set(reader.parse(block(1_980_000_000)).columns.value.tolist()) == {1980.0}


def test_lines_are_forgotten_with_the_devices_they_name(monkeypatch):
    monkeypatch.setattr("producers.identities.DEVICES_MAX", GPUS)
    reader = taught()
    for block in range(4):
        data = b"".join(line(1, 10 * block + gpu, METRICS[0], "1") for gpu in range(GPUS))
        assert rows_of(reader, reader.parse(data)) == usually(data)


def test_what_does_not_repeat_is_not_tried_on_every_block(monkeypatch):
    """A file in random order: after some blocks hardly any is looked at twice."""
    rng = random.Random(5)
    reader = taught()
    tried = []
    monkeypatch.setattr(RepeatedLines, "_runs", lambda self, data, bounds: tried.append(1))
    for second in range(200):
        rows = scrape(second)
        rng.shuffle(rows)
        reader.parse(b"".join(rows))
    assert 0 < len(tried) < 15


def test_the_lines_remembered_are_bounded(monkeypatch):
    monkeypatch.setattr("producers.repeats.LINES_MAX", 10)
    reader = taught()
    assert reader._repeated is not None
    assert len(reader._repeated._number) == 10 < LINES_MAX
    assert rows_of(reader, reader.parse(b"".join(scrape(5)))) == usually(b"".join(scrape(5)))


def test_a_comma_within_quotes_before_the_value_is_read_the_usual_way(monkeypatch):
    monkeypatch.setattr(__name__ + ".HOST", "host,1")
    data = b"".join(scrape(9))
    reader = taught()
    assert not is_repeat(reader, data)
    assert rows_of(reader, reader.parse(data)) == usually(data)

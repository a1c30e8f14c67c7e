"""The CSV reader: every path of it gives the rows that Python's csv module sees on each line alone."""

import csv
import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from producers.csv import BlockParser
from producers.identities import Identities
from producers.mapping import detect
from producers.values import EMPTY_VALUES, parse_number, parse_time_ns

HEADER = "timestamp,metric_name,gpu_id,uuid,Hostname,value,labels_raw"
ROW = b'2025-07-18T20:42:34Z,DCGM_FI_DEV_GPU_UTIL,0,GPU-a,host-1,41.5,"job=""train"",pci=""x"""\n'


def parser(header=HEADER, sample=(ROW.decode(),), *, want_times=True):
    mapping = detect(header, sample, source="test.csv")
    return BlockParser(mapping, Identities(), want_times=want_times)


def rows_of(reader, parsed):
    """(uuid, host, index, metric, time, value) of each row, for people and comparisons."""
    out = []
    columns = parsed.columns
    for i in range(columns.rows):
        device = reader._identities.devices[columns.device[i]]
        time = None if columns.timestamp_ns is None else int(columns.timestamp_ns[i])
        metric = reader._identities.metrics[columns.metric[i]]
        out.append((device.uuid, device.hostname, device.gpu_index, metric, time, float(columns.value[i])))
    return out


def bad_of(parsed):
    return sorted((bad.line, bad.reason) for bad in parsed.bad)


def decodable(cell: str) -> bool:
    return not any("\udc80" <= char <= "\udcff" for char in cell)


def expected(data: bytes, delimiter=","):
    """The same by Python's csv module, a line at a time."""
    rows, bad = [], []
    lines = data.split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    for number, line in enumerate(lines):
        line = line.removesuffix(b"\r")
        if not line:
            continue
        text = line.decode("utf-8", "surrogateescape")
        feed = iter([text, ""])
        try:
            cells = next(csv.reader(feed, delimiter=delimiter))
        except csv.Error:
            bad.append((number, "ragged"))
            continue
        if next(feed, None) is None:
            bad.append((number, "quote"))
        elif len(cells) != 7:
            bad.append((number, "ragged"))
        elif not all(decodable(cell) for cell in cells[2:5]):
            bad.append((number, "undecodable"))
        elif parse_time_ns(cells[0]) is None:
            bad.append((number, "bad_time"))
        elif not decodable(cells[1]):
            bad.append((number, "undecodable"))
        elif cells[5] in EMPTY_VALUES:
            bad.append((number, "no_value"))
        elif parse_number(cells[5]) is None:
            bad.append((number, "not_a_number"))
        else:
            names = [cell.strip() for cell in cells]
            rows.append((names[3], names[4], names[2], names[1], parse_time_ns(cells[0]), parse_number(cells[5])))
    return rows, sorted(bad)


def test_a_dcgm_row_gives_device_metric_time_and_value():
    reader = parser()
    parsed = reader.parse(ROW)
    assert rows_of(reader, parsed) == [("GPU-a", "host-1", "0", "DCGM_FI_DEV_GPU_UTIL", 1752871354000000000, 41.5)]
    assert reader._identities.devices[0].job == "train"
    assert reader._identities.devices[0].labels == (("pci", "x"),)


def test_bad_rows_are_named_by_line_and_reason_and_the_rest_goes_on():
    data = b"".join(
        (
            ROW,
            b"2025-07-18T20:42:34Z,M,0,GPU-a,host-1\n",
            b"2025-07-18T20:42:34Z,M,0,GPU-\xff,host-1,1,\n",
            b"2025-07-18T20:42:34Z,M,0,GPU-a,host-1,many,\n",
            b"2025-07-18T20:42:34Z,M,0,GPU-a,host-1,,\n",
            b"yesterday,M,0,GPU-a,host-1,1,\n",
            ROW,
        )
    )
    reader = parser()
    parsed = reader.parse(data)
    assert bad_of(parsed) == [
        (1, "ragged"),
        (2, "undecodable"),
        (3, "not_a_number"),
        (4, "no_value"),
        (5, "bad_time"),
    ]
    assert len(rows_of(reader, parsed)) == 2
    assert parsed.lines == 7


def test_an_open_quote_spoils_its_line_and_not_the_file():
    data = ROW + b'2025-07-18T20:42:34Z,M,0,"GPU-a,host-1,1,\n' + ROW * 3
    reader = parser()
    parsed = reader.parse(data)
    assert bad_of(parsed) == [(1, "quote")]
    assert parsed.columns.rows == 4


def test_an_open_quote_on_the_last_line_is_seen():
    reader = parser()
    parsed = reader.parse(ROW + b'2025-07-18T20:42:34Z,M,0,GPU-a,host-1,1,"x\n')
    assert bad_of(parsed) == [(1, "quote")]
    assert parsed.columns.rows == 1


def test_times_are_not_read_where_rows_get_the_present_time():
    reader = parser(want_times=False)
    parsed = reader.parse(b"never,M,0,GPU-a,host-1,1,\n")
    assert parsed.columns.timestamp_ns is None
    assert parsed.columns.rows == 1


@pytest.mark.parametrize("blank", ["9223372036854775794", "2147483632", "140737488355328.0"])
def test_blank_sentinels_stay_in_the_batch_for_the_collector_to_name(blank):
    reader = parser()
    parsed = reader.parse(ROW.replace(b"41.5", blank.encode()))
    assert parsed.columns.value.tolist() == [float(blank)]


def test_newer_exporters_are_told_by_their_labels_and_brought_to_classic_units():
    line = b'2025-07-18T20:42:34Z,DCGM_FI_DEV_SM_CLOCK,0,%s,host-1,%s,"DCGM_FI_%s_VERSION=""580.1"""\n'
    old = line % (b"GPU-old", b"1410", b"DRIVER")
    new = line % (b"GPU-new", b"1410000000", b"SYSTEM_DRIVER")
    blank = line % (b"GPU-new", b"9223372036854775794", b"SYSTEM_DRIVER")
    reader = parser()
    assert reader.parse(old + new + blank).columns.value.tolist() == [1410.0, 1410.0, 9223372036854775794.0]


def test_a_gpu_whose_pod_changes_within_a_block_is_two_devices():
    header = "timestamp,metric_name,uuid,pod,value"
    lines = "".join(f"2025-07-18T20:42:34Z,M,GPU-{i % 3},pod-{i % 2},{i}\n" for i in range(12))
    reader = parser(header, [lines.split("\n")[0]])
    parsed = reader.parse(lines.encode())
    devices = [reader._identities.devices[code] for code in parsed.columns.device]
    assert [(d.uuid, d.pod) for d in devices] == [(f"GPU-{i % 3}", f"pod-{i % 2}") for i in range(12)]
    assert len(reader._identities.devices) == 6


def test_devices_beyond_the_limit_are_forgotten_between_blocks(monkeypatch):
    monkeypatch.setattr("producers.identities.DEVICES_MAX", 3)
    reader = parser("timestamp,metric_name,uuid,value", ["2025-07-18T20:42:34Z,M,GPU-1,1"])
    for block in range(4):
        data = "".join(f"2025-07-18T20:42:34Z,M,GPU-{block}-{i},{i}\n" for i in range(5))
        parsed = reader.parse(data.encode())
        uuids = [reader._identities.devices[code].uuid for code in parsed.columns.device]
        assert uuids == [f"GPU-{block}-{i}" for i in range(5)]
        assert len(reader._identities.devices) == 5


WIDE = "timestamp,gpu_id,hostname,uuid,gpu_utilization,memory_used_mb,power_draw"


def test_a_wide_row_gives_a_sample_a_metric_and_none_for_an_empty_cell():
    row = "2024-01-15T10:30:00Z,0,gpu-node-01,GPU-12345,85.5,45000,\n"
    reader = parser(WIDE, [row, row.replace(",\n", ",350.5\n")])
    parsed = reader.parse((row + row.replace("45000,", "lots,350.5")).encode())
    assert [(metric, value) for *_, metric, _, value in rows_of(reader, parsed)] == [
        ("DCGM_FI_DEV_GPU_UTIL", 85.5),
        ("DCGM_FI_DEV_FB_USED", 45000.0),
        ("DCGM_FI_DEV_GPU_UTIL", 85.5),
        ("DCGM_FI_DEV_POWER_USAGE", 350.5),
    ]
    assert bad_of(parsed) == [(1, "not_a_number")]


NUMBERS = st.one_of(
    st.floats(allow_nan=False).map(repr),
    st.integers(-(2**63), 2**64).map(str),
    st.sampled_from(
        ["", "nan", "NaN", "inf", "-Infinity", "+5", "1_000", "0x10", " 7 ", "1e5", ".5", "5.", "N/A", "1,5"]
    ),
)
CELL = st.text(alphabet='a"\t ,éÿ\r\x00', max_size=5)
TIMES = st.sampled_from(
    ["2025-07-18T20:42:34Z", "2025-07-18T20:42:34.123456789Z", "2025-07-18 20:42:34", "1752871354", "", "soon"]
    + ["2025-07-18T20:42:34+02:00", "1752871354123", "2025/07/18 20:42:34.500", "2025-07-18", "1752871354.25"]
)


def quoted(cell: str) -> str:
    return '"' + cell.replace('"', '""') + '"'


@st.composite
def lines(draw):
    cells = [draw(TIMES), draw(CELL), draw(CELL), draw(CELL), draw(CELL), draw(NUMBERS), draw(CELL)]
    if draw(st.booleans()):
        cells = [quoted(cell) for cell in cells]
    return ",".join(cells).encode().replace("ÿ".encode(), b"\xff") + draw(st.sampled_from([b"\n", b"\r\n", b"\n\n"]))


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.one_of(lines(), st.just(ROW), st.binary(max_size=20).map(lambda b: b + b"\n")), min_size=1, max_size=6)
)
@example([b'"2025-07-18T20:42:34Z"x,M,0,"a"b"c",h,1,\n'])
@example([b"2025-07-18T20:42:34Z,,,,\r,0.0,\n"])
@example([ROW.rstrip(b"\n") + b"\r" + ROW])
@example([b'2025-07-18T20:42:34Z,M,0,"a\n', b'b",h,1,\n', b"\r,\n"])
def test_the_reader_agrees_with_pythons_csv_module_on_any_bytes(parts):
    data = b"".join(parts)
    reader = parser()
    parsed = reader.parse(data)
    rows, bad = expected(data)
    assert bad_of(parsed) == bad
    got = rows_of(reader, parsed)
    assert [row[:5] for row in got] == [(*(cell for cell in row[:4]), row[4]) for row in rows]
    for mine, theirs in zip(got, rows, strict=True):
        assert mine[5] == pytest.approx(theirs[5], rel=1e-15) or (math.isnan(mine[5]) and math.isnan(theirs[5]))

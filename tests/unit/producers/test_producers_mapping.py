"""What the columns of a file are taken for: the formats that people have, without a flag."""

import gzip
import io

import pytest
import zstandard

from producers.csv import BlockParser
from producers.errors import HeaderError, MappingError, SourceError, SourceMissing
from producers.identities import Identities
from producers.labels import make_device, parse_labels
from producers.mapping import detect, from_file
from producers.source import expand, lanes_of, open_source, open_stream
from telemetry.batch import Device


def read(text: str, **options) -> list[tuple[str, str, float]]:
    """(gpu id, metric, value) of each row of a file given as text."""
    header, *lines = text.splitlines()
    mapping = detect(header, lines, source="test.csv", **options)
    identities = Identities()
    parser = BlockParser(mapping, identities, want_times=mapping.timestamp is not None)
    columns = parser.parse("".join(line + "\n" for line in lines).encode()).columns
    return [
        (identities.devices[device].gpu_id, identities.metrics[metric], value)
        for device, metric, value in zip(
            columns.device.tolist(), columns.metric.tolist(), columns.value.tolist(), strict=True
        )
    ]


def test_the_wide_format_with_units_in_the_headings():
    rows = read(
        "timestamp,gpu_id,hostname,uuid,device,modelname,gpu_utilization,memory_utilization,memory_used_mb,"
        "memory_free_mb,temperature,power_draw,sm_clock_mhz,memory_clock_mhz\n"
        "2024-01-15T10:30:00Z,0,gpu-node-01,GPU-12345,nvidia0,NVIDIA H100 80GB HBM3,85.5,70.2,"
        "45000,35000,65.0,350.5,1410,1215\n"
    )
    assert rows == [
        ("GPU-12345", "DCGM_FI_DEV_GPU_UTIL", 85.5),
        ("GPU-12345", "DCGM_FI_DEV_MEM_COPY_UTIL", 70.2),
        ("GPU-12345", "DCGM_FI_DEV_FB_USED", 45000.0),
        ("GPU-12345", "DCGM_FI_DEV_FB_FREE", 35000.0),
        ("GPU-12345", "DCGM_FI_DEV_GPU_TEMP", 65.0),
        ("GPU-12345", "DCGM_FI_DEV_POWER_USAGE", 350.5),
        ("GPU-12345", "DCGM_FI_DEV_SM_CLOCK", 1410.0),
        ("GPU-12345", "DCGM_FI_DEV_MEM_CLOCK", 1215.0),
    ]


def test_the_wide_format_without_a_time():
    rows = read("gpu_id,temperature,utilization,memory_used,power_draw\ngpu_0,72.3,85.5,4096,250.5\n")
    assert rows == [
        ("gpu_0", "DCGM_FI_DEV_GPU_TEMP", 72.3),
        ("gpu_0", "DCGM_FI_DEV_GPU_UTIL", 85.5),
        ("gpu_0", "DCGM_FI_DEV_FB_USED", 4096.0),
        ("gpu_0", "DCGM_FI_DEV_POWER_USAGE", 250.5),
    ]


def test_rows_of_field_and_value():
    rows = read(
        "_time,_measurement,gpu_id,hostname,_field,_value\n"
        "2024-01-15T10:30:00Z,gpu,0,node-1,temperature,65.5\n"
        "2024-01-15T10:30:00Z,gpu,0,node-1,DCGM_FI_DEV_GPU_UTIL,80\n"
    )
    assert rows == [("node-1:0", "DCGM_FI_DEV_GPU_TEMP", 65.5), ("node-1:0", "DCGM_FI_DEV_GPU_UTIL", 80.0)]


def test_an_influx_export_with_annotations(tmp_path):
    path = tmp_path / "influx.csv"
    path.write_text(
        "#group,false,false,true\n#datatype,string,long,dateTime\n#default,_result,,\n"
        ",result,table,_time,_value,_field,uuid\n,,0,2024-01-15T10:30:00Z,65.5,temperature,GPU-1\n"
    )
    source, _ = open_source(str(path))
    assert (source.first_line, source.mapping.shape) == (5, "long")
    assert source.mapping.identity == (("uuid", 6),)


def test_nvidia_smi_queries_with_units_in_headings_and_cells():
    rows = read(
        "timestamp, name, index, uuid, utilization.gpu [%], memory.used [MiB], "
        "clocks.sm [MHz], power.draw [W], pstate\n"
        "2024/01/15 10:30:00.123, NVIDIA H100, 3, GPU-9, 85 %, 45000 MiB, 1410 MHz, 350.50 W, P0\n"
        "2024/01/15 10:30:01.123, NVIDIA H100, 3, GPU-9, [N/A], 45000 MiB, 1410 MHz, 350.50 W, P0\n"
    )
    assert [row[1:] for row in rows[:4]] == [
        ("DCGM_FI_DEV_GPU_UTIL", 85.0),
        ("DCGM_FI_DEV_FB_USED", 45000.0),
        ("DCGM_FI_DEV_SM_CLOCK", 1410.0),
        ("DCGM_FI_DEV_POWER_USAGE", 350.5),
    ]
    assert len(rows) == 7
    assert {row[0] for row in rows} == {"GPU-9"}


def test_semicolons_and_a_byte_order_mark(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbfuuid;temperature\nGPU-1;61\n")
    source, _ = open_source(str(path))
    assert source.mapping.delimiter == ";"
    assert source.mapping.header == ("uuid", "temperature")


def test_text_columns_nobody_knows_are_ignored_and_said_so():
    mapping = detect("uuid,temperature,owner,rack_row", ["GPU-1,61,ann,7"], source="a.csv")
    assert mapping.ignored == ("owner",)
    assert "owner" in mapping.explain()
    assert [metric.name for metric in mapping.metrics] == ["DCGM_FI_DEV_GPU_TEMP", "rack_row"]


@pytest.mark.parametrize(
    ("header", "complaint"),
    [
        ("timestamp,metric_name,value", "no column that identifies a GPU"),
        ("metric_name,uuid", "no value column"),
        ("uuid,hostname,owner", "nor a numeric column"),
    ],
)
def test_a_header_that_lacks_what_is_needed_names_the_line_and_what_it_has(header, complaint):
    with pytest.raises(HeaderError, match=r"x\.csv: line 1 .*" + complaint):
        detect(header, ["1,ann,bob"], source="x.csv")


def test_a_mapping_file_says_what_detection_cannot_know(tmp_path):
    path = tmp_path / "map.yaml"
    path.write_text(
        "delimiter: ','\ntimestamp: when\nidentity: {uuid: card, hostname: box}\nlabels: [owner]\n"
        "metrics:\n  heat: DCGM_FI_DEV_GPU_TEMP\n  watts10: {name: DCGM_FI_DEV_POWER_USAGE, factor: 0.1}\n"
        "constants: {cluster: lab}\n"
    )
    header = "when,card,box,owner,heat,watts10,other"
    mapping = from_file(path, header, [], source="a.csv")
    identities = Identities()
    parser = BlockParser(mapping, identities, want_times=True)
    columns = parser.parse(b"2024-01-15T10:30:00Z,GPU-1,h,ann,61,3500,9\n").columns
    assert columns.value.tolist() == [61.0, 350.0]
    assert identities.devices == [Device(uuid="GPU-1", hostname="h", cluster="lab", labels=(("owner", "ann"),))]
    assert mapping.ignored == ("other",)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("- a list", "must be a YAML mapping"),
        ("identity: {uuid: nowhere}", "no column 'nowhere'"),
        ("identity: {colour: card}", "none of uuid"),
        ("tiemstamp: when", "unknown key 'tiemstamp'"),
        ("metric: when", "metric and value go together"),
        ("identity: [card]", "identity must be a mapping"),
        ("a: [", "is no YAML"),
    ],
)
def test_a_mapping_file_that_says_the_impossible_is_named(tmp_path, text, complaint):
    path = tmp_path / "map.yaml"
    path.write_text(text)
    with pytest.raises(MappingError, match=complaint):
        from_file(path, "when,card,heat", [], source="a.csv")


def test_compressed_files_are_recognised_by_their_content_and_read_alike(tmp_path):
    text = b"uuid,temperature\n" + b"".join(b"GPU-%d,%d\n" % (i, i) for i in range(5000))
    for name, packed in (
        ("a.csv", text),
        ("b.csv", gzip.compress(text)),
        ("c.csv", zstandard.compress(text)),
        ("d.csv", gzip.compress(text[:20000]) + gzip.compress(text[20000:])),
    ):
        path = tmp_path / name
        path.write_bytes(packed)
        source, _ = open_source(str(path))
        assert source.mapping.header == ("uuid", "temperature")
        assert source.seekable == (name == "a.csv")
        with open_stream(str(path)) as stream:
            parts = []
            while piece := stream.read(777):
                parts.append(piece)
            assert b"".join(parts) == text
        assert lanes_of(source, 1000, 4, (0, 1)) != []


def test_a_damaged_archive_is_named(tmp_path):
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(b"uuid,temperature\n" * 20_000)[:-40])
    with pytest.raises(SourceError, match=r"a\.csv\.gz: the gzip data is damaged"), open_stream(str(path)) as stream:
        while stream.read(1 << 20):
            pass


def test_globs_give_each_file_once_and_a_glob_without_match_is_an_error(tmp_path):
    for name in ("b.csv", "a.csv", "c.txt"):
        (tmp_path / name).touch()
    assert expand([f"{tmp_path}/*.csv", f"{tmp_path}/a.csv"]) == [f"{tmp_path}/a.csv", f"{tmp_path}/b.csv"]
    with pytest.raises(SourceMissing, match="no file matches"):
        expand([f"{tmp_path}/*.parquet"])
    with pytest.raises(SourceMissing, match="is a directory"):
        open_source(str(tmp_path))


def test_a_stream_gives_back_what_was_read_beyond_the_header():
    source, rest = open_source("upload", stream=io.BytesIO(b"uuid,temperature\nGPU-1,61\n"))
    assert rest == b"GPU-1,61\n"
    assert not source.seekable or source.size == 0


def test_label_text_is_read_with_escapes_and_up_to_the_first_broken_pair():
    assert parse_labels(r'{a="x",b="q\"uo\\te", c="line\nbreak"}') == {"a": "x", "b": 'q"uo\\te', "c": "line\nbreak"}
    assert parse_labels('a="x",b=oops,c="z"') == {"a": "x"}


def test_both_label_generations_name_the_same_device():
    old = {"gpu": "0", "UUID": "GPU-1", "Hostname": "h", "modelName": "H100", "pod": "p", "exported_pod": "q"}
    new = {"gpu": "0", "uuid": "GPU-1", "hostname": "h", "modelName": "H100", "pod": "p"}
    assert make_device({}, old.items())[:8] == make_device({}, new.items())[:8]
    assert dict(make_device({}, old.items()).labels) == {"exported_pod": "q"}


def test_an_hpc_job_is_the_job_and_the_scrapers_name_a_label():
    device = make_device({"uuid": "GPU-1"}, {"job": "dcgm-exporter", "hpc_job": "4711"}.items())
    assert device.job == "4711"
    assert dict(device.labels) == {"job": "dcgm-exporter"}

"""Pieces of the operator's shell that need no broker."""

from __future__ import annotations

import base64
import csv
import io
import json

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from telemetry.batch import Device, DictionaryEncoder, encode
from zmqbroker.admin.contexts import Contexts
from zmqbroker.admin.places import as_offset, as_time_ms
from zmqbroker.admin.protocol import AdminError, Answer, pack_answer, pack_request, unpack_answer, unpack_request
from zmqbroker.admin.render import render
from zmqbroker.admin.rows import decoded
from zmqbroker.core.state import envelope

ROWS = [
    {"topic": "a", "rows": 1234567, "state": "open", "none": None},
    {"topic": "b[x]", "rows": 2, "state": "stopped"},
]


# -- output


def test_every_format_says_the_same() -> None:
    assert json.loads(render(ROWS, "json")) == ROWS
    assert [json.loads(line) for line in render(ROWS, "ndjson").splitlines()] == ROWS
    assert yaml.safe_load(render(ROWS, "yaml")) == ROWS
    lines = list(csv.DictReader(io.StringIO(render(ROWS, "csv"))))
    assert [(line["topic"], line["rows"]) for line in lines] == [("a", "1234567"), ("b[x]", "2")]


def test_a_table_groups_digits_and_takes_brackets_for_what_they_are() -> None:
    text = render(ROWS, "table")
    assert "1,234,567" in text
    assert "b[x]" in text
    assert "\x1b" not in text


def test_a_table_in_colour_marks_what_is_bad() -> None:
    lines = render(ROWS, "table", color=True).splitlines()
    assert "\x1b[31m" in lines[2]
    assert "\x1b[31m" not in lines[1]


def test_sessions_are_names_not_numbers() -> None:
    assert "12345678901" in render([{"session": 12345678901}], "table")
    assert "12345678901" in render({"session": 12345678901}, "table")


def test_nothing_prints_nothing() -> None:
    assert render([], "table") == ""
    assert render([], "csv") == ""
    assert render([], "ndjson") == ""


# -- the protocol


def test_requests_and_answers_survive_the_way() -> None:
    request = unpack_request(pack_request(7, "topic info", {"topic": "t"}))
    assert request == (7, "topic info", {"topic": "t"})
    assert unpack_answer(pack_answer(7, Answer({"a": 1}, True))) == (7, Answer({"a": 1}, True))
    with pytest.raises(AdminError, match="no such") as e:
        unpack_answer(pack_answer(7, AdminError("not_found", "no such topic", "look")))
    assert (e.value.code, e.value.next_step) == ("not_found", "look")


@given(
    st.binary(max_size=200)
    | st.recursive(st.none() | st.integers() | st.text(), lambda x: st.lists(x)).map(
        lambda value: json.dumps(value).encode()
    )
)
def test_garbage_is_a_bad_request_and_nothing_else(frame: bytes) -> None:
    for unpack in (unpack_request, unpack_answer):
        with pytest.raises(AdminError):
            unpack(frame)


# -- places


def test_places_are_read_as_people_write_them() -> None:
    assert as_offset("17") == 17
    assert as_offset("offset:2000000000") == 2_000_000_000
    assert as_offset("1700000000") is None
    assert as_offset("earliest") is None
    now = lambda: 1000.0
    assert as_time_ms("now-1m", now) == 940_000
    assert as_time_ms("now", now) == 1_000_000
    assert as_time_ms("1700000000.5", now) == 1_700_000_000_500
    assert as_time_ms("1700000000123", now) == 1_700_000_000_123
    assert as_time_ms("2026-01-31T12:00:00Z", now) == as_time_ms("2026-01-31T13:00:00+01:00", now) == 1_769_860_800_000
    assert as_time_ms("2026-01-31", now) == 1_769_817_600_000


@pytest.mark.parametrize("text", ["yesterday", "now-", "now-x", "", "nan", "2026-13-01", "-5"])
def test_other_places_are_refused_with_what_to_say(text: str) -> None:
    with pytest.raises(AdminError) as e:
        as_time_ms(text, lambda: 0.0)
    assert "now-1h" in e.value.next_step


# -- rows


def record(payload: bytes) -> dict:
    return {"partition": 1, "offset": 9, "rows": 2, "payload": base64.b64encode(payload).decode()}


def batch() -> bytes:
    devices = [Device(uuid="GPU-a", hostname="h1"), Device(uuid="GPU-b", hostname="h1")]
    dictionary = DictionaryEncoder().encode(devices, ["DCGM_FI_DEV_GPU_UTIL"])
    times = np.array([10**18, 10**18 + 10**9], dtype=np.int64)
    codes = np.array([0, 1], dtype=np.uint16)
    return encode(1, 2, times, codes, np.zeros(2, np.uint16), np.array([5.0, 7.5]), dictionary, created_ns=1)


def test_batches_become_readable_rows_and_can_be_filtered() -> None:
    rows = decoded([record(batch())], "auto", [])
    assert [(r["partition"], r["offset"], r["value"]) for r in rows] == [(1, 9, 5.0), (1, 9, 7.5)]
    assert rows[0]["metric_name"] == "DCGM_FI_DEV_GPU_UTIL"
    assert [r["value"] for r in decoded([record(batch())], "auto", ["gpu=GPU-b"])] == [7.5]
    assert decoded([record(batch())], "auto", ["gpu=nobody"]) == []
    assert len(decoded([record(batch())], "auto", [], limit=1)) == 1


def test_a_dead_letter_is_decoded_like_what_is_in_it() -> None:
    assert len(decoded([record(envelope({"topic": "t"}, batch()))], "yes", [])) == 2


def test_other_payloads_are_shown_as_text_or_as_bytes() -> None:
    assert decoded([record("grüß Gott".encode())], "auto", [])[0]["payload"] == "grüß Gott"
    assert decoded([record(b"\x00\xff")], "auto", [])[0]["payload"] == "00 ff"
    assert decoded([record("ü".encode() * 150)], "auto", [])[0]["payload"].endswith("…")
    assert "error" in decoded([record(b"text")], "yes", [])[0]
    assert "payload" in decoded([record(batch())], "no", [])[0]


def test_a_filter_without_a_value_is_refused() -> None:
    with pytest.raises(AdminError, match="no filter"):
        decoded([], "auto", ["gpu"])


# -- contexts


def test_contexts_are_kept_and_one_is_selected(tmp_path) -> None:
    contexts = Contexts(tmp_path / "deep" / "contexts.json")
    assert contexts.ls() == []
    assert contexts.selected() is None
    contexts.add("lab", "tcp://lab:5556", None, None)
    contexts.add("prod", "tcp://prod:5556", "/k", "pub")
    assert contexts.selected()["url"] == "tcp://lab:5556"
    contexts.select("prod")
    assert Contexts(contexts.path).selected()["key"] == "/k"
    contexts.rm("prod")
    assert contexts.selected() is None
    with pytest.raises(AdminError, match="no context prod"):
        contexts.select("prod")
    contexts.path.write_text("{")
    with pytest.raises(AdminError, match="cannot read"):
        contexts.ls()

"""Log lines: their form, and what never gets into them."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator

import pytest

from telemetry import logs


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before = list(root.handlers), root.level
    yield io.StringIO()
    root.handlers[:], level = before
    root.setLevel(level)


def test_a_json_line_has_time_level_service_message_and_the_extra_fields(stream: io.StringIO) -> None:
    log = logs.configure("demo", "info", "json", stream)
    log.info("inserted", extra={"rows": 3, "range": "a-b"})
    log.debug("not shown")
    line = json.loads(stream.getvalue())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("ts"))
    named = {"level": "info", "service": "demo", "component": "demo", "msg": "inserted"}
    assert line == {**named, "rows": 3, "range": "a-b"}


def test_an_exception_stays_one_json_line(stream: io.StringIO) -> None:
    log = logs.configure("demo", "info", "json", stream)
    try:
        raise ValueError("broken\nin two")
    except ValueError:
        log.exception("failed")
    assert stream.getvalue().count("\n") == 1
    assert "ValueError: broken" in json.loads(stream.getvalue())["traceback"]


def test_a_text_line_is_for_people(stream: io.StringIO) -> None:
    log = logs.configure("demo", "info", "text", stream)
    log.warning("waiting for store", extra={"reason": "connection refused", "waited_s": 1.25})
    assert re.fullmatch(
        r'\d\d:\d\d:\d\d\.\d{3} WARNING waiting for store reason="connection refused" waited_s=1.25\n',
        stream.getvalue(),
    )


def test_auto_is_json_where_no_terminal_is(stream: io.StringIO) -> None:
    logs.configure("demo", "info", "auto", stream).info("x")
    assert stream.getvalue().startswith("{")


@pytest.mark.parametrize("format", ["json", "text"])
def test_secrets_never_get_out_not_even_in_tracebacks_fields_or_urls(stream: io.StringIO, format: str) -> None:
    logs.hide('pa"ss\\word')
    logs.hide(("first-key", None, "second-key"))
    log = logs.configure("demo", "info", format, stream)
    try:
        raise ValueError('cannot log in with pa"ss\\word')
    except ValueError:
        log.exception('connecting with pa"ss\\word', extra={"key": "first-key", "keys": ["second-key"]})
    log.info("at http://user:hunter22@store:8123/x and tcp://:hunter33@b:1")
    text = stream.getvalue()
    assert "http://user:***@store:8123/x" in text
    for secret in ('pa"ss', "ss\\\\word", "first-key", "second-key", "hunter"):
        assert secret not in text


def test_a_short_secret_does_not_wipe_out_the_log() -> None:
    logs.hide("a")
    assert logs.redacted("a banana") == "a banana"


def test_configuring_twice_does_not_write_twice(stream: io.StringIO) -> None:
    logs.configure("demo", "info", "json", stream)
    logs.configure("demo", "info", "json", stream).info("once")
    assert stream.getvalue().count("once") == 1


def test_modules_of_the_parts_log_at_the_chosen_level_and_libraries_only_warnings(stream: io.StringIO) -> None:
    logs.configure("demo", "debug", "json", stream)
    logging.getLogger("consumers.insert").debug("part")
    logging.getLogger("asyncio").info("library")
    logging.getLogger("asyncio").warning("trouble")
    logging.getLogger("urllib3").warning("what it raises as well")
    assert [json.loads(line)["msg"] for line in stream.getvalue().splitlines()] == ["part", "trouble"]

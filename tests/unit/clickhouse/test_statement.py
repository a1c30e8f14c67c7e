"""Cutting a request's text into statement, format and data."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clickhouse.embedded.statement import StatementError, cut, literals, tokens, without_query_id


def test_an_insert_ends_at_its_format_and_its_data_may_be_anything() -> None:
    found = cut(b"INSERT INTO t (a, b) FORMAT Native\n\x02\x03;select 'x\xff")
    assert (found.verb, found.sql, found.format) == ("INSERT", "INSERT INTO t (a, b)", "Native")
    assert found.data is not None
    assert bytes(found.data) == b"\x02\x03;select 'x\xff"


@pytest.mark.parametrize(
    ("text", "sql", "settings", "name", "data"),
    [
        (b"insert into t values (1, 'a;b')", "insert into t", "", "Values", b" (1, 'a;b')"),
        (b"INSERT INTO format FORMAT CSV 1,2", "INSERT INTO format", "", "CSV", b"1,2"),
        (b"INSERT INTO db.values FORMAT CSV\n", "INSERT INTO db.values", "", "CSV", b""),
        (b"INSERT INTO `a FORMAT b` FORMAT TSV\r\n1\n", "INSERT INTO `a FORMAT b`", "", "TSV", b"1\n"),
        (b"/* FORMAT x */ INSERT INTO t -- VALUES\nFORMAT TSV\n1", "INSERT INTO t -- VALUES", "", "TSV", b"1"),
        (
            b"INSERT INTO t SETTINGS a=1, b='FORMAT c' FORMAT TSV\n1",
            "INSERT INTO t",
            "SETTINGS a=1, b='FORMAT c'",
            "TSV",
            b"1",
        ),
        (b"INSERT INTO FUNCTION null('a Int8') FORMAT CSV\n1", "INSERT INTO FUNCTION null('a Int8')", "", "CSV", b"1"),
    ],
)
def test_where_the_data_of_an_insert_starts(text: bytes, sql: str, settings: str, name: str, data: bytes) -> None:
    found = cut(text)
    assert (found.sql, found.settings, found.format, bytes(found.data or b"")) == (sql, settings, name, data)


@pytest.mark.parametrize(
    "text", [b"INSERT INTO t SELECT 1", b"INSERT INTO t (a) WITH x AS (SELECT 1) SELECT * FROM x;"]
)
def test_an_insert_from_a_select_has_no_data(text: bytes) -> None:
    assert cut(text).data is None


@pytest.mark.parametrize(
    ("text", "takes"),
    [
        (b"SELECT 1", True),
        (b"WITH 1 AS x SELECT x FORMAT CSV", True),
        (b"SELECT 1 SETTINGS max_threads = 1", False),
        (b"SELECT settings FROM t", False),
        (b"(SELECT 1)", False),
        (b"SHOW TABLES", False),
    ],
)
def test_settings_are_put_behind_a_question_that_surely_has_none(text: bytes, takes: bool) -> None:
    assert cut(text).takes_settings is takes


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (b"SELECT 1 FORMAT JSON", "JSON"),
        (b"SELECT 1 FORMAT JSON SETTINGS max_threads=1;", "JSON"),
        (b"SELECT 'FORMAT CSV'", ""),
        (b"SELECT format FROM (SELECT 1 AS format FORMAT)", ""),
        (b"SELECT 1 -- FORMAT CSV", ""),
    ],
)
def test_the_format_that_a_query_names(text: bytes, name: str) -> None:
    assert cut(text).format == name


@pytest.mark.parametrize("text", [b"SELECT 1; SELECT 2", b"INSERT INTO t SELECT 1; DROP TABLE t", b"", b" ; -- x"])
def test_a_request_is_one_statement(text: bytes) -> None:
    with pytest.raises(StatementError) as caught:
        cut(text)
    assert caught.value.code == 62


@pytest.mark.parametrize(
    "text", [b"SELECT 1 INTO OUTFILE '/etc/x'", b"INSERT INTO t FROM INFILE '/etc/passwd' FORMAT CSV"]
)
def test_files_of_the_server_are_out_of_reach(text: bytes) -> None:
    with pytest.raises(StatementError) as caught:
        cut(text)
    assert caught.value.code == 48


def test_kill_names_queries_by_what_the_engine_keeps() -> None:
    sql = without_query_id("KILL QUERY WHERE query_id = 'query_id' SYNC")
    assert sql == "KILL QUERY WHERE Settings['log_comment'] = 'query_id' SYNC"
    assert literals("KILL QUERY WHERE query_id IN ('a', 'it\\'s') SYNC") == {"a", "it's"}


@given(st.binary(max_size=200))
def test_no_text_is_too_strange_to_be_cut_or_refused(text: bytes) -> None:
    try:
        found = cut(text)
    except StatementError:
        return
    assert found.verb


@given(
    st.lists(
        st.sampled_from([b"'a\\'b'", b'"x"', b"`y`", b"/* c */", b"(", b")", b"word", b"12", b"--\n", b"$a$ ; $a$"])
    )
)
def test_tokens_cover_the_text_in_order(pieces: list[bytes]) -> None:
    text = b" ".join(pieces)
    at = 0
    for token in tokens(text):
        assert token.start >= at
        assert text[token.start : token.end] == token.text
        at = token.end

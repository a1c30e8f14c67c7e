"""Just enough of SQL's surface to serve it over HTTP: what kind of statement, which format, where its data starts.

The engine parses; this only cuts. It has to, because over HTTP one body holds a statement *and* the bytes of an
INSERT, because a server takes one statement a request, and because the engine is a local one that would write
files for ``INTO OUTFILE`` on behalf of whoever asks.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Final, NamedTuple

_TOKEN: Final = re.compile(
    rb"""(?P<space>\s+|--[^\n]*(?:\n|\Z)|\#[!\s][^\n]*(?:\n|\Z)|/\*.*?\*/)
      |(?P<string>'(?:[^'\\]|\\.|'')*'|"(?:[^"\\]|\\.|"")*"|`(?:[^`\\]|\\.|``)*`|\$(?P<tag>\w*)\$.*?\$(?P=tag)\$)
      |(?P<word>[A-Za-z_][A-Za-z0-9_]*)
      |(?P<number>[0-9][A-Za-z0-9_.]*)
      |(?P<symbol>.)""",
    re.VERBOSE | re.DOTALL,
)

INSERT: Final = "INSERT"
_TABLE_ANSWERS: Final = frozenset({"SELECT", "WITH", "FROM", "(", "VALUES"})
_OWN_STATE: Final = frozenset({"SET", "USE"})
_REMEMBERED_BYTES_MAX: Final = 4096
"""Statements up to this length are cut once: clients ask the same text again and again, with other parameters."""


class StatementError(Exception):
    """The text cannot be served as one statement. ``code`` is ClickHouse's number for it."""

    def __init__(self, code: int, name: str, message: str) -> None:
        super().__init__(f"Code: {code}. DB::Exception: {message}. ({name})")
        self.code = code


class Token(NamedTuple):
    kind: str
    text: bytes
    start: int
    end: int
    depth: int

    @property
    def keyword(self) -> str:
        return self.text.decode().upper() if self.kind == "word" else ""


class Statement(NamedTuple):
    """One statement, cut out of a request."""

    verb: str
    """First keyword in capitals ("SELECT", "INSERT", "KILL"); "" for nothing at all."""
    sql: str
    """What the engine is given: without data, trailing semicolon, and (INSERT) without its FORMAT clause."""
    format: str
    """Format that the text names, "" for none. For an INSERT with data: the format of ``data``."""
    data: memoryview | None
    """Bytes to insert; None for everything else, INSERT ... SELECT included."""
    with_totals: bool = False
    settings: str = ""
    """INSERT with data: its SETTINGS clause, which stands behind ``sql``."""
    takes_settings: bool = False
    """Whether a SETTINGS clause may be put behind ``sql``: a SELECT that surely has none."""

    @property
    def streams(self) -> bool:
        """Whether the engine can hand its rows out bit by bit."""
        return self.verb in _TABLE_ANSWERS

    @property
    def changes_session(self) -> bool:
        return self.verb in _OWN_STATE


def tokens(sql: bytes, at: int = 0) -> Iterator[Token]:
    """Tokens other than white space and comments, with the depth of parentheses they stand in."""
    depth = 0
    while at < len(sql):
        match = _TOKEN.match(sql, at)
        assert match is not None  # <symbol> matches anything
        assert match.lastgroup is not None
        kind = "string" if match.lastgroup == "tag" else match.lastgroup
        text = match.group()
        if text in (b")", b"]", b"}"):
            depth -= 1
        if kind != "space":
            yield Token(kind, text, match.start(), match.end(), depth)
        if text in (b"(", b"[", b"{"):
            depth += 1
        at = match.end()


def cut(body: bytes) -> Statement:
    """Cut one request's text. Raises :class:`StatementError` for several statements or access to the server's files."""
    return _remembered(body) if len(body) <= _REMEMBERED_BYTES_MAX else _cut(body)


def _cut(body: bytes) -> Statement:
    seen: list[Token] = []
    stream = tokens(body)
    for token in stream:
        if not seen and token.text == b";":
            continue
        seen.append(token)
        if seen[0].keyword == INSERT:
            return _cut_insert(body, seen[0], stream)
        if token.text == b";" and token.depth <= 0:
            _nothing_follows(stream)
            seen.pop()
            break
    if not seen:
        raise StatementError(62, "SYNTAX_ERROR", "Syntax error: empty query")
    end = seen[-1].end
    words = [token for token in seen if token.depth <= 0]
    _no_server_files(words)
    verb = seen[0].keyword or seen[0].text.decode("utf-8", "replace")
    return Statement(
        verb=verb,
        sql=body[seen[0].start : end].decode("utf-8", "replace"),
        format=_format_clause(words),
        data=None,
        with_totals=any(token.keyword == "TOTALS" for token in words),
        takes_settings=verb in ("SELECT", "WITH") and not any(token.keyword == "SETTINGS" for token in words),
    )


_remembered = lru_cache(maxsize=256)(_cut)


def _cut_insert(body: bytes, first: Token, stream: Iterator[Token]) -> Statement:
    words: list[Token] = []
    settings: Token | None = None

    def with_data(end: int, name: str, data: memoryview) -> Statement:
        if settings is None:
            return Statement(INSERT, _text(body, first.start, end), name, data)
        clause = _text(body, settings.start, end)
        return Statement(INSERT, _text(body, first.start, settings.start), name, data, settings=clause)

    for token in stream:
        # A table's own name may be any word: what follows INTO [TABLE] is never one of the clauses below.
        is_name = bool(words) and (words[-1].keyword in ("INTO", "TABLE", "FUNCTION") or words[-1].text == b".")
        words.append(token)
        if token.depth > 0 or is_name:
            continue
        if token.keyword == "FORMAT":
            name = next(stream, None)
            if name is None or not name.keyword:
                raise StatementError(62, "SYNTAX_ERROR", "Syntax error: a format name is missing after FORMAT")
            return with_data(token.start, name.text.decode(), memoryview(body)[_data_start(body, name) :])
        if token.keyword == "VALUES":
            return with_data(token.start, "Values", memoryview(body)[token.end :])
        if token.keyword == "SETTINGS":
            settings = token
        if token.keyword in ("SELECT", "WITH", "WATCH"):
            rest = list(stream)
            at_end = [i for i, t in enumerate(rest) if t.text == b";" and t.depth <= 0]
            if at_end and at_end[0] != len(rest) - 1:
                raise StatementError(62, "SYNTAX_ERROR", "Syntax error: Multi-statements are not allowed")
            end = rest[at_end[0]].start if at_end else len(body)
            _no_server_files(rest)
            return Statement(INSERT, _text(body, first.start, end), "", None)
        if token.keyword == "INFILE":
            raise StatementError(48, "NOT_IMPLEMENTED", "INSERT ... FROM INFILE is a client's affair; send the data")
    text = _text(body, first.start, len(body)).rstrip("; \n\r\t")
    if b"(" in body and any(t.keyword == "SELECT" for t in words):
        return Statement(INSERT, text, "", None)
    return Statement(INSERT, text, "Values", memoryview(b""))


def _text(body: bytes, start: int, end: int) -> str:
    return body[start:end].decode("utf-8", "replace").rstrip()


def _data_start(body: bytes, name: Token) -> int:
    """Data starts after the format's name, blanks and at most one line end, as in ClickHouse's own parser."""
    at = name.end
    while at < len(body) and body[at : at + 1] in (b" ", b"\t", b"\f"):
        at += 1
    if body[at : at + 1] == b";":
        at += 1
    if body[at : at + 1] == b"\r":
        at += 1
    if body[at : at + 1] == b"\n":
        at += 1
    return at


def _nothing_follows(stream: Iterator[Token]) -> None:
    for token in stream:
        if token.text != b";":
            raise StatementError(62, "SYNTAX_ERROR", "Syntax error: Multi-statements are not allowed")


def _no_server_files(words: list[Token]) -> None:
    for before, token in itertools.pairwise(words):
        if before.keyword == "INTO" and token.keyword == "OUTFILE":
            raise StatementError(48, "NOT_IMPLEMENTED", "INTO OUTFILE is a client's affair and not served over HTTP")


def _format_clause(words: list[Token]) -> str:
    for i in range(len(words) - 2, 0, -1):
        if words[i].keyword == "FORMAT" and words[i + 1].keyword:
            after = words[i + 2].keyword if i + 2 < len(words) else ""
            if i + 2 == len(words) or after in ("SETTINGS", "INTO"):
                return words[i + 1].text.decode()
    return ""


def literals(sql: str) -> set[str]:
    """The strings that a statement names."""
    return {
        token.text[1:-1].decode().replace("\\'", "'").replace("\\\\", "\\")
        for token in tokens(sql.encode())
        if token.text[:1] == b"'"
    }


def without_query_id(sql: str) -> str:
    """KILL QUERY names queries by the ids that clients gave; the engine keeps those in each query's ``log_comment``."""
    source = sql.encode()
    parts: list[bytes] = []
    at = 0
    for token in tokens(source):
        if token.text == b"query_id":
            parts.append(source[at : token.start] + b"Settings['log_comment']")
            at = token.end
    return b"".join((*parts, source[at:])).decode()

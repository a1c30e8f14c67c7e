"""Structured logs on stderr: one JSON object a line, or text on a terminal.

Every line has ``ts`` (RFC 3339, UTC, ms), ``level``, ``service``, ``component`` (the part of it that speaks), ``msg``
and the fields of ``extra``. Values that were told to :func:`hide`, and passwords in URLs, never get out.

At level debug each part writes a line a batch, with ``session`` and ``seq`` and, where they are known, ``topic``,
``partition``, ``offset`` and ``request_id``: enough to follow one batch from its producer into the store. At info no
line is written a message.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Final, TextIO

HIDDEN: Final = "***"
SECRET_CHARACTERS_MIN: Final = 4
"""Shorter secrets are not searched for: replacing every "a" would hide the log, not the secret."""

# They log as a warning what they also raise, and whoever catches it says it better: "waiting for the store".
_TALKATIVE: Final = ("urllib3", "clickhouse_connect")

_STANDARD_FIELDS: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_URL_PASSWORD: Final = re.compile(r"(\w://[^\s/:@]*:)[^\s/@]+(?=@)")
_secrets: set[str] = set()
_secrets_lock = threading.Lock()


def hide(secret: object) -> None:
    """Keep this value (text, or several in a tuple) out of every log line from now on."""
    values: Iterable[object] = secret if isinstance(secret, tuple | list) else (secret,)
    with _secrets_lock:
        for text in (str(value) for value in values if value is not None):
            if len(text) >= SECRET_CHARACTERS_MIN:
                # A secret with a quote or a backslash looks different inside a repr and inside a JSON line.
                forms = {text, repr(text)[1:-1]}
                _secrets.update(forms | {json.dumps(form)[1:-1] for form in forms})


def redacted(text: str) -> str:
    """``text`` without hidden values and without passwords in URLs."""
    for secret in sorted(_secrets, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return _URL_PASSWORD.sub(rf"\1{HIDDEN}", text)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD_FIELDS}


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "service": self._service,
            "component": record.name,
            "msg": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return redacted(json.dumps(line, default=str, ensure_ascii=False))


class TextFormatter(logging.Formatter):
    """``12:00:01.123 INFO  inserted rows=3``, local time, for people at a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        clock = datetime.fromtimestamp(record.created).strftime("%H:%M:%S.%f")[:-3]
        parts = [clock, f"{record.levelname:<7}", record.getMessage()]
        parts += [f"{name}={_as_text(value)}" for name, value in _fields(record).items()]
        text = " ".join(parts)
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return redacted(text)


def _as_text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if " " in text or not text else text


def configure(service: str, level: str = "info", format: str = "auto", stream: TextIO | None = None) -> logging.Logger:
    """Send every log line of this process to ``stream`` (stderr); returns the process's logger.

    ``format`` is "json", "text" or "auto" (text where ``stream`` is a terminal).
    """
    stream = stream or sys.stderr
    as_text = format == "text" or (format == "auto" and stream.isatty())
    handler = logging.StreamHandler(stream)
    handler.setFormatter(TextFormatter() if as_text else JsonFormatter(service))
    root = logging.getLogger()
    for old in list(root.handlers):
        if getattr(old, "_telemetry", False):
            root.removeHandler(old)
    handler._telemetry = True  # type: ignore[attr-defined]  # marks ours, so that a second call replaces it
    root.addHandler(handler)
    logger = logging.getLogger(service)
    logger.setLevel(level.upper())
    # Libraries speak only when something is wrong: their info lines are not about telemetry.
    root.setLevel(max(logging.WARNING, logger.level))
    for library in _TALKATIVE:
        logging.getLogger(library).setLevel(logging.ERROR)
    for package in ("telemetry", "zmqbroker", "producers", "consumers", "api", "clickhouse"):
        logging.getLogger(package).setLevel(level.upper())
    return logger

"""Payloads as readable rows: the one place of this package that knows batches."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

from telemetry.batch import BatchDecoder, BatchError, rows_as_dicts
from zmqbroker.admin.protocol import AdminError
from zmqbroker.core.state import open_envelope

_TEXT_MAX = 200


def decoded(
    records: list[dict[str, Any]], decode: str, filters: list[str], limit: int | None = None
) -> list[dict[str, Any]]:
    """Rows of the batches among ``records`` (``decode``: auto, yes, no); other payloads as text.

    ``filters``: NAME=VALUE each, all of which a row must have. Raises :class:`AdminError` for a filter without ``=``.
    """
    wanted = dict(_pair(text) for text in filters)
    decoder = BatchDecoder()
    found: list[dict[str, Any]] = []
    for record in records:
        for row in _rows_of(record, decoder, decode):
            if all(str(row.get(name)) == value for name, value in wanted.items()):
                found.append(row)
                if limit is not None and len(found) >= limit:
                    return found
    return found


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise AdminError("bad_argument", f"{text!r} is no filter", "say NAME=VALUE, such as gpu_id=0")
    # `gpu` for short, as in the table's own words.
    return {"gpu": "gpu_id", "metric": "metric_name", "host": "hostname"}.get(name, name), value


def _rows_of(record: dict[str, Any], decoder: BatchDecoder, decode: str) -> Iterator[dict[str, Any]]:
    address = {"partition": record["partition"], "offset": record["offset"]}
    payload = base64.b64decode(record["payload"])
    if decode != "no":
        try:
            payload = bytes(open_envelope(payload)[1])
        except ValueError:
            pass
        try:
            batch = decoder.decode(payload)
        except BatchError as e:
            if decode == "yes":
                yield {**address, "error": str(e)}
                return
        else:
            for row in rows_as_dicts(batch):
                yield {**address, **row}
            return
    told = {name: value for name, value in record.items() if name != "payload"}
    yield {**told, "payload": _text(payload)}


def _text(payload: bytes) -> str:
    head = payload[:_TEXT_MAX]
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as e:
        text = head[: e.start].decode("utf-8") if e.start > _TEXT_MAX - 4 else ""
    if (text and text.isprintable()) or not payload:
        return text + ("…" if len(payload) > _TEXT_MAX else "")
    return head[:32].hex(" ") + (" …" if len(payload) > 32 else "")

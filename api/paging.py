"""Pages: by number with totals, by cursor for depth; and what both say in headers (X-Pagination, RFC 8288 Link)."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

import orjson
from flask import Response, request

from api.errors import Problem


def encode_cursor(key: Sequence[Any]) -> str:
    """Opaque text for the place where a page ended."""
    return base64.urlsafe_b64encode(orjson.dumps(list(key))).rstrip(b"=").decode()


def decode_cursor(text: str, kinds: Sequence[type]) -> list[Any]:
    """The key of a cursor whose members have these types; a 422 problem for anything else."""
    try:
        key = orjson.loads(base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True))
    except (ValueError, binascii.Error):
        key = None
    if (
        not isinstance(key, list)
        or len(key) != len(kinds)
        or not all(
            type(part) is kind or (kind is float and type(part) is int) for part, kind in zip(key, kinds, strict=True)
        )
    ):
        raise Problem(422, "cursor is none of this endpoint: pass next_cursor as it came, or start without one")
    if any(isinstance(part, int) and not -(1 << 63) <= part < 1 << 64 for part in key):
        raise Problem(422, "cursor is none of this endpoint: pass next_cursor as it came, or start without one")
    return key


def _url(**changes: Any) -> str:
    arguments = {k: v for k, v in request.args.to_dict(flat=False).items() if k != "api_key"}
    for name, value in changes.items():
        if value is None:
            arguments.pop(name, None)
        else:
            arguments[name] = [str(value)]
    return f"{request.script_root}{request.path}?{urlencode(arguments, doseq=True)}"


def describe_page(response: Response, *, total: int, page: int, page_size: int) -> None:
    """Headers of a page by number."""
    last = max(1, math.ceil(total / page_size))
    told: dict[str, int] = {"total": total, "total_pages": last, "first_page": 1, "last_page": last, "page": page}
    links = [f'<{_url(page=1)}>; rel="first"', f'<{_url(page=last)}>; rel="last"']
    if page > 1:
        told["previous_page"] = min(page - 1, last)
        links.append(f'<{_url(page=min(page - 1, last))}>; rel="prev"')
    if page < last:
        told["next_page"] = page + 1
        links.append(f'<{_url(page=page + 1)}>; rel="next"')
    response.headers["X-Pagination"] = orjson.dumps(told).decode()
    response.headers["Link"] = ", ".join(links)


def describe_cursor(response: Response, next_cursor: str | None) -> None:
    """Headers of a page by cursor."""
    if next_cursor:
        response.headers["Link"] = f'<{_url(cursor=next_cursor, page=None)}>; rel="next"'

"""The documents' pages: Swagger UI and Redoc from files that come with the package, and the dashboard at ``/``.

Large scripts are kept gzipped and sent as they are; a client that does not take gzip gets them unpacked.
"""

from __future__ import annotations

import gzip
import mimetypes
from functools import lru_cache
from importlib.resources import files
from typing import Final

from flask import Blueprint, Response, redirect, request
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import NotFound
from werkzeug.utils import safe_join

from api.middleware import PAGE_POLICY

blueprint = Blueprint("documents", __name__)

ROOT: Final = files("api")
DOCUMENT_PAGE_POLICY: Final = PAGE_POLICY.replace("style-src 'self'", "style-src 'self' 'unsafe-inline'")
"""Swagger UI and Redoc write styles into the page; scripts still come from here only."""

CACHE_SECONDS: Final = 3600


@lru_cache(maxsize=256)
def _read(folder: str, name: str) -> tuple[bytes, bool, str] | None:
    """(content, whether it is gzip, media type) of a packaged file; None if there is none."""
    inside = safe_join("/", name)
    if inside is None or not name or name.endswith("/"):
        return None
    node = ROOT
    for part in (*folder.split("/"), *name.split("/")):
        if part in ("", ".", ".."):
            return None
        node = node / part
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    if kind in ("text/javascript", "text/css", "text/html", "text/plain"):
        kind += "; charset=utf-8"
    if node.is_file():
        return node.read_bytes(), False, kind
    packed = node.parent / f"{node.name}.gz"  # type: ignore[attr-defined]
    if packed.is_file():
        return packed.read_bytes(), True, kind
    return None


def packaged_file(folder: str, name: str, policy: str = PAGE_POLICY, *, cache_seconds: int = CACHE_SECONDS) -> Response:
    """A file that comes with the package, with validator; 404 if there is none of that name."""
    found = _read(folder, name)
    if found is None:
        raise NotFound
    content, packed, kind = found
    if packed and "gzip" not in request.accept_encodings:
        content, packed = gzip.decompress(content), False
    response = Response(content, content_type=kind)
    if packed:
        response.headers["Content-Encoding"] = "gzip"
    response.headers["Vary"] = "Accept-Encoding"
    response.headers["Content-Security-Policy"] = policy
    response.headers["Cache-Control"] = f"public, max-age={cache_seconds}" if cache_seconds else "no-cache"
    response.add_etag()
    return response


@blueprint.get("/swagger/", endpoint="swagger")
def swagger() -> ResponseReturnValue:
    return packaged_file("static/swagger", "index.html", DOCUMENT_PAGE_POLICY)


@blueprint.get("/swagger")
def swagger_without_slash() -> ResponseReturnValue:
    return redirect("swagger/", 308)


@blueprint.get("/redoc", endpoint="redoc")
def redoc() -> ResponseReturnValue:
    return packaged_file("static/redoc", "index.html", DOCUMENT_PAGE_POLICY)


@blueprint.get("/swagger/<path:name>", defaults={"viewer": "swagger"}, endpoint="vendored")
@blueprint.get("/redoc/<path:name>", defaults={"viewer": "redoc"}, endpoint="vendored")
def vendored(viewer: str, name: str) -> ResponseReturnValue:
    return packaged_file(f"static/{viewer}", name, DOCUMENT_PAGE_POLICY)


@blueprint.get("/", endpoint="dashboard")
def dashboard() -> ResponseReturnValue:
    """The dashboard, or, in a build without it, the documents."""
    if _read("dashboard/static", "index.html") is None:
        return redirect("swagger/", 302)
    return packaged_file("dashboard/static", "index.html", cache_seconds=0)


@blueprint.get("/static/<path:name>", endpoint="dashboard_file")
def dashboard_file(name: str) -> ResponseReturnValue:
    # Asked for again each time (a 304 costs nothing): modules of two versions must never meet in one page.
    return packaged_file("dashboard/static", name, cache_seconds=0)

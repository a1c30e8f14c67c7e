"""Errors as the client sees them: RFC 9457 problem documents, one for every way a request can fail.

Every answer that is not a success is ``application/problem+json`` with ``type``, ``title``, ``status``, ``detail``
(what to do next), ``instance`` (the path), ``request_id`` and, where single fields are at fault, ``errors``.

ClickHouse's error codes become HTTP statuses in one table here and nowhere else.
"""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any, Final

import marshmallow as ma
import orjson
from apispec import APISpec
from flask import Response, g, request
from flask_smorest import Api
from flask_smorest.utils import prepare_response
from werkzeug.exceptions import HTTPException

from clickhouse.errors import StoreError, StoreUnavailable

log = logging.getLogger(__name__)

PROBLEM_TYPE: Final = "application/problem+json"
RETRY_AFTER_SECONDS: Final = 2

NARROW: Final = "shorten start_time..end_time, name metric_name or hostname, or use a larger step"

STORE_STATUS: Final[dict[int, tuple[int, str]]] = {
    158: (
        422,
        f"The query would read more rows than allowed: {NARROW}",
    ),
    307: (
        422,
        f"The query would read more bytes than allowed: {NARROW}",
    ),
    396: (422, "The answer would be larger than allowed: shorten start_time..end_time or ask for a page"),
    159: (504, "The store did not answer within the time limit: shorten start_time..end_time or use a larger step"),
    160: (504, "The store judged the query too slow: shorten start_time..end_time or use a larger step"),
    202: (503, "The store is busy with other queries: try again shortly"),
    241: (503, "The store is short of memory for this query: shorten start_time..end_time or try again shortly"),
    60: (503, "The store has no schema yet: it is being migrated, try again shortly"),
    81: (503, "The store has no schema yet: it is being migrated, try again shortly"),
}
"""ClickHouse error code -> (HTTP status, what to do)."""


class ProblemSchema(ma.Schema):
    """An RFC 9457 problem document."""

    type = ma.fields.String(
        required=True, metadata={"description": "URI of the kind of problem", "example": "about:blank"}
    )
    title = ma.fields.String(required=True, metadata={"description": "Name of the status", "example": "Not Found"})
    status = ma.fields.Integer(required=True, metadata={"description": "HTTP status", "example": 404})
    detail = ma.fields.String(metadata={"description": "What went wrong and what to do next"})
    instance = ma.fields.String(metadata={"description": "Path of the request"})
    request_id = ma.fields.String(metadata={"description": "The id under which the logs know this request"})
    errors = ma.fields.Dict(metadata={"description": "What is wrong, by place and field"})


class Problem(HTTPException):
    """A failure with a status, a detail for people, and optional headers and fields."""

    def __init__(self, status: int, detail: str, *, headers: dict[str, str] | None = None, **fields: Any) -> None:
        super().__init__(description=detail)
        self.code = status
        self.extra_headers = headers or {}
        self.fields = fields


class UnknownGpu(Problem):
    """404: no GPU of this id was ever seen."""

    def __init__(self, gpu_id: str) -> None:
        super().__init__(404, f"no GPU {gpu_id!r} was ever seen; GET /api/v1/gpus lists those that were")


class BrokerAway(Problem):
    """503: the broker cannot be reached or grants no credit."""

    def __init__(self, detail: str) -> None:
        super().__init__(503, detail, headers={"Retry-After": str(RETRY_AFTER_SECONDS)})


def problem_response(status: int, detail: str, headers: dict[str, str] | None = None, **fields: Any) -> Response:
    """The response of one problem; ``fields`` are further members of the document."""
    title = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else "Error"
    document: dict[str, Any] = {"type": "about:blank", "title": title, "status": status}
    if detail:
        document["detail"] = detail
    document["instance"] = request.path
    document["request_id"] = g.get("request_id", "")
    document.update(fields)
    response = Response(orjson.dumps(document, default=str), status=status, content_type=PROBLEM_TYPE)
    response.headers.update(headers or {})
    response.headers["Cache-Control"] = "no-store"
    return response


def store_problem(error: StoreError) -> Response:
    """What a client is told about a failure of the store; the details stay in the log."""
    if isinstance(error, StoreUnavailable):
        return problem_response(
            503, "The store cannot be reached at present: try again shortly", {"Retry-After": str(RETRY_AFTER_SECONDS)}
        )
    status, detail = STORE_STATUS.get(error.code, (503, "The store could not answer: try again shortly"))
    if error.code not in STORE_STATUS:
        log.error("the store refused a query", extra={"code": error.code, "reason": str(error)})
    headers = {"Retry-After": str(RETRY_AFTER_SECONDS)} if status == 503 else {}
    return problem_response(status, detail, headers)


class ProblemApi(Api):
    """flask-smorest's Api, with problem documents as its errors."""

    ERROR_SCHEMA = ProblemSchema

    def _register_responses(self) -> None:
        """Describe each status with the content type that :meth:`handle_http_exception` really sends."""
        spec: APISpec = self.spec
        for status in HTTPStatus:
            response = {"description": status.phrase}
            if status >= 400:
                response["schema"] = self.ERROR_SCHEMA
            prepare_response(response, spec, PROBLEM_TYPE)
            spec.components.response(status.name, response, lazy=True)
        response = {"description": "Any other failure", "schema": self.ERROR_SCHEMA}
        prepare_response(response, spec, PROBLEM_TYPE)
        spec.components.response("DEFAULT_ERROR", response, lazy=True)

    def _register_error_handlers(self) -> None:
        super()._register_error_handlers()
        self._app.register_error_handler(StoreError, store_problem)

    def handle_http_exception(self, error: HTTPException) -> Response:
        """Every HTTP failure, whoever raised it."""
        status = error.code or 500
        detail = error.description or ""
        headers: dict[str, str] = {}
        fields: dict[str, Any] = {}
        if isinstance(error, Problem):
            headers.update(error.extra_headers)
            fields.update(error.fields)
        data = getattr(error, "data", None) or {}
        if "messages" in data:
            fields["errors"] = data["messages"]
            detail = _first_message(data["messages"]) or "The request does not have the shape that this endpoint needs"
        if status == 404 and request.url_rule is None:
            detail = f"nothing at {request.path}; /swagger/ shows what there is"
        if status == 429:
            detail = f"more requests than {detail} are allowed to one client: wait as Retry-After says"
        if status == 500:
            detail = "The server failed; its log says why under this request_id"
            log.error(
                "a request failed", extra={"path": request.path}, exc_info=getattr(error, "original_exception", None)
            )
        if data.get("headers"):
            headers.update(data["headers"])
        for name, value in error.get_headers():
            if name.lower() not in ("content-type", "content-length"):
                headers.setdefault(name, value)
        return problem_response(status, detail, headers, **fields)


def _first_message(messages: Any, path: str = "") -> str:
    """The first of webargs' nested messages as ``field: text``."""
    if isinstance(messages, dict):
        for name, inner in messages.items():
            place = path if name in ("query", "json", "_schema", "files", "form") else f"{path}.{name}".strip(".")
            text = _first_message(inner, place)
            if text:
                return text
    elif isinstance(messages, (list, tuple)) and messages:
        return _first_message(messages[0], path)
    elif isinstance(messages, str):
        return f"{path}: {messages}" if path else messages
    return ""

"""Events of GPUs and of the pipeline, and rows that were refused."""

from __future__ import annotations

from typing import Any, Final

import marshmallow as ma
from flask import Response, current_app, jsonify
from flask.views import MethodView
from flask_smorest import Blueprint
from marshmallow import fields

from api import context, paging
from api.alerts.rules import xid_meaning
from api.described import described
from api.monitor import Monitor
from api.params import Names, PageParameters, RangeParameters, plain
from api.resources.telemetry import chosen_gpus
from api.schemas import EventListSchema, RejectListSchema
from api.times import TIME_MS_MAX, format_ms
from clickhouse.queries import events as questions
from clickhouse.queries.inventory import UNKNOWN

blueprint = Blueprint("events", __name__, url_prefix="/api/v1", description="What happened")

DEFAULT_RANGE_MS: Final = 24 * 3_600_000
EVENTS_MAX: Final = 10_000


class EventParameters(PageParameters, RangeParameters):
    """Which events."""

    gpu_id = Names(names_max=1000, metadata={"description": "GPU ids, separated by commas"})
    hostname = Names(metadata={"description": "Hosts, separated by commas"})
    kind = fields.String(
        validate=ma.validate.OneOf(("xid", "pipeline")), metadata={"description": "Only events of this kind"}
    )
    severity = fields.String(
        validate=ma.validate.OneOf(("info", "warning", "critical")), metadata={"description": "Only of this severity"}
    )


@blueprint.route("/events")
class EventList(MethodView):
    """Events."""

    @blueprint.arguments(EventParameters, location="query")
    @blueprint.response(200, EventListSchema)
    @described(blueprint, "listEvents", "XIDs and pipeline events, newest first")
    def get(self, query: dict[str, Any]) -> Response:
        """New XID codes of GPUs with their meaning and what to do, and parts of the pipeline that went away or came
        back (since this API started). Without a range: the last 24 h. At most the newest 10,000.
        """
        directory = context.directory()
        end_ms = query.get("end_time", directory.now_ms())
        start_ms = query.get("start_time", max(0, end_ms - DEFAULT_RANGE_MS))
        gpus = chosen_gpus(directory, query)
        found: list[dict[str, Any]] = []
        if query.get("kind") != "pipeline" and gpus != ():
            xids = questions.xids(
                context.store(),
                start_ms=start_ms,
                end_ms=end_ms,
                gpus=gpus or (),
                limit=EVENTS_MAX,
                settings=context.query_limits(),
            )
            labels = directory.labels((xid.gpu, xid.labels) for xid in xids)
            found += [_xid_document(xid, labels.get(xid.labels, UNKNOWN)) for xid in xids]
        if query.get("kind") != "xid" and gpus is None:
            monitor: Monitor = current_app.extensions["monitor"]
            found += [event for ms, event in list(monitor.events) if start_ms <= ms <= end_ms]
        if query.get("severity"):
            found = [event for event in found if event["severity"] == query["severity"]]
        found.sort(key=lambda event: event["timestamp"], reverse=True)
        page, size = query["page"], query["page_size"]
        response = jsonify(events=found[(page - 1) * size : page * size], total=len(found), page=page, page_size=size)
        paging.describe_page(response, total=len(found), page=page, page_size=size)
        return response


def _xid_document(xid: questions.Xid, about: Any) -> dict[str, Any]:
    meaning = xid_meaning(xid.code)
    return {
        "timestamp": format_ms(xid.ts_ms),
        "kind": "xid",
        "severity": meaning.severity,
        "gpu_id": about.gpu_id,
        "hostname": about.hostname,
        "code": xid.code,
        "message": meaning.name,
        "action": meaning.action,
    }


class RejectParameters(PageParameters, RangeParameters):
    """Which refused rows."""

    reason = plain("Only rows refused for this reason")


@blueprint.route("/rejects")
class RejectList(MethodView):
    """Refused rows."""

    @blueprint.arguments(RejectParameters, location="query")
    @blueprint.response(200, RejectListSchema)
    @described(blueprint, "listRejects", "Rows that were refused, newest first")
    def get(self, query: dict[str, Any]) -> Response:
        """Rows that validation refused, with the reason and what they said, and how many there are by reason."""
        store, limits = context.store(), context.query_limits()
        wanted = {
            "reason": query.get("reason", ""),
            "start_ms": query.get("start_time"),
            "end_ms": query.get("end_time"),
        }
        page, size = query["page"], query["page_size"]
        rows = questions.rejects(store, **wanted, limit=size, offset=(page - 1) * size, settings=limits)
        reasons = questions.reject_reasons(store, **wanted, settings=limits)
        total = sum(reasons.values())
        response = jsonify(
            rejects=[
                {
                    "timestamp": _own_time(row.timestamp_ns),
                    "rejected_at": format_ms(row.appended_ms),
                    "reason": row.reason,
                    "detail": row.detail,
                    "gpu_id": row.gpu_id,
                    "hostname": row.hostname,
                    "metric_name": row.metric,
                    "value": str(row.value),
                    "session": f"{row.session:016x}",
                    "seq": row.seq,
                    "row": row.row,
                }
                for row in rows
            ],
            reasons=reasons,
            total=total,
            page=page,
            page_size=size,
        )
        paging.describe_page(response, total=total, page=page, page_size=size)
        return response


def _own_time(ns: int) -> str:
    """The row's own time; as bare nanoseconds where it is no time of our age."""
    ms = ns // 1_000_000
    return format_ms(ms) if 0 <= ms <= TIME_MS_MAX else str(ns)

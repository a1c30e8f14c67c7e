"""Alerts: what fires, with evidence, and silencing it."""

from __future__ import annotations

from typing import Any

import marshmallow as ma
from flask import Response, current_app, g, jsonify
from flask.views import MethodView
from flask_smorest import Blueprint
from marshmallow import fields

from api import context, paging
from api.alerts.manager import Alerts
from api.alerts.rules import SEVERITIES
from api.described import described
from api.errors import Problem
from api.params import PageParameters, plain
from api.schemas import Document, PageSchema, text, time_field
from api.times import parse_duration_ms

blueprint = Blueprint("alerts", __name__, url_prefix="/api/v1/alerts", description="Evaluated alert rules")

SILENCE_MS_MAX = 90 * 86_400_000


class AlertSchema(Document):
    """A rule that holds now."""

    id = text(
        "Stays the same while and whenever this rule fires for this GPU or host", "4f1c0f0e5d3c2b1a", required=True
    )
    rule = text("Name of the rule", "TempHigh", required=True)
    severity = text("critical, warning or info", "warning", required=True)
    state = text("firing or silenced", "firing", required=True)
    summary = text("What is wrong", "GPU is hotter than 85 C", required=True)
    action = text("What to do", "check fans, airflow and inlet temperature", required=True)
    gpu_id = text("The GPU; empty where it is about a host or the pipeline")
    hostname = text("The host")
    since = time_field("Since when", required=True)
    evidence = fields.Dict(metadata={"description": "The metrics of the rule, and the values that made it fire"})
    silence = fields.Dict(
        allow_none=True, metadata={"description": "until, comment and author of its silence, or null"}
    )


class AlertListSchema(PageSchema):
    """Alerts, the worst first."""

    alerts = fields.List(fields.Nested(AlertSchema), required=True)
    warnings = fields.List(fields.String(), metadata={"description": "Rules that cannot fire, and why"})


class AlertParameters(PageParameters):
    """Which alerts."""

    severity = fields.String(
        validate=ma.validate.OneOf(SEVERITIES), metadata={"description": "Only alerts of this severity"}
    )
    state = fields.String(
        validate=ma.validate.OneOf(("firing", "silenced")), metadata={"description": "Only alerts in this state"}
    )
    hostname = plain("Only alerts of this host")
    gpu_id = plain("Only alerts of this GPU")


class SilenceSchema(ma.Schema):
    """How long an alert is to be quiet."""

    duration = fields.String(
        load_default="1h", metadata={"description": "Such as 30m, 2h or 7d, at most 90d", "example": "2h"}
    )
    comment = fields.String(load_default="", validate=ma.validate.Length(max=1000), metadata={"description": "Why"})


@blueprint.route("")
class AlertList(MethodView):
    """Alerts."""

    @blueprint.arguments(AlertParameters, location="query")
    @blueprint.response(200, AlertListSchema)
    @described(blueprint, "listAlerts", "Alerts with their evidence")
    def get(self, query: dict[str, Any]) -> Response:
        """The rules that hold now, evaluated on the stored samples at most 10 s ago, the worst first.

        `warnings` names rules that cannot fire because nothing reports their metric.
        """
        alerts: Alerts = current_app.extensions["alerts"]
        found, warnings = alerts.current()
        for name in ("severity", "state", "hostname", "gpu_id"):
            if query.get(name):
                found = [alert for alert in found if alert[name] == query[name]]
        page, size = query["page"], query["page_size"]
        response = jsonify(
            alerts=found[(page - 1) * size : page * size],
            warnings=warnings,
            total=len(found),
            page=page,
            page_size=size,
        )
        paging.describe_page(response, total=len(found), page=page, page_size=size)
        return response


@blueprint.route("/<string:alert_id>/silence")
class AlertSilence(MethodView):
    """Silences."""

    @blueprint.arguments(SilenceSchema, location="json")
    @blueprint.response(200, AlertSchema)
    @described(blueprint, "silenceAlert", "Silence an alert")
    def post(self, body: dict[str, Any], alert_id: str) -> Response:
        """Nobody is notified of this alert for that long; it stays in the list as `silenced`. Needs the scope admin."""
        try:
            duration_ms = parse_duration_ms(body["duration"])
        except ValueError as error:
            raise Problem(422, f"duration: {error}") from None
        alerts: Alerts = current_app.extensions["alerts"]
        alerts.current()
        until_ms = context.directory().now_ms() + min(duration_ms, SILENCE_MS_MAX)
        author = g.client.name if g.get("client") else ""
        return jsonify(alerts.silence(alert_id, until_ms=until_ms, comment=body["comment"], author=author))

    @blueprint.response(204)
    @described(blueprint, "unsilenceAlert", "End a silence")
    def delete(self, alert_id: str) -> None:
        """The alert is notified again. Needs the scope admin."""
        alerts: Alerts = current_app.extensions["alerts"]
        alerts.end_silence(alert_id)

"""The metric catalogue with units."""

from __future__ import annotations

from flask import Response, jsonify
from flask.views import MethodView
from flask_smorest import Blueprint

from api import context
from api.caching import cached
from api.described import described
from api.schemas import MetricListSchema
from telemetry.catalogue import CATALOGUE

blueprint = Blueprint("metrics", __name__, url_prefix="/api/v1/metrics", description="Metrics and their units")


@blueprint.route("")
class MetricList(MethodView):
    """Metrics."""

    @cached(10)
    @blueprint.response(200, MetricListSchema)
    @described(blueprint, "listMetrics", "Metrics with unit and meaning")
    def get(self) -> Response:
        """Every metric of the catalogue, and those seen without being in it, with the unit of stored values."""
        seen = {
            str(row[0])
            for row in context.store().query("SELECT DISTINCT metric FROM samples", None, context.query_limits())
        }
        found = [
            {
                "name": metric.name,
                "unit": metric.unit,
                "kind": metric.kind,
                "help": metric.help,
                "aliases": [name for name, _ in metric.aliases],
                "seen": metric.name in seen,
            }
            for metric in CATALOGUE.values()
        ]
        found += [
            {"name": name, "unit": "", "kind": "gauge", "help": "", "aliases": [], "seen": True}
            for name in sorted(seen - CATALOGUE.keys())
        ]
        return jsonify(metrics=found, total=len(found))

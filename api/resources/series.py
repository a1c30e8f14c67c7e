"""Series of one GPU, for charts."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from flask import Response, jsonify
from flask.views import MethodView
from flask_smorest import Blueprint

from api import context
from api.caching import cached
from api.described import described
from api.errors import Problem
from api.params import SeriesParameters
from api.resources.telemetry import metric_names
from api.schemas import SeriesSchema
from api.times import format_many, format_ms
from clickhouse.queries import series as questions
from clickhouse.queries.samples import Filter
from clickhouse.schema import RETENTION_DAYS
from telemetry.catalogue import CATALOGUE

blueprint = Blueprint("series", __name__, url_prefix="/api/v1", description="Series for charts")

POINTS_MAX: Final = 11_000
"""Points a series, as Prometheus allows: no chart shows more, and clients are written for it."""
DEFAULT_RANGE_MS: Final = 3_600_000
STEPS_MS: Final = (
    1_000, 2_000, 5_000, 10_000, 15_000, 30_000, 60_000, 120_000, 300_000, 600_000, 900_000, 1_800_000, 3_600_000,
    7_200_000, 10_800_000, 21_600_000, 43_200_000, 86_400_000, 604_800_000,
)  # fmt: skip
"""Steps that people read easily; one is chosen from them when none is asked for."""


def chosen_step_ms(range_ms: int, max_points: int) -> int:
    """The finest readable step with at most ``max_points`` steps in the range."""
    # One more than divides: a range that begins inside a step touches one step more.
    return next((s for s in STEPS_MS if range_ms // s + 2 <= max_points), STEPS_MS[-1])


def chosen_resolution(step_ms: int, agg: str, asked: str) -> str:
    """The coarsest source that answers this step exactly; a 422 problem if what was asked for cannot."""
    fits = ["raw"]
    if agg in questions.ROLLED:
        fits += [name for name, (_, bucket_ms) in questions.RESOLUTIONS.items() if step_ms % bucket_ms == 0]
    if asked == "auto":
        return fits[-1]
    if asked not in fits:
        raise Problem(
            422,
            f"resolution {asked} cannot answer {agg} by {step_ms / 1000:g} s: use a multiple of it, or auto",
        )
    return asked


def _before_raw(wanted: Filter) -> bool:
    oldest = context.directory().now_ms() - RETENTION_DAYS * 86_400_000
    return wanted.start_ms is not None and wanted.start_ms < oldest


@blueprint.route("/gpus/<string:gpu_id>/series")
class GpuSeries(MethodView):
    """Series of one GPU."""

    @cached(1)
    @blueprint.arguments(SeriesParameters, location="query")
    @blueprint.response(200, SeriesSchema)
    @described(blueprint, "getGpuSeries", "Series of one GPU for charts")
    def get(self, query: dict[str, Any], gpu_id: str) -> Response:
        """One value a step for each metric, with the smallest and largest sample of every step, so that spikes survive.

        Without `step`, single samples are given if there are at most `max_points` of them, else the finest step
        that keeps within `max_points`. `resolution` tells whether numbers come from raw samples or a rollup.
        """
        directory = context.directory()
        gpu = directory.gpu(gpu_id)
        end_ms = query.get("end_time") if query.get("end_time") is not None else directory.now_ms()
        start_ms = query.get("start_time") if query.get("start_time") is not None else max(0, end_ms - DEFAULT_RANGE_MS)
        if start_ms > end_ms:
            raise Problem(422, "start_time is after end_time")
        wanted = Filter((gpu.key,), metric_names(query), start_ms, end_ms)
        step_ms, resolution, points = answer(wanted, query)
        by_metric = {name: points[points["metric"] == place] for place, name in enumerate(wanted.metrics)}
        warnings = [f"no samples of {name} in this range" for name, found in by_metric.items() if not len(found)]
        response = jsonify(
            gpu_id=gpu_id,
            start_time=format_ms(start_ms),
            end_time=format_ms(end_ms),
            step_seconds=step_ms / 1000,
            agg=query["agg"],
            resolution=resolution,
            downsampled=step_ms > 0,
            series=[_series(name, found) for name, found in by_metric.items()],
            warnings=warnings,
        )
        response.headers["X-Resolution"] = resolution
        return response


def answer(wanted: Filter, query: dict[str, Any]) -> tuple[int, str, np.ndarray]:
    """(step in ms, resolution, POINTs): what to show for this range."""
    store, limits = context.store(), context.query_limits(wanted)
    range_ms = (wanted.end_ms or 0) - (wanted.start_ms or 0)
    step_ms = query.get("step")
    if step_ms is not None:
        steps = range_ms // step_ms + 1
        if steps > POINTS_MAX:
            least = -(-range_ms // (POINTS_MAX - 1) // 1000) + 1
            raise Problem(
                400,
                f"{steps} points a series are more than {POINTS_MAX}: a step of {least}s or more fits this range",
            )
    asked = step_ms is not None
    if step_ms is None:
        step_ms = chosen_step_ms(range_ms, query["max_points"])
        if _before_raw(wanted):
            # Raw rows of that time are gone: a minute is the finest there is.
            step_ms = max(step_ms, 60_000)
    resolution = chosen_resolution(step_ms, query["agg"], query["resolution"])
    options = {"step_ms": step_ms, "agg": query["agg"], "settings": limits}
    if resolution == "raw":
        points = questions.stepped(store, wanted, **options)
    else:
        points = questions.rolled(store, wanted, resolution=resolution, **options)
    if asked or query["agg"] not in ("avg", "last", "min", "max") or query["resolution"] not in ("auto", "raw"):
        return step_ms, resolution, points
    samples = np.bincount(points["metric"], points["samples"], minlength=1)
    if samples.max() > query["max_points"] or (_before_raw(wanted) and len(points)):
        return step_ms, resolution, points
    # So few that each can be shown: single samples say the same under each of these aggregates, and more.
    limit = query["max_points"] * len(wanted.metrics)
    return 0, "raw", questions.single(store, wanted, limit=limit, settings=limits)


def _series(name: str, points: np.ndarray) -> dict[str, Any]:
    metric = CATALOGUE.get(name)
    return {
        "metric_name": name,
        "unit": metric.unit if metric else "",
        "kind": metric.kind if metric else "gauge",
        "points": point_documents(points),
    }


def point_documents(points: np.ndarray) -> list[dict[str, Any]]:
    """POINTs as the API tells them."""
    columns = (points[name].tolist() for name in ("value", "low", "high"))
    return [
        {"timestamp": timestamp, "value": value, "min": low, "max": high}
        for timestamp, value, low, high in zip(format_many(points["t"]), *columns, strict=True)
    ]

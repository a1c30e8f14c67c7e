"""GPUs: which there are, and what one of them last said."""

from __future__ import annotations

from typing import Any, Final

import marshmallow as ma
from flask import Response, jsonify
from flask.views import MethodView
from flask_smorest import Blueprint
from marshmallow import fields

from api import context, paging
from api.caching import cached
from api.described import described
from api.directory import Directory, status
from api.params import PageParameters, plain
from api.schemas import GpuDetailSchema, GpuListSchema
from api.times import format_ms
from clickhouse.queries.inventory import Gpu
from telemetry.catalogue import CATALOGUE

blueprint = Blueprint("gpus", __name__, url_prefix="/api/v1/gpus", description="GPUs and their latest values")

SORTS: Final = ("id", "hostname", "gpu_index", "model_name", "device", "first_seen", "last_seen")


class GpuListParameters(PageParameters):
    """Which GPUs, in which order."""

    hostname = plain("Only GPUs of this host", data_key="hostname")
    host = plain("The same as hostname")
    model = plain("Only models that contain this text, whatever the case")
    cluster = plain("Only GPUs of this cluster")
    status = fields.String(
        validate=ma.validate.OneOf(("active", "stale", "lost")), metadata={"description": "Only GPUs of this status"}
    )
    q = plain("Only GPUs whose id, host, model, device or pod contains this text")
    sort = fields.String(
        load_default="hostname",
        validate=ma.validate.OneOf([*SORTS, *(f"-{name}" for name in SORTS)]),
        metadata={"description": "Order, `-` for descending; hostname orders by host, then index"},
    )


@blueprint.route("")
class GpuList(MethodView):
    """All GPUs."""

    @cached(1)
    @blueprint.arguments(GpuListParameters, location="query")
    @blueprint.response(200, GpuListSchema)
    @described(blueprint, "listGpus", "List GPUs")
    def get(self, query: dict[str, Any]) -> Response:
        """A page of the GPUs that were ever seen, with the time they were last heard of.

        `status` is `active` (seen within 60 s), `stale` (within 1 h) or `lost`.
        """
        directory = context.directory()
        snapshot = directory.snapshot()
        now_ms = directory.now_ms()
        found = [i for i in directory.ids(snapshot, query["sort"]) if _matches(snapshot.gpus[i], query, now_ms)]
        page, size = query["page"], query["page_size"]
        chosen = found[(page - 1) * size : page * size]
        response = jsonify(
            gpus=[{**snapshot.documents[i], "status": status(snapshot.gpus[i].last_seen_ms, now_ms)} for i in chosen],
            total=len(found),
            page=page,
            page_size=size,
        )
        paging.describe_page(response, total=len(found), page=page, page_size=size)
        return response


def _matches(gpu: Gpu, query: dict[str, Any], now_ms: int) -> bool:
    host = query.get("hostname") or query.get("host")
    if host and gpu.hostname != host:
        return False
    if query.get("model") and query["model"].lower() not in gpu.model.lower():
        return False
    if query.get("cluster") and gpu.cluster != query["cluster"]:
        return False
    if query.get("status") and status(gpu.last_seen_ms, now_ms) != query["status"]:
        return False
    if query.get("q"):
        text = query["q"].lower()
        return any(
            text in field.lower() for field in (gpu.gpu_id, gpu.hostname, gpu.model, gpu.device, gpu.pod, gpu.namespace)
        )
    return True


@blueprint.route("/<string:gpu_id>")
class GpuDetail(MethodView):
    """One GPU."""

    @cached(1)
    @blueprint.response(200, GpuDetailSchema)
    @described(blueprint, "getGpu", "One GPU with its latest values")
    def get(self, gpu_id: str) -> Response:
        """The GPU's labels, who holds it, and the latest value of every metric with its unit.

        A metric's latest value is looked for in the hour before the GPU was last seen.
        """
        directory = context.directory()
        gpu = directory.gpu(gpu_id)
        return jsonify(detail(directory, gpu, context.latest().rows([gpu])))


def detail(directory: Directory, gpu: Gpu, rows: list[tuple[int, str, int, float]]) -> dict[str, Any]:
    """One GPU as a document; ``rows`` are its latest samples."""
    return {
        **directory.snapshot().documents[gpu.gpu_id],
        "status": status(gpu.last_seen_ms, directory.now_ms()),
        "uuid": gpu.uuid,
        "container": gpu.container,
        "pod": gpu.pod,
        "namespace": gpu.namespace,
        "job": gpu.job,
        "labels": gpu.extra,
        "latest": [
            {
                "metric_name": metric,
                "value": value,
                "unit": CATALOGUE[metric].unit if metric in CATALOGUE else "",
                "timestamp": format_ms(ts_ms),
                "help": CATALOGUE[metric].help if metric in CATALOGUE else "",
            }
            for _, metric, ts_ms, value in rows
        ],
    }

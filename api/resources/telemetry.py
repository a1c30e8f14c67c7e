"""Samples: of one GPU, or across GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from flask import Response, jsonify
from flask.views import MethodView
from flask_smorest import Blueprint

from api import context, formats, paging
from api.described import described
from api.directory import Directory
from api.params import FleetTelemetryParameters, TelemetryParameters
from api.schemas import GpuTelemetrySchema, TelemetrySchema
from api.times import format_many
from clickhouse.queries import samples
from clickhouse.queries.inventory import UNKNOWN
from clickhouse.queries.samples import Cursor, Filter, Sample
from telemetry.catalogue import canonical

blueprint = Blueprint("telemetry", __name__, url_prefix="/api/v1", description="Samples as they were measured")

CURSOR_KINDS: Final = (str, int, int, str, float, int, int)
"""Order, then a sample, then how many samples like it were given."""


def metric_names(query: dict[str, Any]) -> tuple[str, ...]:
    """The canonical names of the metrics asked for, whatever alias was used."""
    return tuple(dict.fromkeys(canonical(name)[0] for name in query.get("metric_name", ())))


def page_of(wanted: Filter, query: dict[str, Any], document: Any, **head: Any) -> Response:
    """One page as a response: by cursor if one is given, else by number. ``document`` makes the rows' documents."""
    store, limits = context.store(), context.query_limits(wanted)
    size, order = query["page_size"], query["order"]
    body: dict[str, Any] = dict(head)
    before = None
    if query.get("cursor") is not None:
        order, *key, given = paging.decode_cursor(query["cursor"], CURSOR_KINDS)
        if order not in ("asc", "desc") or given < 0:
            paging.decode_cursor("", ())
        before = Cursor(Sample(key[0], key[1], key[2], float(key[3]), key[4]), min(given, 1_000_000))
        rows = samples.page_after(store, wanted, before, order=order, limit=size + 1, settings=limits)
    else:
        offset = (query["page"] - 1) * size
        rows, total = samples.page(store, wanted, order=order, limit=size + 1, offset=offset, settings=limits)
    more = len(rows) > size
    rows = rows[:size]
    next_cursor = _next_cursor(rows, before, order) if more else None
    body["telemetry"] = document(rows)
    if before is None:
        body |= {"total": total, "page": query["page"], "page_size": size, "next_cursor": next_cursor}
        response = jsonify(body)
        paging.describe_page(response, total=total, page=query["page"], page_size=size)
    else:
        body |= {"page_size": size, "next_cursor": next_cursor}
        response = jsonify(body)
        paging.describe_cursor(response, next_cursor)
    return response


def _next_cursor(rows: Sequence[Sample], before: Cursor | None, order: str) -> str:
    cursor = samples.cursor_after(rows, before)
    return paging.encode_cursor([order, *cursor.key, cursor.given])


def documents(directory: Directory, rows: Sequence[Sample], *, with_gpu: bool) -> list[dict[str, Any]]:
    """Samples as the API tells them."""
    labels = directory.labels((row.gpu, row.labels) for row in rows)
    found = []
    times = format_many(np.array([row.ts_ms for row in rows], dtype=np.int64))
    for row, timestamp in zip(rows, times, strict=True):
        about = labels.get(row.labels, UNKNOWN)
        document = {
            "timestamp": timestamp,
            "metric_name": row.metric,
            "value": row.value,
            "device": about.device,
            "hostname": about.hostname,
        }
        if with_gpu:
            document["gpu_id"] = about.gpu_id
        found.append(document)
    return found


@blueprint.route("/gpus/<string:gpu_id>/telemetry")
class GpuTelemetry(MethodView):
    """Samples of one GPU."""

    @blueprint.arguments(TelemetryParameters, location="query")
    @blueprint.response(200, GpuTelemetrySchema)
    @formats.documented(blueprint)
    @described(blueprint, "getGpuTelemetry", "Samples of one GPU")
    def get(self, query: dict[str, Any], gpu_id: str) -> Response:
        """Samples of one GPU in time order, both ends of the range included.

        Other formats than JSON are streamed whole: they have no pages, and end where the range ends.
        """
        directory = context.directory()
        gpu = directory.gpu(gpu_id)
        wanted = Filter((gpu.key,), metric_names(query), query.get("start_time"), query.get("end_time"))
        chosen = formats.chosen(query)
        if chosen != "json":
            return formats.export(chosen, wanted, query["order"], f"{gpu_id}-telemetry")
        return page_of(wanted, query, lambda rows: documents(directory, rows, with_gpu=False), gpu_id=gpu_id)


@blueprint.route("/telemetry")
class FleetTelemetry(MethodView):
    """Samples across GPUs."""

    @blueprint.arguments(FleetTelemetryParameters, location="query")
    @blueprint.response(200, TelemetrySchema)
    @formats.documented(blueprint)
    @described(blueprint, "listTelemetry", "Samples across GPUs")
    def get(self, query: dict[str, Any]) -> Response:
        """Samples of every GPU that the filters name, in time order, both ends of the range included.

        Other formats than JSON are streamed whole: they have no pages, and end where the range ends.
        """
        directory = context.directory()
        keys = chosen_gpus(directory, query)
        wanted = Filter(keys or (), metric_names(query), query.get("start_time"), query.get("end_time"))
        if keys == ():
            # Filters that match no GPU: an empty page, not every GPU.
            wanted = Filter((), ("",), 0, 0)
        chosen = formats.chosen(query)
        if chosen != "json":
            return formats.export(chosen, wanted, query["order"], "telemetry")
        return page_of(wanted, query, lambda rows: documents(directory, rows, with_gpu=True))


def chosen_gpus(directory: Directory, query: dict[str, Any]) -> tuple[int, ...] | None:
    """Keys of the GPUs that the filters leave; None if there is no filter. An unknown gpu_id is 404."""
    if not any(query.get(name) for name in ("gpu_id", "hostname", "namespace", "pod")):
        return None
    if query.get("gpu_id"):
        gpus = [directory.gpu(gpu_id) for gpu_id in query["gpu_id"]]
    else:
        gpus = list(directory.snapshot().gpus.values())
    hosts = set(query.get("hostname", ()))
    return tuple(
        gpu.key
        for gpu in gpus
        if (not hosts or gpu.hostname in hosts)
        and (not query.get("namespace") or gpu.namespace == query["namespace"])
        and (not query.get("pod") or gpu.pod == query["pod"])
    )

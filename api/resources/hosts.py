"""Hosts and what is in them."""

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
from api.directory import Snapshot, status
from api.errors import Problem
from api.params import PageParameters, plain
from api.resources.gpus import detail
from api.schemas import HostDetailSchema, HostListSchema
from api.times import format_ms
from clickhouse.queries.inventory import Gpu

blueprint = Blueprint("hosts", __name__, url_prefix="/api/v1/hosts", description="Hosts and their GPUs")

SORTS: Final = ("name", "gpus", "first_seen", "last_seen")


class HostListParameters(PageParameters):
    """Which hosts, in which order."""

    q = plain("Only hosts whose name contains this text")
    cluster = plain("Only hosts of this cluster")
    sort = fields.String(
        load_default="name",
        validate=ma.validate.OneOf([*SORTS, *(f"-{name}" for name in SORTS)]),
        metadata={"description": "Order, `-` for descending"},
    )


def by_host(snapshot: Snapshot) -> dict[str, list[Gpu]]:
    """GPUs by host, each host's by index."""
    hosts: dict[str, list[Gpu]] = {}
    for gpu in snapshot.gpus.values():
        hosts.setdefault(gpu.hostname, []).append(gpu)
    for gpus in hosts.values():
        gpus.sort(key=lambda gpu: (len(gpu.gpu_index), gpu.gpu_index, gpu.gpu_id))
    return hosts


def document(name: str, gpus: list[Gpu], now_ms: int) -> dict[str, Any]:
    """One host as the API tells it."""
    return {
        "name": name,
        "cluster": gpus[0].cluster,
        "gpus": len(gpus),
        "active": sum(status(gpu.last_seen_ms, now_ms) == "active" for gpu in gpus),
        "models": sorted({gpu.model for gpu in gpus}),
        "first_seen": format_ms(min(gpu.first_seen_ms for gpu in gpus)),
        "last_seen": format_ms(max(gpu.last_seen_ms for gpu in gpus)),
    }


@blueprint.route("")
class HostList(MethodView):
    """All hosts."""

    @cached(1)
    @blueprint.arguments(HostListParameters, location="query")
    @blueprint.response(200, HostListSchema)
    @described(blueprint, "listHosts", "List hosts")
    def get(self, query: dict[str, Any]) -> Response:
        """A page of hosts with their GPUs counted."""
        directory = context.directory()
        now_ms = directory.now_ms()
        text = (query.get("q") or "").lower()
        found = [
            document(name, gpus, now_ms)
            for name, gpus in by_host(directory.snapshot()).items()
            if text in name.lower() and (not query.get("cluster") or gpus[0].cluster == query["cluster"])
        ]
        name = query["sort"].lstrip("-")
        found.sort(key=lambda host: (host[name], host["name"]), reverse=query["sort"].startswith("-"))
        page, size = query["page"], query["page_size"]
        response = jsonify(hosts=found[(page - 1) * size : page * size], total=len(found), page=page, page_size=size)
        paging.describe_page(response, total=len(found), page=page, page_size=size)
        return response


@blueprint.route("/<string:name>")
class HostDetail(MethodView):
    """One host."""

    @cached(1)
    @blueprint.response(200, HostDetailSchema)
    @described(blueprint, "getHost", "One host with its GPUs' latest values")
    def get(self, name: str) -> Response:
        """The host and its GPUs in order of their index, each with the latest value of every metric."""
        directory = context.directory()
        gpus = by_host(directory.snapshot()).get(name) or by_host(directory.snapshot(fresh=True)).get(name)
        if not gpus:
            raise Problem(404, f"no host {name!r} was ever seen; GET /api/v1/hosts lists those that were")
        by_gpu: dict[int, list[Any]] = {}
        for row in context.latest().rows(gpus):
            by_gpu.setdefault(row[0], []).append(row)
        found = document(name, gpus, directory.now_ms())
        found["gpu_list"] = [detail(directory, gpu, by_gpu.get(gpu.key, [])) for gpu in gpus]
        return jsonify(found)

"""The whole fleet in one small answer."""

from __future__ import annotations

from typing import Any, Final

from flask import Response, jsonify
from flask.views import MethodView
from flask_smorest import Blueprint

from api import context
from api.caching import cached
from api.described import described
from api.directory import status
from api.params import Parameters, plain
from api.resources.hosts import by_host
from api.schemas import FleetSchema
from api.times import format_ms
from clickhouse.queries.inventory import Gpu
from telemetry.catalogue import CATALOGUE, canonical

blueprint = Blueprint("fleet", __name__, url_prefix="/api/v1/fleet", description="The fleet at a glance")

UTILISATION: Final = "DCGM_FI_DEV_GPU_UTIL"
POWER: Final = "DCGM_FI_DEV_POWER_USAGE"
WORK: Final = {
    "DCGM_FI_PROF_SM_ACTIVE": 0.05,
    "DCGM_FI_PROF_GR_ENGINE_ACTIVE": 0.05,
    UTILISATION: 5.0,
}
"""What says that a GPU works, best first: the first of these that it reports counts. Utilisation alone misleads: it
tells that a kernel was resident, not that it did something."""

RECENT_MS: Final = 300_000


class FleetParameters(Parameters):
    """What colours the fleet."""

    metric_name = plain("Metric of each GPU's `value`", load_default=UTILISATION)


@blueprint.route("")
class Fleet(MethodView):
    """The fleet."""

    @cached(2)
    @blueprint.arguments(FleetParameters, location="query")
    @blueprint.response(200, FleetSchema)
    @described(blueprint, "getFleet", "Latest value of a metric for every GPU, by host, and totals")
    def get(self, query: dict[str, Any]) -> Response:
        """The latest value (of the last 5 minutes) of one metric for every GPU, by host, and the fleet's funnel.

        The funnel: GPUs ever seen, of these reporting, of these allocated to a pod or job, of these active. `working`
        counts GPUs that work whether somebody holds them or not: where nothing tells of pods or jobs, look at that.
        """
        metric = canonical(query["metric_name"])[0]
        directory = context.directory()
        snapshot = directory.snapshot()
        now_ms = directory.now_ms()
        newest_ms = max((gpu.last_seen_ms for gpu in snapshot.gpus.values()), default=now_ms)
        wanted = tuple({metric, POWER, *WORK})
        rows = context.latest().of_metrics(wanted, min(now_ms, newest_ms) - RECENT_MS)
        values = {(gpu, name): value for gpu, name, _, value in rows}
        hosts = by_host(snapshot)
        known = CATALOGUE.get(metric)
        return jsonify(
            metric_name=metric,
            unit=known.unit if known else "",
            timestamp=format_ms(now_ms),
            totals=totals(list(snapshot.gpus.values()), len(hosts), values, now_ms),
            hosts=[
                {
                    "hostname": name,
                    "gpus": [
                        {
                            "id": gpu.gpu_id,
                            "gpu_index": gpu.gpu_index,
                            "value": values.get((gpu.key, metric)),
                            "status": status(gpu.last_seen_ms, now_ms),
                            "pod": gpu.pod,
                            "namespace": gpu.namespace,
                        }
                        for gpu in hosts[name]
                    ],
                }
                for name in sorted(hosts)
            ],
        )


def totals(gpus: list[Gpu], hosts: int, values: dict[tuple[int, str], float], now_ms: int) -> dict[str, Any]:
    """The fleet's numbers; ``values`` are latest values by (GPU key, metric)."""
    found = {"active": 0, "stale": 0, "lost": 0}
    allocated = active = working = 0
    power: list[float] = []
    utilisation: list[float] = []
    for gpu in gpus:
        state = status(gpu.last_seen_ms, now_ms)
        found[state] += 1
        if state != "active":
            continue
        held = bool(gpu.pod or gpu.container or (gpu.job and gpu.namespace))
        works = next(
            (values[gpu.key, name] > least for name, least in WORK.items() if (gpu.key, name) in values), False
        )
        allocated += held
        working += works
        active += held and works
        if (gpu.key, POWER) in values:
            power.append(values[gpu.key, POWER])
        if (gpu.key, UTILISATION) in values:
            utilisation.append(values[gpu.key, UTILISATION])
    return {
        "gpus": len(gpus),
        "hosts": hosts,
        "reporting": found["active"],
        "stale": found["stale"],
        "lost": found["lost"],
        "allocated": allocated,
        "active": active,
        "idle_allocated": allocated - active,
        "working": working,
        "power_watts": round(sum(power), 1) if power else None,
        "mean_utilization": round(sum(utilisation) / len(utilisation), 2) if utilisation else None,
    }

"""Live tails: the same messages as server-sent events and over a WebSocket."""

from __future__ import annotations

from typing import Any

from flask import Response, current_app, request
from flask.views import MethodView
from flask_smorest import Blueprint

from api import live
from api.described import described
from api.errors import BrokerAway, Problem
from api.hub import Hub, TailFilter
from api.params import Names, Parameters, plain
from telemetry.catalogue import canonical

blueprint = Blueprint("live", __name__, url_prefix="/api/v1", description="Rows as they arrive")


class LiveParameters(Parameters):
    """Which rows a tail wants."""

    gpu_id = Names(names_max=1000, metadata={"description": "GPU ids, separated by commas; left out: all"})
    hostname = Names(metadata={"description": "Hosts, separated by commas; left out: all"})
    metric_name = Names(metadata={"description": "Metric names, separated by commas; left out: all"})
    last_event_id = plain("Go on after this event, where the Last-Event-ID header cannot be set")
    api_key = plain("An API key, where headers cannot be set (EventSource, WebSocket)")


def _subscribe(query: dict[str, Any]) -> live.LiveTail:
    hub: Hub | None = current_app.extensions["hub"]
    if hub is None:
        raise BrokerAway("this API runs without a broker: there is nothing to tail")
    wanted = TailFilter(
        frozenset(query.get("gpu_id", ())),
        frozenset(query.get("hostname", ())),
        frozenset(canonical(name)[0] for name in query.get("metric_name", ())),
    )
    return hub.subscribe(wanted, request.headers.get("Last-Event-ID", "") or query.get("last_event_id", ""))


@blueprint.route("/stream")
class Stream(MethodView):
    """Server-sent events."""

    @blueprint.arguments(LiveParameters, location="query")
    @blueprint.response(
        200, {"type": "string"}, content_type="text/event-stream", description="An endless stream of events"
    )
    @described(blueprint, "streamTelemetry", "Live rows as server-sent events")
    def get(self, query: dict[str, Any]) -> Response:
        """Rows as they reach the broker, before they are stored.

        Events: `telemetry` with `{"telemetry": [sample, …]}`, and `gap` with `{"missed_rows", "reason"}` where this
        client read too slowly or came back too late. A comment every 15 s keeps the connection. After a break, send
        the last `id` as `Last-Event-ID` (browsers do) to get what came since, for about a minute.
        """
        tail = _subscribe(query)
        if request.environ.get(live.ASYNC_KEY):
            live.leave(request.environ, tail)
            response = Response(b"")
        else:
            response = Response(tail.sse())
            response.call_on_close(tail.close)
        response.headers["Content-Type"] = "text/event-stream; charset=utf-8"
        response.headers["Cache-Control"] = "no-store"
        # Reverse proxies must not wait for more.
        response.headers["X-Accel-Buffering"] = "no"
        return response


@blueprint.route("/ws")
class WebSocket(MethodView):
    """The WebSocket."""

    @blueprint.arguments(LiveParameters, location="query")
    @blueprint.response(101, description="The connection becomes a WebSocket")
    @blueprint.alt_response(426, description="Only a WebSocket client can use this")
    @described(blueprint, "webSocketTelemetry", "Live rows over a WebSocket")
    def get(self, query: dict[str, Any]) -> Response:
        """The messages of `/api/v1/stream` as text frames `{"event", "id", "data"}`, and `heartbeat` every 15 s."""
        if not request.environ.get(live.WEBSOCKET_KEY):
            raise Problem(426, "this is a WebSocket: connect with ws:// or wss://", headers={"Upgrade": "websocket"})
        live.leave(request.environ, _subscribe(query))
        return Response(b"")

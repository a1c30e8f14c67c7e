"""GraphQL over the same questions as the REST endpoints; off unless ``--graphql`` is given.

Queries only. Before anything is asked, depth and cost of the whole document are bounded: cost counts the fields that
ask the store, times the items of the lists around them, so that one request cannot ask for every GPU's samples.
"""

from __future__ import annotations

from typing import Any, Final

from flask import Response, jsonify, request
from flask_smorest import Blueprint
from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLError,
    GraphQLSchema,
    InlineFragmentNode,
    IntValueNode,
    OperationDefinitionNode,
    SelectionSetNode,
    VariableNode,
    build_schema,
    execute_sync,
    parse,
    validate,
)

from api import context
from api.described import described
from api.directory import status
from api.errors import Problem
from api.resources.gpus import detail
from api.resources.hosts import by_host
from api.resources.hosts import document as host_document
from api.resources.series import chosen_step_ms, point_documents
from api.resources.telemetry import documents
from api.times import parse_duration_ms, parse_time_ms
from clickhouse.queries import samples, series
from clickhouse.queries.samples import Filter
from telemetry.catalogue import CATALOGUE, canonical

blueprint = Blueprint("graphql", __name__, description="The same questions in GraphQL")

DEPTH_MAX: Final = 8
COST_MAX: Final = 200
LIMIT_MAX: Final = 1000
DOCUMENT_CHARS_MAX: Final = 20_000
ASKS_STORE: Final = frozenset({"latest", "telemetry", "series"})

SCHEMA_TEXT: Final = '''
"""Times are RFC 3339, unix seconds, or relative such as now-1h; ranges include both ends."""
type Query {
  gpus(hostname: String, status: String, q: String, limit: Int = 100, offset: Int = 0): [Gpu!]!
  gpu(id: ID!): Gpu
  hosts(limit: Int = 100, offset: Int = 0): [Host!]!
  metrics: [Metric!]!
}
type Gpu {
  id: ID!
  device: String
  gpu_index: String
  model_name: String
  hostname: String
  cluster: String
  first_seen: String
  last_seen: String
  status: String
  "Latest value of every metric; asks the store."
  latest: [Latest!]!
  "Samples in time order; asks the store."
  telemetry(
    metric_name: [String!], start_time: String, end_time: String, order: String = "asc", limit: Int = 100
  ): [Sample!]!
  "One point a step; asks the store."
  series(
    metric_name: String!, start_time: String = "now-1h", end_time: String = "now", step: String, agg: String = "avg"
  ): [Point!]!
}
type Latest { metric_name: String! value: Float! unit: String timestamp: String! }
type Sample { timestamp: String! metric_name: String! value: Float! device: String hostname: String }
type Point { timestamp: String! value: Float! min: Float! max: Float! }
type Host { name: String! gpus: Int! active: Int! last_seen: String gpu_list: [Gpu!]! }
type Metric { name: String! unit: String! kind: String! help: String! }
'''

SCHEMA: Final[GraphQLSchema] = build_schema(SCHEMA_TEXT)


@blueprint.route("/graphql", methods=["POST"])
@blueprint.response(200, {"type": "object"}, description="data and errors")
@described(
    blueprint,
    "graphql",
    "Ask in GraphQL",
    requestBody={
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["query"],
                    "properties": {
                        "query": {"type": "string", "example": "{ gpus(limit: 2) { id status } }"},
                        "variables": {"type": "object"},
                        "operationName": {"type": "string"},
                    },
                }
            }
        },
    },
)
def query() -> Response:
    """Queries only, over the same data as the REST endpoints. Depth and cost are limited; errors are in `errors`.

    404 unless the API was started with `--graphql`.
    """
    if not context.settings().graphql:
        raise Problem(404, "GraphQL is off: start the API with --graphql")
    body = request.get_json(silent=True)
    if not isinstance(body, dict) or not isinstance(body.get("query"), str):
        raise Problem(422, "a JSON object with `query` is needed")
    if len(body["query"]) > DOCUMENT_CHARS_MAX:
        raise Problem(413, f"a query has at most {DOCUMENT_CHARS_MAX} characters")
    variables = body.get("variables") if isinstance(body.get("variables"), dict) else {}
    try:
        document = parse(body["query"], max_tokens=2000)
    except GraphQLError as error:
        return _failed([error])
    # Before validation, whose own rules take long for what is nested deeply.
    over = over_limits(document, variables or {})
    if over:
        return _failed([GraphQLError(over)])
    errors = validate(SCHEMA, document)
    if errors:
        return _failed(errors)
    operation = body.get("operationName")
    result = execute_sync(
        SCHEMA,
        document,
        _Root(),
        variable_values=variables,
        operation_name=operation if isinstance(operation, str) else None,
    )
    for error in result.errors or ():
        # What the store or a parameter said becomes an HTTP status, as everywhere else in this API.
        if error.original_error is not None and not isinstance(error.original_error, (ValueError, GraphQLError)):
            raise error.original_error
    return jsonify(result.formatted)


def _failed(errors: list[GraphQLError]) -> Response:
    response = jsonify({"errors": [error.formatted for error in errors[:10]]})
    response.headers["Cache-Control"] = "no-store"
    return response


def over_limits(document: DocumentNode, variables: dict[str, Any]) -> str:
    """Why a document is too deep or costs too much; "" if it does not."""
    fragments = {node.name.value: node for node in document.definitions if isinstance(node, FragmentDefinitionNode)}
    for node in document.definitions:
        if isinstance(node, OperationDefinitionNode):
            try:
                cost = _cost(node.selection_set, 1, 1, fragments, variables, ())
            except _TooDeep:
                return f"the query is nested more than {DEPTH_MAX} deep"
            if cost > COST_MAX:
                return f"the query would ask the store {cost} times, at most {COST_MAX} are allowed: take fewer GPUs"
    return ""


class _TooDeep(Exception):
    pass


def _cost(
    selection: SelectionSetNode,
    depth: int,
    items: int,
    fragments: dict[str, FragmentDefinitionNode],
    variables: dict[str, Any],
    inside: tuple[str, ...],
) -> int:
    if depth > DEPTH_MAX:
        raise _TooDeep
    cost = 0
    for node in selection.selections:
        if isinstance(node, FieldNode):
            name = node.name.value
            cost += items if name in ASKS_STORE else 0
            if node.selection_set:
                inner = items * _items(node, variables)
                cost += _cost(node.selection_set, depth + 1, inner, fragments, variables, inside)
        elif isinstance(node, InlineFragmentNode):
            cost += _cost(node.selection_set, depth + 1, items, fragments, variables, inside)
        elif isinstance(node, FragmentSpreadNode):
            name = node.name.value
            if name in inside:
                raise _TooDeep
            if name in fragments:
                chosen = fragments[name].selection_set
                cost += _cost(chosen, depth + 1, items, fragments, variables, (*inside, name))
        if cost > COST_MAX:
            return cost
    return cost


def _items(node: FieldNode, variables: dict[str, Any]) -> int:
    """How many items a list field may give."""
    name = node.name.value
    if name == "gpu_list":
        return 16
    if name not in ("gpus", "hosts"):
        return 1
    for argument in node.arguments or ():
        if argument.name.value == "limit":
            if isinstance(argument.value, IntValueNode):
                return max(1, int(argument.value.value))
            if isinstance(argument.value, VariableNode):
                given = variables.get(argument.value.name.value, 100)
                return max(1, given) if isinstance(given, int) else LIMIT_MAX
    return 100


def _limit(value: int) -> int:
    if not 1 <= value <= LIMIT_MAX:
        raise ValueError(f"limit is 1 to {LIMIT_MAX}")
    return value


def _time(text: str | None, *, up: bool) -> int | None:
    return None if text is None else parse_time_ms(text, now_ms=context.directory().now_ms(), up=up)


class _Root:
    """The Query type."""

    def gpus(self, info: Any, *, limit: int, offset: int, **wanted: str) -> list[_Gpu]:
        directory = context.directory()
        snapshot = directory.snapshot()
        now_ms = directory.now_ms()
        text = (wanted.get("q") or "").lower()
        found = [
            gpu_id
            for gpu_id in directory.ids(snapshot, "hostname")
            if (not wanted.get("hostname") or snapshot.gpus[gpu_id].hostname == wanted["hostname"])
            and (not wanted.get("status") or status(snapshot.gpus[gpu_id].last_seen_ms, now_ms) == wanted["status"])
            and text in f"{gpu_id} {snapshot.gpus[gpu_id].hostname} {snapshot.gpus[gpu_id].pod}".lower()
        ]
        start = max(0, offset)
        return [_Gpu(gpu_id) for gpu_id in found[start : start + _limit(limit)]]

    def gpu(self, info: Any, *, id: str) -> _Gpu:
        context.directory().gpu(id)
        return _Gpu(id)

    def hosts(self, info: Any, *, limit: int, offset: int) -> list[dict[str, Any]]:
        directory = context.directory()
        hosts = by_host(directory.snapshot())
        start = max(0, offset)
        return [
            {
                **host_document(name, hosts[name], directory.now_ms()),
                "gpu_list": [_Gpu(gpu.gpu_id) for gpu in hosts[name]],
            }
            for name in sorted(hosts)[start : start + _limit(limit)]
        ]

    def metrics(self, info: Any) -> list[Any]:
        return list(CATALOGUE.values())


class _Gpu:
    """The Gpu type; fields that ask the store are methods."""

    def __init__(self, gpu_id: str) -> None:
        directory = context.directory()
        self._gpu = directory.gpu(gpu_id)
        self.__dict__.update(directory.snapshot().documents[gpu_id])
        self.status = status(self._gpu.last_seen_ms, directory.now_ms())

    def latest(self, info: Any) -> list[dict[str, Any]]:
        rows = context.latest().rows([self._gpu])
        found: list[dict[str, Any]] = detail(context.directory(), self._gpu, rows)["latest"]
        return found

    def telemetry(
        self,
        info: Any,
        *,
        order: str,
        limit: int,
        metric_name: list[str] | None = None,
        start_time: str | None = None,
        end_time: str | None = None,
    ) -> list[dict[str, Any]]:
        if order not in ("asc", "desc"):
            raise ValueError("order is asc or desc")
        names = tuple(canonical(name)[0] for name in metric_name or ())
        wanted = Filter((self._gpu.key,), names, _time(start_time, up=True), _time(end_time, up=False))
        rows, _ = samples.page(
            context.store(), wanted, order=order, limit=_limit(limit), settings=context.query_limits()
        )
        return documents(context.directory(), rows, with_gpu=False)

    def series(
        self, info: Any, *, metric_name: str, start_time: str, end_time: str, agg: str, step: str | None = None
    ) -> list[dict[str, Any]]:
        if agg not in (*series.AGGREGATES, "rate"):
            raise ValueError(f"agg is one of {', '.join(series.AGGREGATES)} or rate")
        start, end = _time(start_time, up=True) or 0, _time(end_time, up=False) or 0
        step_ms = parse_duration_ms(step) if step else chosen_step_ms(max(0, end - start), 500)
        if step_ms < 1 or (end - start) // step_ms > 11_000:
            raise ValueError("more than 11,000 points: use a larger step")
        wanted = Filter((self._gpu.key,), (canonical(metric_name)[0],), start, end)
        return point_documents(
            series.stepped(context.store(), wanted, step_ms=step_ms, agg=agg, settings=context.query_limits())
        )

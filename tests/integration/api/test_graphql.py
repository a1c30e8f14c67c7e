"""GraphQL: the same answers as REST, and nothing that costs without bound."""

from __future__ import annotations

from typing import Any

import pytest
from flask.testing import FlaskClient

from tests.helpers.api import METRICS, SECONDS, Fleet, app_on, pool


@pytest.fixture(scope="module")
def graph(fleet: Fleet) -> Any:
    with pool(fleet.url) as store:
        yield app_on(store, graphql=True).test_client()


def ask(client: FlaskClient, query: str, **variables: Any) -> Any:
    answer = client.post("/graphql", json={"query": query, "variables": variables})
    assert answer.status_code == 200, answer.get_json()
    return answer.get_json()


def test_it_answers_as_rest_does(graph: FlaskClient) -> None:
    told = ask(
        graph,
        """query($id: ID!) {
          gpus(hostname: "host-a") { id status hostname }
          gpu(id: $id) {
            latest { metric_name value unit }
            telemetry(metric_name: ["gpu_temp"], limit: 3, order: "desc") { value timestamp }
            series(metric_name: "gpu_temp", step: "10m", agg: "count") { value max }
          }
          hosts { name gpus gpu_list { id } }
          metrics { name unit }
        }""",
        id="GPU-a1",
    )
    data = told["data"]
    assert "errors" not in told
    assert [gpu["id"] for gpu in data["gpus"]] == ["GPU-a0", "GPU-a1"]
    assert {entry["metric_name"] for entry in data["gpu"]["latest"]} == set(METRICS)
    rest = graph.get("/api/v1/gpus/GPU-a1/telemetry?metric_name=gpu_temp&order=desc&page_size=3").get_json()
    assert [row["value"] for row in data["gpu"]["telemetry"]] == [row["value"] for row in rest["telemetry"]]
    assert sum(point["value"] for point in data["gpu"]["series"]) == SECONDS
    assert [host["name"] for host in data["hosts"]] == ["host-a", "host-b"]


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("{", "Syntax"),
        ("{ nothing }", "Cannot query field"),
        ("mutation { gpus { id } }", "not supported"),
        ("{ gpus(limit: 201) { latest { value } } }", "at most 200"),
        ("{ hosts(limit: 20) { gpu_list { latest { value } } } }", "at most 200"),
        ("{ gpus { ...f } } fragment f on Gpu { latest { value } ...g } fragment g on Gpu { ...f }", "nested"),
        ("{ a:hosts{gpu_list{" + "... on Gpu{" * 20 + "id" + "}" * 20 + "}}}", "nested"),
        ("{ gpus(limit: 5000) { id } }", "limit is 1 to"),
        ('{ gpu(id: "GPU-a0") { series(metric_name: "x", agg: "sum(1)") { value } } }', "agg is one of"),
        ('{ gpu(id: "GPU-a0") { telemetry(start_time: "soon") { value } } }', "is no time"),
    ],
)
def test_what_is_wrong_or_too_much_is_an_error_and_asks_nothing(graph: FlaskClient, query: str, words: str) -> None:
    assert words in str(ask(graph, query)["errors"])


def test_failures_have_the_statuses_of_rest(graph: FlaskClient, client: FlaskClient) -> None:
    unknown = graph.post("/graphql", json={"query": '{ gpu(id: "GPU-none") { id } }'})
    assert unknown.status_code == 404
    assert graph.post("/graphql", data="x").status_code == 422
    off = client.post("/graphql", json={"query": "{ metrics { name } }"})
    assert off.status_code == 404
    assert "--graphql" in off.get_json()["detail"]

"""The OpenAPI document: kept equal to the code, valid, and true under whatever a fuzzer makes of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from flask import Flask
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from openapi_spec_validator import validate
from schemathesis import GenerationMode
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi.checks import negative_data_rejection

from api.openapi import document, text
from tests.helpers.api import Fleet, app_on, pool
from tests.helpers.api_fakes import FakeBroker

ENDLESS = r"/api/v1/(stream|ws)$"


def test_the_kept_document_is_what_the_code_says(root: Path) -> None:
    assert (root / "docs" / "openapi.json").read_text("utf-8") == text(), "run `make openapi`"


def test_the_document_is_valid_and_names_every_operation() -> None:
    found = document()
    validate(found)
    operations = [operation for path in found["paths"].values() for verb, operation in path.items() if verb in VERBS]
    ids = [operation["operationId"] for operation in operations]
    assert len(ids) == len(set(ids)) >= 24
    for operation in operations:
        assert operation["summary"], operation["operationId"]
        assert operation["description"], operation["operationId"]
        for parameter in operation.get("parameters", []):
            assert parameter["description"] or parameter["in"] == "path", (operation["operationId"], parameter["name"])


VERBS = ("get", "post", "put", "patch", "delete")


@pytest.fixture(scope="module")
def fuzzed(fleet: Fleet) -> Any:
    with pool(fleet.url) as store:
        app = app_on(store, FakeBroker(), publish_seconds_max=0.2)
        app.extensions["monitor"].look_at_store()
        app.extensions["monitor"].clock = lambda: 0.0
        yield app


@pytest.fixture(scope="module")
def schema(fuzzed: Flask) -> Any:
    config = SchemathesisConfig.from_dict(
        {
            # Without a server in between nobody unpacks what was packed.
            "headers": {"Accept-Encoding": "identity"},
            "checks": {
                # A valid time may lie before another one, a cursor may be nobody's: refused by 422, and rightly.
                "positive_data_acceptance": {
                    "expected-statuses": ["2xx", "400", "404", "406", "409", "413", "415", "422", "426"]
                },
            },
        }
    )
    found = schemathesis.openapi.from_wsgi("/api/v1/swagger.json", fuzzed, config=config)
    return found.exclude(path_regex=ENDLESS)


@pytest.mark.parametrize("mode", GenerationMode)
def test_no_request_that_a_fuzzer_makes_gets_a_5xx_or_an_undocumented_answer(schema: Any, mode: GenerationMode) -> None:
    """Requests that keep to the document, and requests that break it: those must be refused."""
    tried = 0
    for result in schema.get_all_operations():
        try:
            fuzz(result.ok(), mode)
            tried += 1
        except Unsatisfiable:
            assert mode is GenerationMode.NEGATIVE, "only what takes nothing has nothing to break"
    assert tried >= (22 if mode is GenerationMode.POSITIVE else 12)


def fuzz(operation: Any, mode: GenerationMode) -> None:
    # Items that are wrong are refused one by one: the others of the request are stored.
    item_by_item = operation.definition.raw["operationId"] == "writeTelemetry"
    excluded = [negative_data_rejection] if item_by_item else []

    @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case: Any) -> None:
        case.call_and_validate(excluded_checks=excluded)

    check()


def test_what_follows_from_one_answer_is_asked_next(schema: Any) -> None:
    """Stateful: an upload's Location, a listed GPU and so on lead to further requests."""
    machine = schema.as_state_machine()
    machine.run(
        settings=settings(
            max_examples=8,
            stateful_step_count=6,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=True,
        )
    )


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A client package made by openapi-python-client from the kept document."""
    directory = tmp_path_factory.mktemp("client")
    (directory / "openapi.json").write_text(text())
    command = [sys.executable, "-m", "openapi_python_client", "generate", "--path", "openapi.json", "--meta", "none"]
    made = subprocess.run(
        [*command, "--output-path", "gpu_client"],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert made.returncode == 0, made.stdout + made.stderr
    assert "WARNING" not in made.stdout, made.stdout
    return directory


def test_a_generated_client_lists_reads_and_uploads(generated: Path, fuzzed: Flask, monkeypatch: Any) -> None:
    import httpx

    monkeypatch.syspath_prepend(str(generated))
    from gpu_client import Client
    from gpu_client.api.gpus import list_gpus
    from gpu_client.api.ingest import upload_csv
    from gpu_client.api.telemetry import get_gpu_telemetry
    from gpu_client.models import UploadCsvFilesBody
    from gpu_client.types import File

    client = Client(base_url="http://api")
    client.set_httpx_client(httpx.Client(transport=httpx.WSGITransport(app=fuzzed), base_url="http://api"))
    gpus = list_gpus.sync(client=client, page_size=2)
    assert gpus.total == 5
    assert [gpu.id for gpu in gpus.gpus] == ["GPU-a0", "GPU-a1"]
    page = get_gpu_telemetry.sync("GPU-a0", client=client, metric_name="gpu_temp", page_size=3)
    assert [row.value for row in page.telemetry] == [0, 1, 2]
    row = b"2025-07-18T20:42:34Z,DCGM_FI_DEV_GPU_TEMP,GPU-c,41\n"
    body = UploadCsvFilesBody(file=File(payload=b"timestamp,metric_name,uuid,value\n" + row, file_name="a.csv"))
    accepted = upload_csv.sync(client=client, body=body)
    assert accepted.filename == "a.csv"
    assert accepted.status in ("received", "running", "failed", "done")

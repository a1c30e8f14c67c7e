"""Writing: samples as JSON or NDJSON, whole CSV files, and what became of them."""

from __future__ import annotations

import logging
import re
import shutil
import time
from typing import Any, Final

import marshmallow as ma
from flask import Response, current_app, g, jsonify, request
from flask.views import MethodView
from flask_smorest import Blueprint
from marshmallow import fields

from api import context, ingest
from api.broker import Broker
from api.described import described
from api.errors import BrokerAway, Problem
from api.params import Parameters
from api.schemas import Document, number, text, whole
from api.submissions import Submission, Submissions, digest_of, session_of
from producers.batcher import Batcher
from producers.errors import SourceError
from producers.publisher import log_batch
from producers.uploads import UploadJobs

log = logging.getLogger(__name__)

blueprint = Blueprint("ingest", __name__, url_prefix="/api/v1", description="Writing through the broker")

JSON_TYPES: Final = ("application/json", "application/x-ndjson", "application/ndjson", "application/jsonl")
CSV_TYPES: Final = ("text/csv", "application/csv", "application/gzip", "application/octet-stream")
_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}$")


class IngestItemSchema(ma.Schema):
    """One sample to store."""

    timestamp = text("When it was measured: RFC 3339 or unix seconds; left out: now", "2025-07-18T20:42:34Z")
    metric_name = text("Metric; aliases are understood", "DCGM_FI_DEV_GPU_TEMP", required=True)
    value = number("The value, in the metric's unit", 41.0, required=True)
    unit = text("Unit of the value, if it is not the metric's own", "C")
    gpu_id = text("The GPU: a uuid, or hostname:index", "GPU-5fd4f087-86f3-7a43-b711-4771313afc50")
    uuid = text("The GPU's uuid, instead of gpu_id")
    hostname = text("Host", "mtv5-dgx1-hgpu-031")
    gpu_index = text("Index in the host", "0")
    device = text("Device name", "nvidia0")
    model_name = text("Model", "NVIDIA H100 80GB HBM3")
    cluster = text("Cluster")
    container = text("Container")
    pod = text("Pod")
    namespace = text("Namespace")
    job = text("Job")
    labels = fields.Dict(keys=fields.String(), values=fields.String(), metadata={"description": "Further labels"})


class SubmissionErrorSchema(Document):
    """What was wrong with one item or line."""

    index = whole("Item, from 0", 0)
    line = whole("Line of the file, from 1", 2)
    message = text("What is wrong", "value: a number is needed", required=True)
    text = fields.String(metadata={"description": "The line, shortened"})


class SubmissionSchema(Document):
    """Something sent, and how far it is."""

    id = text("Ask for it at /api/v1/csv/uploads/{id}", "5f0c2a6d9b3e4f1a8c7d6e5b", required=True)
    kind = text("json or csv", "json")
    status = text(
        "received, running, done (all of it is durable at the broker), or failed",
        "done",
        validate=ma.validate.OneOf(("received", "running", "done", "failed")),
        required=True,
    )
    message = text("Why it failed", "")
    filename = text("Name of the file", "")
    created = text("When it came", "2025-07-18T20:42:34.000Z")
    finished = text("When it was finished, null until then", allow_none=True)
    accepted_rows = whole("Rows handed to the broker so far", 10)
    durable_rows = whole("Rows that the broker has on disk", 10)
    rejected_rows = whole("Rows that gave nothing", 0)
    bytes_total = whole("Size of the upload", 1000)
    bytes_read = whole("Bytes read so far", 1000)
    errors = fields.List(fields.Nested(SubmissionErrorSchema), metadata={"description": "The first bad rows"})


class UploadParameters(Parameters):
    """How a file is taken."""

    timestamps = fields.String(
        load_default="now",
        validate=ma.validate.OneOf(("now", "shift", "original")),
        metadata={
            "description": "Times of the rows: now, the file's own moved to now (shift), or the file's own (original)"
        },
    )


def _broker() -> Broker:
    broker: Broker | None = current_app.extensions["broker"]
    if broker is None:
        raise BrokerAway("this API runs without a broker: nothing can be written")
    return broker


def _idempotency_key() -> str:
    key = request.headers.get("Idempotency-Key", "")
    if key and not _KEY.fullmatch(key):
        raise Problem(422, "Idempotency-Key: 1 to 255 visible ASCII characters are needed")
    client = g.get("client")
    return f"{client.name if client else ''}/{request.path}/{key}" if key else ""


def _accepted(submission: Submission) -> Response:
    response = jsonify(submission.document())
    response.status_code = 202
    response.headers["Location"] = f"{request.script_root}/api/v1/csv/uploads/{submission.id}"
    return response


def _body() -> bytes:
    limit = context.settings().body_bytes_max
    if (request.content_length or 0) > limit:
        raise Problem(413, f"the body is larger than {limit} bytes: send several requests, or upload a CSV")
    body = request.stream.read(limit + 1)
    if len(body) > limit:
        raise Problem(413, f"the body is larger than {limit} bytes: send several requests, or upload a CSV")
    return body


@blueprint.route("/telemetry", methods=["POST"])
class Ingest(MethodView):
    """Samples as JSON."""

    @blueprint.response(202, SubmissionSchema)
    @blueprint.alt_response(413, description="The body is too large")
    @blueprint.alt_response(415, description="Neither JSON nor NDJSON")
    @blueprint.alt_response(422, description="No item could be taken, or the key was used for something else")
    @blueprint.alt_response(503, description="The broker is away or takes no more")
    @described(
        blueprint,
        "writeTelemetry",
        "Write samples",
        parameters=[
            {
                "in": "header",
                "name": "Idempotency-Key",
                "schema": {"type": "string", "maxLength": 255},
                "description": "Names this write: a repeat with the same key and body stores nothing again",
            }
        ],
        requestBody={
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"type": "array", "items": {"$ref": "#/components/schemas/IngestItem"}, "minItems": 1}
                },
                "application/x-ndjson": {"schema": {"type": "string"}},
            },
        },
    )
    def post(self) -> Response:
        """Store samples through the broker: durable there when this answers `done`, queryable within a second or so.

        The body is an array of samples, one sample, `{"telemetry": [...]}`, or NDJSON. Every item is checked by itself:
        bad ones are counted and named in `errors`, the others are stored. 422 if none is good.
        """
        if request.mimetype not in JSON_TYPES:
            raise Problem(415, f"Content-Type must be one of {', '.join(JSON_TYPES[:2])}")
        broker = _broker()
        body = _body()
        submissions: Submissions = current_app.extensions["submissions"]
        submission, new = submissions.begin("json", key=_idempotency_key(), digest=digest_of(body, request.mimetype))
        if new:
            try:
                _publish(submission, broker, body, ndjson=request.mimetype != "application/json")
            except Exception:
                # Begun again, its first batch must be the session's first.
                broker.release(session_of(submission))
                if submission.receipts:
                    submission.state, submission.message = "failed", "the broker took only a part of it: send it again"
                    submissions.save(submission)
                else:
                    submissions.drop(submission)
                raise
            submissions.save(submission)
        elif submission.state == "received":
            raise Problem(409, "the first request with this Idempotency-Key is still being worked on")
        _wait_durable(submission)
        broker.release(session_of(submission))
        return _accepted(submissions.get(submission.id))


def _publish(submission: Submission, broker: Broker, body: bytes, *, ndjson: bool) -> None:
    try:
        parsed = ingest.parse(ingest.items_of(body, ndjson=ndjson))
    except ingest.BodyError as error:
        raise Problem(422, str(error)) from None
    errors = ingest.error_documents(parsed.errors)
    if not parsed.columns.rows:
        raise Problem(422, f"no item could be taken: {errors[0]['message']}", errors={"items": errors})
    submission.errors, submission.rejected = errors, parsed.rejected
    submission.bytes_total = submission.bytes_read = len(body)
    batcher = Batcher(parsed.identities)
    for part in ingest.parts(parsed.columns):

        def pack(session: int, seq: int, part: Any = part) -> bytes:
            return batcher.pack(part, part.timestamp_ns, session, seq)

        receipt = broker.publish(
            pack, part.rows, seconds=context.settings().publish_seconds_max, session=session_of(submission)
        )
        if log.isEnabledFor(logging.DEBUG):
            log_batch(log, "batch published", receipt, part.rows, request_id=g.get("request_id", ""))
        submission.receipts.append((receipt, part.rows))
        submission.rows += part.rows
    submission.state = "running"


def _wait_durable(submission: Submission) -> None:
    """Wait for the broker; 503 if it does not confirm in time, with the submission to ask for."""
    deadline = time.monotonic() + context.settings().publish_seconds_max
    for receipt, _ in list(submission.receipts):
        if not receipt.wait(max(0.0, deadline - time.monotonic())):
            raise Problem(
                503,
                f"the broker did not confirm in time; submission {submission.id} is kept and sent again: ask for it or "
                "repeat this request with the same Idempotency-Key",
                headers={"Retry-After": "2"},
                submission=submission.id,
            )


@blueprint.route("/csv/upload", methods=["POST"])
class CsvUpload(MethodView):
    """CSV files."""

    @blueprint.arguments(UploadParameters, location="query")
    @blueprint.response(202, SubmissionSchema)
    @blueprint.alt_response(413, description="The file is too large")
    @blueprint.alt_response(415, description="Neither a form nor a CSV")
    @blueprint.alt_response(422, description="No CSV whose columns are understood")
    @blueprint.alt_response(503, description="The broker is away, or too many uploads wait")
    @described(
        blueprint,
        "uploadCsv",
        "Upload a CSV file",
        parameters=[
            {
                "in": "header",
                "name": "Idempotency-Key",
                "schema": {"type": "string", "maxLength": 255},
                "description": "Names this upload: a repeat with the same key and file stores nothing again",
            }
        ],
        requestBody={
            "required": True,
            "content": {
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "properties": {"file": {"type": "string", "format": "binary"}},
                        "required": ["file"],
                    }
                },
                "text/csv": {"schema": {"type": "string", "format": "binary"}},
            },
        },
    )
    def post(self, query: dict[str, Any]) -> Response:
        """A CSV file in the form field `file`, or as the body itself, plain or gzip.

        The header is checked at once (422 names what is missing); rows are published in the background: ask
        `GET /api/v1/csv/uploads/{id}` (see `Location`) how far it is.
        """
        broker = _broker()
        uploads: UploadJobs = current_app.extensions["uploads"]
        submissions: Submissions = current_app.extensions["submissions"]
        if not uploads.has_room():
            raise BrokerAway("too many uploads wait for the broker already: try again later")
        path = uploads.new_path()
        try:
            filename = _receive(path)
            if not broker.reachable(context.settings().publish_seconds_max):
                raise BrokerAway("the broker cannot be reached at present: try again shortly")
            size = path.stat().st_size
            digest = digest_of(str(size), _file_digest(path), query["timestamps"])
            submission, new = submissions.begin("csv", key=_idempotency_key(), digest=digest, id=path.stem)
            if new:
                submission.filename, submission.bytes_total = filename, size
                try:
                    uploads.submit(path, filename, query["timestamps"], session=session_of(submission))
                except SourceError as error:
                    submissions.drop(submission)
                    raise Problem(422, str(error)) from None
                submissions.save(submission)
            return _accepted(submissions.get(submission.id))
        finally:
            path.unlink(missing_ok=True)


def _receive(path: Any) -> str:
    """Write the uploaded file to ``path``; its name."""
    if request.mimetype == "multipart/form-data":
        given = request.files.get("file")
        if given is None:
            raise Problem(422, "the form has no field `file`")
        given.save(path)
        return re.sub(r"[^\w.() -]", "_", given.filename or "")[:200]
    if request.mimetype in CSV_TYPES:
        with path.open("wb") as out:
            shutil.copyfileobj(request.stream, out, 1 << 20)
        return "upload.csv"
    raise Problem(415, "send a form with the field `file`, or the CSV itself as text/csv")


def _file_digest(path: Any) -> str:
    with path.open("rb") as data:
        return digest_of(*iter(lambda: data.read(1 << 20), b""))


@blueprint.route("/csv/uploads/<string:submission_id>")
class SubmissionStatus(MethodView):
    """What became of something sent."""

    @blueprint.response(200, SubmissionSchema)
    @described(blueprint, "getUpload", "What became of an upload or a write")
    def get(self, submission_id: str) -> Response:
        """Progress of a CSV upload, or of a write by `POST /api/v1/telemetry`. Ids are known for a day."""
        submissions: Submissions = current_app.extensions["submissions"]
        response = jsonify(submissions.get(submission_id).document())
        response.headers["Cache-Control"] = "no-store"
        return response

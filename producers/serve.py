"""``telemetry-streamer serve``: CSV files over HTTP.

``POST /api/v1/csv/upload`` (multipart with the field ``file``, or the file itself as the body) answers 202 with a job
id; ``GET /api/v1/csv/uploads/{id}`` tells how far it is. What comes in goes to disk first, so a slow broker never holds
a client's connection; where too many uploads wait, the answer is 503 with Retry-After.
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import json
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final
from wsgiref.types import StartResponse, WSGIEnvironment

from werkzeug.exceptions import HTTPException, RequestEntityTooLarge
from werkzeug.wrappers import Request, Response

from producers.errors import SourceError
from producers.live import producer_maker
from producers.status import StreamerStatus
from producers.supervising import state_dir, worker_settings
from producers.uploads import UploadJobs
from telemetry.options import UsageError
from telemetry.service import Service

TIMESTAMPS: Final = ("original", "now", "shift")


class UploadApp:
    """The WSGI application below ``/api/v1/csv``. ``allowed(key)``: whether a key may write; None lets everyone."""

    def __init__(self, jobs: UploadJobs, bytes_max: int, allowed: Callable[[str], bool] | None = None) -> None:
        self._jobs = jobs
        self._bytes_max = bytes_max
        self._allowed = allowed

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        request = Request(environ)
        request.max_content_length = self._bytes_max
        try:
            response = self._answer(request)
        except RequestEntityTooLarge:
            response = _problem(413, f"the upload is above {self._bytes_max} bytes")
        except HTTPException as e:
            response = _problem(e.code or 500, e.description or e.name)
        return response(environ, start_response)

    def _answer(self, request: Request) -> Response:
        if self._allowed is not None and not self._allowed(_key_of(request)):
            response = _problem(401, "a key with the scope write is needed: X-API-Key or Authorization: Bearer")
            response.headers["WWW-Authenticate"] = "Bearer"
            return response
        path = request.path.rstrip("/")
        if path == "/api/v1/csv/upload":
            if request.method != "POST":
                return _problem(405, "only POST", {"Allow": "POST"})
            return self._upload(request)
        if path.startswith("/api/v1/csv/uploads/") and request.method in ("GET", "HEAD"):
            job = self._jobs.get(path.rpartition("/")[2])
            return _problem(404, "no upload of that id is known") if job is None else _json(200, job.public())
        return _problem(404, "nothing here; POST /api/v1/csv/upload")

    def _upload(self, request: Request) -> Response:
        timestamps = request.args.get("timestamps", "original")
        if timestamps not in TIMESTAMPS:
            return _problem(400, f"timestamps: {timestamps!r} is none of {', '.join(TIMESTAMPS)}")
        if not self._jobs.has_room():
            return _problem(503, "too many uploads wait for the broker: come again", {"Retry-After": "5"})
        if request.content_length is not None and request.content_length > self._bytes_max:
            raise RequestEntityTooLarge()
        part = self._jobs.new_path()
        try:
            filename = self._receive(request, part)
            if filename is None:
                return _problem(400, "the form has no file in its field 'file'")
            job = self._jobs.submit(part, filename, timestamps)
        except SourceError as e:
            return _problem(400, str(e))
        finally:
            part.unlink(missing_ok=True)
        location = f"/api/v1/csv/uploads/{job.id}"
        return _json(202, job.public() | {"status_url": location}, {"Location": location})

    def _receive(self, request: Request, part: Path) -> str | None:
        if request.mimetype != "multipart/form-data":
            with part.open("wb") as out:
                size = _copy(request.stream, out, self._bytes_max)
            return request.args.get("filename", "upload.csv") if size else None
        file = request.files.get("file")
        if file is None:
            return None
        with part.open("wb") as out:
            _copy(file.stream, out, self._bytes_max)
        return Path(file.filename or "upload.csv").name


def run(args: argparse.Namespace) -> int:
    """Run the command; the exit code."""
    if not args.http:
        raise UsageError("--http: serve needs an address to listen on")
    allowed = load_keys(args.keys_file) if args.keys_file is not None else None
    service = Service.from_args("telemetry-streamer", args, keys=allowed is not None)
    args.duration = args.rate = 0
    jobs = UploadJobs(
        state_dir(args) / "uploads",
        worker_settings(args),
        producer_maker(args, "serve"),
        threads=args.workers,
        batch_rows=args.batch_rows,
        waiting_max=args.waiting,
        log=service.log,
    )
    service.mount("/api/v1/csv", UploadApp(jobs, args.upload_max, allowed))
    StreamerStatus(service, "serve", jobs.refresh, [], started=time.time_ns(), always_ready=True)
    with service:
        service.stopping.wait()
        jobs.close(service.drain_seconds_left() * 0.8)
    return 0


def load_keys(path: Path) -> Callable[[str], bool]:
    """Keys of a file with lines ``NAME SCOPES SHA256``, as the API has them; scope write or admin may upload.

    Raises :class:`UsageError` naming file and line.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(f"--keys-file: {path} cannot be read: {getattr(e, 'strerror', None) or e}") from None
    hashes = []
    for number, line in enumerate(lines, 1):
        fields = line.partition("#")[0].split()
        if not fields:
            continue
        if len(fields) != 3 or len(fields[2]) != 64:
            raise UsageError(f"--keys-file: {path} line {number}: is not NAME SCOPES SHA256")
        if {"write", "admin"} & set(fields[1].split(",")):
            try:
                hashes.append(bytes.fromhex(fields[2]))
            except ValueError:
                raise UsageError(f"--keys-file: {path} line {number}: the hash is not hexadecimal") from None
    if not hashes:
        raise UsageError(f"--keys-file: {path} holds no key that may write")

    def allowed(key: str) -> bool:
        digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
        # Every hash is compared, so that time tells nothing.
        return any([hmac.compare_digest(known, digest) for known in hashes])  # noqa: C419

    return allowed


def _key_of(request: Request) -> str:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else request.headers.get("X-API-Key", "")


def _copy(source: Any, out: Any, bytes_max: int) -> int:
    shutil.copyfileobj(source, out, 1 << 20)
    size = out.tell()
    if size > bytes_max:
        raise RequestEntityTooLarge()
    return size


def _json(status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> Response:
    return Response(json.dumps(body), status, headers, content_type="application/json")


def _problem(status: int, detail: str, headers: dict[str, str] | None = None) -> Response:
    body = {"type": "about:blank", "status": status, "detail": detail}
    return Response(json.dumps(body), status, headers, content_type="application/problem+json")

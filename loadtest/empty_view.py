"""The baseline of the ``api`` benchmark: telemetry-api's own server around an empty Flask view.

python -m loadtest.empty_view --http 127.0.0.1:8090
"""

from __future__ import annotations

import sys
from typing import Final

from flask import Flask, Response

from api.bridge import Bridge
from api.server import serve
from telemetry import options
from telemetry.addresses import listening_socket
from telemetry.options import CommandLine
from telemetry.service import Service

BODY: Final = b"x" * 10_000


def main() -> int:
    """Serve until SIGTERM."""
    args = CommandLine("empty-view", "EMPTY", "An empty Flask view.", options.common("127.0.0.1:8090")).parse()
    app = Flask("empty", static_folder=None)
    app.add_url_rule("/", "index", lambda: Response(BODY, mimetype="application/json"))
    app.add_url_rule("/readyz", "readyz", lambda: {"status": "ready"})
    sock = listening_socket(args.http, "--http")
    with Service("empty-view", "", log_level=args.log_level) as service:
        serve(Bridge(app, threads=16, body_bytes_max=1 << 20), sock, service.stopping, drain_seconds=2.0)
    return 0


if __name__ == "__main__":
    sys.exit(main())

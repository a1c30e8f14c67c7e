"""``python -m api.openapi``: the OpenAPI document, as the code says it; needs neither store nor broker."""

from __future__ import annotations

import json
import sys
from typing import Any

from api.app import create_app
from api.settings import Settings


class _Nothing:
    """A broker that is never asked."""

    live_consumer = None
    url = topic = ""

    def stats(self) -> None:
        return None


def document() -> dict[str, Any]:
    """The OpenAPI document of an API with everything switched on."""
    app = create_app(Settings(graphql=True), store=None, broker=_Nothing(), start_monitor=False)
    found: dict[str, Any] = app.extensions["flask-smorest"]["apis"][""]["ext_obj"].spec.to_dict()
    return found


def text() -> str:
    """The document as it is kept in docs/openapi.json."""
    found = json.dumps(document(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    # Python 3.13 renamed the status 422, after which flask-smorest names the component; the document stays the same.
    return found.replace("UNPROCESSABLE_CONTENT", "UNPROCESSABLE_ENTITY").replace(
        "Unprocessable Content", "Unprocessable Entity"
    )


if __name__ == "__main__":
    sys.stdout.write(text())

"""Saved addresses of brokers: ``context add/ls/select/rm``. One JSON file in the user's configuration directory."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zmqbroker.admin.protocol import AdminError


def directory(environ: Mapping[str, str] = os.environ) -> Path:
    """Where contexts and the prompt's history are kept."""
    base = environ.get("XDG_CONFIG_HOME") or os.path.join(environ.get("HOME", "."), ".config")
    return Path(base) / "zmqbroker"


class Contexts:
    def __init__(self, path: Path | None = None) -> None:
        self.path = path or directory() / "contexts.json"

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self.path.read_text("utf-8"))
        except FileNotFoundError:
            return {"selected": None, "contexts": {}}
        except (OSError, ValueError) as e:
            raise AdminError("failed", f"cannot read {self.path}: {e}", "correct or remove it") from None
        return dict(found)

    def _write(self, found: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(found, indent=1), "utf-8")
        temporary.replace(self.path)

    def ls(self) -> list[dict[str, Any]]:
        found = self._read()
        return [{"name": n, "selected": n == found["selected"], **c} for n, c in found["contexts"].items()]

    def add(self, name: str, url: str, key: str | None, server_key: str | None) -> None:
        """The first one is selected at once."""
        found = self._read()
        found["contexts"][name] = {"url": url, "key": key, "server_key": server_key}
        found["selected"] = found["selected"] or name
        self._write(found)

    def select(self, name: str) -> None:
        found = self._known(name)
        found["selected"] = name
        self._write(found)

    def rm(self, name: str) -> None:
        found = self._known(name)
        del found["contexts"][name]
        if found["selected"] == name:
            found["selected"] = None
        self._write(found)

    def _known(self, name: str) -> dict[str, Any]:
        found = self._read()
        if name not in found["contexts"]:
            raise AdminError("not_found", f"there is no context {name}", "`context ls` lists them")
        return found

    def selected(self) -> dict[str, Any] | None:
        found = self._read()
        return found["contexts"].get(found["selected"])

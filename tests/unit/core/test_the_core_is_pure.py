"""The core decides and does nothing else (R29): no clock, no socket, no file, no thread."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

CORE = Path(__file__).parents[3] / "zmqbroker" / "core"
SLOW = {"time", "datetime", "socket", "zmq", "os", "io", "pathlib", "shutil", "subprocess", "threading", "logging"}


@pytest.mark.parametrize("path", sorted(CORE.glob("*.py")), ids=lambda p: p.name)
def test_r29_the_core_imports_nothing_that_could_make_the_loop_wait(path: Path) -> None:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "open":
            found.add("open()")
    assert not found & (SLOW | {"open()"})

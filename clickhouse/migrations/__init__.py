"""Numbered migrations, forwards and backwards.

Each module ``mNNNN_name`` holds ``forwards(flavour)`` and ``backwards(flavour)``: lists of statements that may be
repeated without harm (IF [NOT] EXISTS), because a server without transactions may stop between two of them.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable
from typing import NamedTuple

from clickhouse.schema import Flavour


class Migration(NamedTuple):
    """One step of the schema."""

    number: int
    name: str
    forwards: Callable[[Flavour], list[str]]
    backwards: Callable[[Flavour], list[str]]
    destroys: bool
    """Whether going back loses rows that cannot be made again."""


def all_migrations() -> list[Migration]:
    """Every migration by number; numbers count from 1 without gaps."""
    found = []
    for module_info in pkgutil.iter_modules(__path__):
        match = re.fullmatch(r"m(\d{4})_(\w+)", module_info.name)
        if match:
            module = importlib.import_module(f"{__name__}.{module_info.name}")
            found.append(
                Migration(
                    int(match[1]), match[2], module.forwards, module.backwards, getattr(module, "DESTROYS", False)
                )
            )
    found.sort()
    if [m.number for m in found] != list(range(1, len(found) + 1)):
        raise RuntimeError(f"migrations are not numbered 1, 2, 3...: {[m.number for m in found]}")
    return found

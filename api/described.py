"""What the OpenAPI document says of an operation: a stable id, a summary, and the view's whole docstring."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from flask_smorest import Blueprint


def described(blueprint: Blueprint, operation_id: str, summary: str, **more: Any) -> Callable[[Any], Any]:
    """Describe a view. ``operation_id`` names the function in generated clients: it never changes."""

    def decorate(view: Any) -> Any:
        description = inspect.cleandoc(view.__doc__ or "")
        return blueprint.doc(operationId=operation_id, summary=summary, description=description, **more)(view)

    return decorate

"""Names of the series that an expression asks for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import promql_parser


def metrics_of(expression: Any) -> Iterator[str]:
    """Of a parsed expression, or of its text."""
    if isinstance(expression, str):
        expression = promql_parser.parse(expression)
    if isinstance(expression, promql_parser.VectorSelector):
        yield expression.name
    for attribute in ("expr", "lhs", "rhs", "vector_selector"):
        child = getattr(expression, attribute, None)
        if child is not None:
            yield from metrics_of(child)
    for child in getattr(expression, "args", None) or []:
        yield from metrics_of(child)

"""Results as people or programs want them: table, json, ndjson, csv, yaml."""

from __future__ import annotations

import csv
import io
import json
import sys
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

_BAD = {"problem", "stopped", "full"}
_NUMBERS = (int, float)
_WIDTH_OF_PIPES = 500
"""Nothing is folded there."""


def render(result: Any, output: str, *, color: bool = False, width: int | None = None) -> str:
    """Text that ends with a newline (empty for an empty table of rows)."""
    if output == "json":
        return json.dumps(result, indent=2, default=str) + "\n"
    if output == "ndjson":
        return "".join(json.dumps(row, default=str) + "\n" for row in _rows(result))
    if output == "yaml":
        return str(yaml.safe_dump(json.loads(json.dumps(result, default=str)), sort_keys=False, allow_unicode=True))
    if isinstance(result, str):
        return result if result.endswith("\n") else result + "\n"
    if output == "csv":
        return _csv(_rows(result))
    return _table(result, color, width)


def _rows(result: Any) -> list[Any]:
    return result if isinstance(result, list) else [result]


def _csv(rows: list[Any]) -> str:
    if not rows:
        return ""
    columns = list(dict.fromkeys(name for row in rows for name in row)) if isinstance(rows[0], dict) else ["value"]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_cell(row.get(c)) for c in columns] if isinstance(row, dict) else [_cell(row)])
    return out.getvalue()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict | list):
        return json.dumps(value, default=str)
    return str(value)


def _shown(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, _NUMBERS):
        return _cell(value) if value not in ([], {}) else ""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3f}".rstrip("0").rstrip(".")


def _table(result: Any, color: bool, width: int | None) -> str:
    out = io.StringIO()
    width = width or (None if sys.stdout.isatty() else _WIDTH_OF_PIPES)
    console = Console(file=out, no_color=not color, force_terminal=color, width=width, highlight=False, emoji=False)
    if isinstance(result, dict):
        _pairs(console, result)
    elif result and isinstance(result[0], dict):
        _grid(console, result)
    else:
        for item in result:
            console.print(str(item), markup=False)
    return out.getvalue()


def _grid(console: Console, rows: list[dict[str, Any]]) -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        numeric = any(isinstance(r.get(column), _NUMBERS) and not isinstance(r.get(column), bool) for r in rows)
        # A session or a seq is a name that happens to be a number.
        table.add_column(column.replace("_", " "), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        bad = any(value in _BAD for value in row.values() if isinstance(value, str)) or row.get("over_limit") is True
        cells = [str(row.get(c)) if c in ("session", "seq") else _shown(row.get(c)) for c in columns]
        table.add_row(*map(_escape, cells), style="red" if bad else None)
    console.print(table)


def _pairs(console: Console, found: dict[str, Any]) -> None:
    plain = {k: v for k, v in found.items() if not (isinstance(v, list) and v and isinstance(v[0], dict))}
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in plain.items():
        if isinstance(value, dict) and value:
            for inner, of in value.items():
                table.add_row(_escape(f"{name}.{inner}"), _escape(_shown(of)))
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, list) else _shown(value)
            table.add_row(_escape(name), _escape(str(value) if name in ("session", "seq") else shown))
    console.print(table)
    for name, value in found.items():
        if name not in plain:
            console.print(f"\n{name}", style="bold", markup=False)
            _grid(console, value)


def _escape(text: str) -> str:
    return text.replace("[", "\\[")

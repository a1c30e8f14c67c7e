"""The rules file: read once, checked, and told in one line what is wrong with it."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from api.times import parse_duration_ms
from telemetry.options import UsageError

SEVERITIES: Final = ("info", "warning", "critical")

_NEEDED: Final = {
    "threshold": ("metric", "for"),
    "mask": ("metric", "mask", "for"),
    "increase": ("metric", "above", "window"),
    "rate": ("metric", "above", "window"),
    "xid": ("window",),
    "idle": ("metrics", "for"),
    "straggler": ("metric", "ratio", "least", "window"),
    "missing": ("for", "window"),
    "no_data": ("for", "window"),
    "skew": ("label",),
    "pipeline": ("number", "above"),
}
"""What each kind of rule needs beside name, severity, summary and action."""


@dataclass(frozen=True)
class XidMeaning:
    """What a code means and what to do about it."""

    code: int
    name: str
    severity: str
    action: str


@dataclass(frozen=True)
class Rule:
    """One rule; ``parameters`` are those of its kind, times in milliseconds."""

    name: str
    kind: str
    severity: str
    summary: str
    action: str
    promql: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that the rule needs samples of."""
        named = (*self.parameters.get("metrics", {}), *self.parameters.get("also", {}))
        return named or ((self.parameters["metric"],) if "metric" in self.parameters else ())


@dataclass(frozen=True)
class Rules:
    """A whole rules file."""

    rules: tuple[Rule, ...]
    xids: dict[int, XidMeaning]

    def xid(self, code: int) -> XidMeaning:
        """The meaning of a code; one that the file does not have is a warning."""
        known = self.xids.get(code)
        return known or XidMeaning(
            code, f"XID {code}", "warning", "look the code up in NVIDIA's XID catalogue for this GPU generation"
        )


def load(path: Path | None = None) -> Rules:
    """The rules of a file, or those of the package. :class:`UsageError` names file, rule and mistake."""
    source = path or files("api.alerts") / "rules.toml"
    try:
        found = tomllib.loads(source.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--rules-file {path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"--rules-file {path}: is no TOML: {error}") from None
    rules = tuple(_rule(entry, f"--rules-file {source}") for entry in found.get("rule", ()))
    names = [rule.name for rule in rules]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"--rules-file {source}: the rule {name} is there twice")
    try:
        xids = {entry["code"]: XidMeaning(**entry) for entry in found.get("xid", ())}
    except (KeyError, TypeError) as error:
        raise UsageError(f"--rules-file {source}: an [[xid]] needs code, name, severity and action ({error})") from None
    return Rules(rules, xids)


def _rule(entry: dict[str, Any], where: str) -> Rule:
    entry = dict(entry)
    name = entry.get("name", "without a name")
    where = f"{where}: rule {name}"
    missing = [key for key in ("name", "kind", "severity", "summary", "action") if not entry.get(key)]
    kind = entry.get("kind")
    if kind in _NEEDED:
        missing += [key for key in _NEEDED[kind] if key not in entry]
    elif kind:
        raise UsageError(f"{where}: kind is one of {', '.join(_NEEDED)}, not {kind}")
    if missing:
        raise UsageError(f"{where}: lacks {', '.join(missing)}")
    if entry["severity"] not in SEVERITIES:
        raise UsageError(f"{where}: severity is one of {', '.join(SEVERITIES)}")
    if kind == "threshold" and ("above" in entry) == ("below" in entry):
        raise UsageError(f"{where}: needs either above or below")
    for key in ("for", "window"):
        if key in entry:
            try:
                entry[key] = parse_duration_ms(entry[key])
            except (ValueError, TypeError) as error:
                raise UsageError(f"{where}: {key}: {error}") from None
    common = {key: entry.pop(key) for key in ("name", "kind", "severity", "summary", "action")}
    return Rule(**common, promql=entry.pop("promql", ""), parameters=entry)


@lru_cache(maxsize=1)
def packaged() -> Rules:
    """The package's own rules."""
    return load()


def xid_meaning(code: int) -> XidMeaning:
    """The meaning of an XID by the package's own table."""
    return packaged().xid(code)

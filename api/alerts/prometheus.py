"""``python -m api.alerts.prometheus [RULES.toml]``: the alert rules as a Prometheus rules file.

The same file feeds both, so that an alert in Alertmanager and one in the API mean the same thing. Rules that PromQL
cannot say are left out and named in a comment.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from api.alerts.rules import Rule, Rules, load
from clickhouse.queries.events import XID_METRIC


def expression(rules: Rules, rule: Rule) -> str:
    """The rule in PromQL, "" if it cannot be said."""
    if rule.kind == "xid":
        codes = sorted(code for code, meaning in rules.xids.items() if meaning.severity == rule.severity)
        same = " or ".join(f"{XID_METRIC} == {code}" for code in codes)
        window = rule.parameters["window"] // 1000
        return f"({same}) and changes({XID_METRIC}[{window}s]) > 0"
    return rule.promql


def rules_file(rules: Rules) -> str:
    """YAML of a Prometheus rules file. Strings are written as JSON, which YAML reads as it is."""
    lines = ["# Made by `python -m api.alerts.prometheus` from the API's alert rules. Do not edit.", "groups:"]
    lines += ["  - name: gpu-telemetry", "    rules:"]
    left_out = []
    for rule in rules.rules:
        promql = expression(rules, rule)
        if not promql:
            left_out.append(rule.name)
            continue
        lines.append(f"      - alert: {rule.name}")
        lines.append(f"        expr: {json.dumps(' '.join(promql.split()))}")
        if rule.parameters.get("for"):
            lines.append(f"        for: {rule.parameters['for'] // 1000}s")
        lines.append(f"        labels: {json.dumps({'severity': rule.severity})}")
        lines.append(f"        annotations: {json.dumps({'summary': rule.summary, 'action': rule.action})}")
    if left_out:
        lines.append(f"# Only in the API: {', '.join(left_out)}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(rules_file(load(Path(sys.argv[1]) if len(sys.argv) > 1 else None)))

// Alerts of the API, grouped by rule: a hundred hot GPUs are one finding with a hundred subjects.

import { get } from "./api.js";
import { catalogue } from "./catalogue.js";
import { count, duration, metricTitle, quantity, short } from "./format.js";

const PAGE = 1000;
export const SEVERITIES = ["critical", "warning", "info"];

/** {alerts, warnings, total}: up to a thousand, the worst first. */
export async function askAlerts(signal) {
  const body = await get("api/v1/alerts", { page_size: PAGE }, { signal });
  return { alerts: body.alerts, warnings: body.warnings ?? [], total: body.total ?? body.alerts.length };
}

/** How many fire, as people read it: "1,000+" where there are more than were asked for. */
export function firingText({ alerts, total }) {
  return count(firing(alerts).length) + (total > alerts.length ? "+" : "");
}

export const firing = (alerts) => alerts.filter((alert) => alert.state === "firing");

/** [{rule, severity, summary, action, alerts}], firing ones before silenced ones, the worst first. */
export function byRule(alerts) {
  const groups = new Map();
  for (const alert of alerts) {
    const key = [alert.state, alert.rule, alert.severity, alert.summary, alert.action].join("\n");
    if (!groups.has(key)) groups.set(key, { ...alert, alerts: [] });
    groups.get(key).alerts.push(alert);
  }
  const rank = (group) => (group.state === "firing" ? 0 : 10) + SEVERITIES.indexOf(group.severity);
  return [...groups.values()].sort((a, b) => rank(a) - rank(b) || b.alerts.length - a.alerts.length);
}

/** [79, 79, 79, 48] -> "79 × 3, 48". */
function runs(values) {
  const found = [];
  for (const value of values) {
    if (found.at(-1)?.value === value) found.at(-1).n += 1;
    else found.push({ value, n: 1 });
  }
  return found.map(({ value, n }) => (n > 1 ? `${value} × ${n}` : String(value))).join(", ");
}

/** The values that made an alert fire, as words: "min 91 °C, max 94 °C, samples 30". */
export async function evidenceText({ metrics = [], values = {} }) {
  const known = await catalogue();
  const unit = known.get(values.metric ?? metrics[0])?.unit ?? "";
  const parts = Object.entries(values).filter(([, value]) => value !== "" && value !== null).map(([name, value]) => {
    const label = name.startsWith("DCGM_") ? metricTitle(name) : name.replaceAll("_", " ");
    if (known.has(name)) return `${label} ${quantity(value, known.get(name).unit)}`;
    if (name === "metric") return `${label} ${metricTitle(String(value))}`;
    if (Array.isArray(value)) return `${label} ${runs(value)}`;
    if (name.endsWith("_seconds")) return `${name.slice(0, -"_seconds".length).replaceAll("_", " ")} for ${duration(value)}`;
    if (typeof value !== "number") return `${label} ${typeof value === "object" ? JSON.stringify(value) : value}`;
    return `${label} ${["last", "min", "max", "mean", "median", "bits"].includes(name) ? quantity(value, unit) : short(value)}`;
  });
  return parts.join(", ");
}

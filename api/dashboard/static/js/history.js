// What the API stored of some GPUs over a range of time, and what happened to them: asked for in few requests.

import { get } from "./api.js";
import { isAmount, parseTime } from "./format.js";
import { columns } from "./series.js";

const NAMES_A_REQUEST = 50;

/** How a metric is drawn: counters as their increase a second, energy as power. */
export function drawing(metric) {
  if (metric.kind !== "counter") return { agg: "avg", unit: metric.unit, factor: 1 };
  if (metric.unit === "mJ") return { agg: "rate", unit: "W", factor: 1e-3 };
  return { agg: "rate", unit: metric.unit === "count" || !metric.unit ? "1/s" : `${metric.unit}/s`, factor: 1 };
}

/**
 * Series of one GPU: Map of metric name -> {column, unit, resolution, stepSeconds}.
 * `metrics` are catalogue entries. Raises ApiError.
 */
export async function history(gpuId, metrics, { startMs, endMs }, { maxPoints, signal, step }) {
  const byAgg = new Map();
  for (const metric of metrics) {
    const { agg } = drawing(metric);
    byAgg.set(agg, [...(byAgg.get(agg) ?? []), metric]);
  }
  const found = new Map();
  const asks = [];
  for (const [agg, group] of byAgg) {
    for (let i = 0; i < group.length; i += NAMES_A_REQUEST) asks.push([agg, group.slice(i, i + NAMES_A_REQUEST)]);
  }
  await Promise.all(asks.map(async ([agg, group]) => {
    const body = await get(`api/v1/gpus/${encodeURIComponent(gpuId)}/series`, {
      metric_name: group.map((metric) => metric.name).join(","),
      start_time: new Date(startMs).toISOString(), end_time: new Date(endMs).toISOString(),
      agg, max_points: maxPoints, step,
    }, { signal });
    for (const series of body.series) {
      const metric = group.find(({ name }) => name === series.metric_name);
      if (!metric) continue;
      const { unit, factor } = drawing(metric);
      const points = factor === 1 ? series.points : series.points.map((p) => ({ timestamp: p.timestamp, value: scaled(p.value, factor), min: scaled(p.min, factor), max: scaled(p.max, factor) }));
      // The extremes of a counter are its readings, not its rates.
      const drawn = agg === "rate" ? points.map(({ timestamp, value }) => ({ timestamp, value })) : isAmount(metric.unit) ? points : highest(points);
      found.set(metric.name, { column: columns(drawn, body.step_seconds), unit, resolution: body.resolution, stepSeconds: body.step_seconds });
    }
  }));
  return found;
}

/** Codes and bits have no mean: of a step, its highest. */
const highest = (points) => points.map((p) => ({ timestamp: p.timestamp, value: p.max ?? p.value }));

const scaled = (value, factor) => (value === null || value === undefined ? value : value * factor);

/** Marks for the time line, oldest first; none where the API has no events. */
export async function marks(gpuIds, { startMs, endMs }, signal) {
  try {
    const body = await get("api/v1/events", {
      gpu_id: gpuIds.join(","), start_time: new Date(startMs).toISOString(), end_time: new Date(endMs).toISOString(), page_size: 500,
    }, { signal });
    return body.events
      .filter((event) => !event.gpu_id || gpuIds.includes(event.gpu_id))
      .map((event) => ({ t: parseTime(event.timestamp) / 1000, kind: event.kind, text: eventText(event), event }))
      .sort((a, b) => a.t - b.t);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    return [];
  }
}

const THROTTLED = { 8: "hardware slowdown", 32: "software thermal", 64: "hardware thermal", 128: "power brake" };
const THROTTLE_MARKS_MAX = 100;

/** Marks where clocks began to be held down by heat or hardware; being idle or at the power cap is no event. */
export function throttleMarks(column, label = "") {
  const found = [];
  let before = 0;
  column?.v.forEach((value, i) => {
    const bits = value === null ? 0 : Math.round(value) & 0xe8;
    const risen = bits & ~before;
    if (risen) found.push({ t: column.t[i], kind: "throttle", text: `${label}${label && " "}throttled: ${Object.entries(THROTTLED).filter(([bit]) => risen & bit).map(([, name]) => name).join(", ")}` });
    before = bits;
  });
  return found.slice(-THROTTLE_MARKS_MAX);
}

export function eventText(event) {
  const code = event.kind === "xid" && event.code !== null && event.code !== undefined ? `XID ${event.code}` : event.kind;
  return `${code}: ${event.message}`;
}

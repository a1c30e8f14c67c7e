// Points of the API as columns for charts: {t: seconds, v, low, high}, with holes where nothing was measured.

import { parseTime } from "./format.js";

const GAP_STEPS = 3.5;

/**
 * Columns of the API's points, at least one sample apart; gaps become nulls. `stepSeconds` 0 = single samples.
 *
 * A gap is judged by its neighbours, too: a GPU that was sampled every five seconds before it was every second has none.
 */
export function columns(points, stepSeconds) {
  const t = points.map((point) => parseTime(point.timestamp) / 1000);
  const gap = GAP_STEPS * (stepSeconds || usualStep(t));
  const out = { t: [], v: [], low: [], high: [], gap };
  const distance = (i) => (i > 0 && i < t.length ? t[i] - t[i - 1] : 0);
  points.forEach((point, i) => {
    if (distance(i) > Math.max(gap, GAP_STEPS * distance(i - 1), GAP_STEPS * distance(i + 1))) push(out, (t[i] + t[i - 1]) / 2, null, null, null);
    push(out, t[i], point.value, point.min ?? point.value, point.max ?? point.value);
  });
  return out;
}

function push(out, t, v, low, high) {
  out.t.push(t);
  out.v.push(v);
  out.low.push(low);
  out.high.push(high);
}

/** The median distance of the first few hundred points, in seconds; at least one. */
export function usualStep(t) {
  const distances = [];
  for (let i = 1; i < Math.min(t.length, 400); i += 1) distances.push(t[i] - t[i - 1]);
  distances.sort((a, b) => a - b);
  return Math.max(1, distances[distances.length >> 1] ?? 1);
}

/** Add one live sample, in place. False if it is not newer than what is there. */
export function append(column, t, v) {
  const last = column.t.at(-1) ?? -Infinity;
  if (t <= last) return false;
  const before = column.t.length > 1 ? last - column.t.at(-2) : 0;
  if (Number.isFinite(last) && t - last > Math.max(column.gap, GAP_STEPS * before)) push(column, (t + last) / 2, null, null, null);
  push(column, t, v, v, v);
  return true;
}

/** Take away what is older than `start` (seconds); one point before it stays so that the line reaches the edge. */
export function trim(column, start) {
  let keep = 0;
  while (keep + 1 < column.t.length && column.t[keep + 1] < start) keep += 1;
  if (keep) for (const name of ["t", "v", "low", "high"]) column[name].splice(0, keep);
}

/** Seconds since which there is no data before `end`, or null where the data reaches it. */
export function silentSince(column, end) {
  const last = column.t.at(-1);
  if (last === undefined) return null;
  return end - last > Math.max(column.gap, 15) ? last : null;
}

/** {first, last, low, high, mean} of the numbers there are; null without any. */
export function summary(column) {
  let [low, high, sum, n] = [Infinity, -Infinity, 0, 0];
  let last = null;
  column.v.forEach((value, i) => {
    if (value === null || !Number.isFinite(value)) return;
    low = Math.min(low, column.low[i]);
    high = Math.max(high, column.high[i]);
    sum += value;
    n += 1;
    last = value;
  });
  return n ? { low, high, mean: sum / n, last, n } : null;
}

/** Least squares: {perDay, at(t)} of the values; null for fewer than three. */
export function trend(column) {
  let [n, sx, sy, sxx, sxy] = [0, 0, 0, 0, 0];
  const origin = column.t[0];
  column.v.forEach((value, i) => {
    if (value === null || !Number.isFinite(value)) return;
    const x = (column.t[i] - origin) / 86_400;
    n += 1;
    sx += x;
    sy += value;
    sxx += x * x;
    sxy += x * value;
  });
  const spread = n * sxx - sx * sx;
  if (n < 3 || spread <= 0) return null;
  const perDay = (n * sxy - sx * sy) / spread;
  const base = (sy - perDay * sx) / n;
  return { perDay, at: (t) => base + (perDay * (t - origin)) / 86_400 };
}

// The range of time that charts show: relative to now ("range=1h") or fixed ("from=…&to=…" in milliseconds).

import { dateTime, duration } from "./format.js";
import { current } from "./state.js";

export const RELATIVE = [
  ["5m", "5 minutes"], ["15m", "15 minutes"], ["1h", "1 hour"], ["3h", "3 hours"], ["6h", "6 hours"],
  ["12h", "12 hours"], ["1d", "1 day"], ["2d", "2 days"], ["7d", "7 days"], ["30d", "30 days"],
];
export const DEFAULT = "1h";

const UNIT_MS = { s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 };

export function spanMs(text) {
  const match = /^(\d{1,5})([smhd])$/.exec(text ?? "");
  return match ? Number(match[1]) * UNIT_MS[match[2]] : NaN;
}

/** {startMs, endMs, relative, label} of the address; `relative` is "" for a fixed range. */
export function timeRange(now = Date.now()) {
  const { params } = current();
  const startMs = Number(params.get("from"));
  const endMs = Number(params.get("to"));
  if (startMs > 0 && endMs > startMs) {
    return { startMs, endMs, relative: "", label: `${dateTime(startMs)} – ${dateTime(endMs)}` };
  }
  const relative = Number.isFinite(spanMs(params.get("range"))) ? params.get("range") : DEFAULT;
  const span = spanMs(relative);
  return { startMs: now - span, endMs: now, relative, label: `Last ${duration(span / 1000)}` };
}

/** Parameters of the address for a fixed range, at least a second long. */
export function fixedParams(startMs, endMs) {
  const from = Math.floor(startMs);
  return { range: "", from: String(from), to: String(Math.max(from + 1000, Math.ceil(endMs))) };
}

/** The range one step out: twice as long around the same middle, not into the future. */
export function wider({ startMs, endMs }, now = Date.now()) {
  const half = endMs - startMs;
  const end = Math.min(now, endMs + half / 2);
  return fixedParams(end - 2 * half, end);
}

// A metric over days with its trend, for questions of capacity: hourly means, extremes, and a straight line.

import { byImportance } from "./catalogue.js";
import { Chart } from "./chart.js";
import { fill, h } from "./dom.js";
import { metricTitle, quantity } from "./format.js";
import { history } from "./history.js";
import { panel } from "./panel.js";
import { trend } from "./series.js";
import { param, setParams } from "./state.js";

const DAY_MS = 86_400_000;
const RANGES = [["7", "7 days"], ["30", "30 days"], ["90", "90 days"]];
const DEFAULT_DAYS = "7";

export function trendPanel(gpuId) {
  let metrics = [];
  let abort = null;
  let shown = "";
  const metricSelect = h("select", { class: "select", "aria-label": "Metric of the trend", onchange: () => setParams({ trend: metricSelect.value }) });
  const daySelect = h("select", { class: "select", "aria-label": "Length of the trend", onchange: () => setParams({ days: daySelect.value === DEFAULT_DAYS ? "" : daySelect.value }) }, RANGES.map(([value, label]) => h("option", { value }, label)));
  const chart = new Chart({ label: "Trend over days. Left and right read values.", height: 200 });
  const frame = panel({ title: "Trend over days", rows: () => chart.rows(), canvas: () => chart.canvas() });
  frame.body.append(h("div", { class: "controls" }, metricSelect, daySelect), chart.element);

  const chosen = () => metrics.find(({ name }) => name === param("trend")) ?? metrics[0];

  async function load() {
    const metric = chosen();
    if (!metric) return;
    const days = Number(param("days", DEFAULT_DAYS)) || Number(DEFAULT_DAYS);
    const key = `${metric.name} ${days}`;
    if (key === shown) return;
    shown = key;
    abort?.abort();
    abort = new AbortController();
    const { signal } = abort;
    metricSelect.value = metric.name;
    daySelect.value = String(days);
    const endMs = Date.now();
    const startMs = endMs - days * DAY_MS;
    try {
      const found = (await history(gpuId, [metric], { startMs, endMs }, { maxPoints: 1000, step: days > 30 ? "3h" : "1h", signal })).get(metric.name);
      if (signal.aborted) return;
      if (!found?.column.t.length) {
        frame.empty("No data in these days.");
        return;
      }
      frame.ready();
      const line = trend(found.column);
      const lines = [{ label: metricTitle(metric.name), unit: found.unit, column: found.column }];
      if (line) lines.push({ label: "Trend", unit: found.unit, column: straight(found.column, line) });
      chart.set(lines, [startMs / 1000, endMs / 1000]);
      frame.note(line ? `${line.perDay < 0 ? "−" : "+"}${quantity(Math.abs(line.perDay), found.unit)} a day` : "too short for a trend");
    } catch (error) {
      if (signal.aborted) return;
      shown = "";
      frame.error(error, load);
    }
  }

  return {
    panel: frame,
    set(found) {
      metrics = byImportance(found.map(({ name }) => name)).map((name) => found.find((metric) => metric.name === name));
      fill(metricSelect, metrics.map(({ name }) => h("option", { value: name }, metricTitle(name))));
      shown = "";
      load();
    },
    update: load,
    close() {
      abort?.abort();
      chart.close();
    },
  };
}

function straight(column, line) {
  const t = [column.t[0], column.t.at(-1)];
  const v = t.map(line.at);
  return { t, v, low: v, high: v, gap: Infinity };
}

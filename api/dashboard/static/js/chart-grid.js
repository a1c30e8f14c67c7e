// One chart a metric for one or several GPUs, fed together: from history, then live.

import { byImportance } from "./catalogue.js";
import { Chart, LINES_MAX } from "./chart.js";
import { fill, h } from "./dom.js";
import { dateTime, duration, metricTitle, parseTime, timeOfDay } from "./format.js";
import { drawing, history, marks, throttleMarks } from "./history.js";
import { every, isPaused, liveState, Stream } from "./live.js";
import { panel } from "./panel.js";
import { liveSamples } from "./samples.js";
import { append, silentSince, trim } from "./series.js";
import { setParams } from "./state.js";
import { dataTable } from "./table.js";
import { fixedParams, timeRange, wider } from "./timerange.js";

const POINTS = 600;
const LIVE_STEP_SECONDS_MAX = 2; // Coarser charts are asked for again instead: one sample is no average of ten.
const RELOAD_MS = 5_000;
const RELOAD_LIVE_MS = 30_000;

export class ChartGrid {
  /** `onSamples(samples)` also gets every live row; `onMarks(marks)` the events of the range. */
  constructor({ onSamples = () => {}, onMarks = () => {} } = {}) {
    this.onSamples = onSamples;
    this.onMarks = onMarks;
    this.element = h("div", { class: "charts" });
    this.panels = new Map();
    this.gpus = [];
    this.metrics = [];
    this.overlay = [];
    this.data = new Map();
    this.loaded = 0;
    this.stops = [every(1000, () => this.#tick())];
  }

  close() {
    this.abort?.abort();
    this.stream?.close();
    for (const stop of this.stops) stop();
    for (const { chart } of this.panels.values()) chart.close();
  }

  /**
   * `gpus`: [{id, label}]; `metrics`: catalogue entries; `overlay`: names of metrics to draw into one chart.
   */
  set({ gpus, metrics, overlay = [] }) {
    const listenTo = gpus.map(({ id }) => id).join(",");
    this.gpus = gpus.slice(0, LINES_MAX);
    this.metrics = metrics;
    this.overlay = overlay.filter((name) => metrics.some((metric) => metric.name === name));
    this.#arrange();
    if (listenTo !== this.listening) {
      this.listening = listenTo;
      this.stream?.close();
      this.stream = listenTo ? new Stream({ gpu_id: listenTo }, (body) => this.#live(liveSamples(body))) : null;
    }
    this.load();
  }

  /** Ask again for the range of the address. */
  async load() {
    this.abort?.abort();
    this.abort = new AbortController();
    const { signal } = this.abort;
    const range = timeRange();
    this.loaded = Date.now();
    try {
      const [found, events] = await Promise.all([
        Promise.all(this.gpus.map(({ id }) => history(id, this.metrics, range, { maxPoints: POINTS, signal }))),
        marks(this.gpus.map(({ id }) => id), range, signal),
      ]);
      if (signal.aborted) return;
      this.data = new Map(this.gpus.map(({ id }, i) => [id, found[i]]));
      const throttled = found.flatMap((byMetric, i) => throttleMarks(byMetric.get("DCGM_FI_DEV_CLOCK_THROTTLE_REASONS")?.column, found.length > 1 ? this.gpus[i].label : ""));
      this.marks = [...events, ...throttled].sort((a, b) => a.t - b.t);
      this.onMarks(this.marks);
      this.#draw(range);
    } catch (error) {
      if (signal.aborted) return;
      for (const { frame, drawn } of this.panels.values()) {
        if (drawn) frame.badge(error.message);
        else frame.error(error, () => this.load());
      }
    }
  }

  /** One panel a metric, and one for the overlay; panels that stay keep their place in the document. */
  #arrange() {
    const wanted = [...(this.overlay.length > 1 ? ["overlay"] : []), ...byImportance(this.metrics.map(({ name }) => name))];
    for (const [name, { chart }] of this.panels) {
      if (wanted.includes(name)) continue;
      chart.close();
      this.panels.delete(name);
    }
    for (const name of wanted) if (!this.panels.has(name)) this.panels.set(name, this.#panel(name));
    fill(this.element, wanted.map((name) => this.panels.get(name).frame.element));
  }

  #panel(name) {
    const metric = this.metrics.find((m) => m.name === name);
    const title = metric ? metricTitle(name) : "Compared";
    const chart = new Chart({
      label: `${title}. Left and right read values, plus and minus zoom.`, sync: "grid",
      onZoom: (start, end) => setParams(fixedParams(start, end), { replace: false }),
      onWiden: () => setParams(wider(timeRange()), { replace: false }),
      height: metric ? undefined : 260,
    });
    const frame = panel({ title, rows: () => chart.rows(), canvas: () => chart.canvas(), table: () => table(chart, title) });
    frame.heading.title = metric ? `${name}${metric.help ? `: ${metric.help}` : ""}` : "";
    frame.body.append(chart.element);
    frame.loading();
    return { frame, chart, drawn: false };
  }

  #lines(name) {
    const lines = [];
    for (const { id, label } of this.gpus) {
      for (const metric of name === "overlay" ? this.overlay : [name]) {
        const found = this.data.get(id)?.get(metric);
        if (!found?.column.t.length) continue;
        const labels = [name === "overlay" ? metricTitle(metric) : "", this.gpus.length > 1 || name !== "overlay" ? label : ""];
        lines.push({ label: labels.filter(Boolean).join(" · "), unit: found.unit, column: found.column, found });
      }
    }
    return lines;
  }

  #draw(range) {
    for (const [name, entry] of this.panels) {
      const { frame, chart } = entry;
      const lines = this.#lines(name);
      if (!lines.length) {
        frame.empty(`No data ${range.relative ? `in the ${range.label.toLowerCase()}` : "in this range"}.`);
        frame.badge("");
        continue;
      }
      frame.ready();
      entry.drawn = true;
      const { found } = lines[0];
      frame.note(found.stepSeconds ? `per ${duration(found.stepSeconds)}` : "");
      chart.set(lines, [range.startMs / 1000, range.endMs / 1000], this.marks);
      this.#judge(frame, lines, range);
      frame.refreshTable();
    }
  }

  /** Say since when there is nothing, instead of drawing on. */
  #judge(frame, lines, range) {
    const end = Math.min(range.endMs, Date.now()) / 1000;
    const silent = lines.map((line) => silentSince(line.column, end));
    const since = silent.every((t) => t !== null) ? Math.max(...silent) : null;
    if (since === null || !range.relative) return frame.badge("");
    return frame.badge(`no data since ${end - since < 86_400 / 2 ? timeOfDay(since * 1000) : dateTime(since * 1000)}`);
  }

  #live(samples) {
    this.onSamples(samples);
    if (!timeRange().relative) return;
    for (const sample of samples) {
      const found = this.data.get(sample.gpu_id)?.get(sample.metric_name);
      const metric = this.metrics.find(({ name }) => name === sample.metric_name);
      if (!found || !metric || drawing(metric).agg === "rate" || found.stepSeconds > LIVE_STEP_SECONDS_MAX) continue;
      this.dirty = append(found.column, parseTime(sample.timestamp) / 1000, sample.value) || this.dirty;
    }
  }

  /** Every second: move relative charts on, and ask again where live rows do not suffice. */
  #tick() {
    const range = timeRange();
    if (!range.relative || !this.gpus.length || isPaused()) return;
    const coarse = [...this.data.values()].some((byMetric) => [...byMetric.values()].some((found) => found.stepSeconds > LIVE_STEP_SECONDS_MAX));
    const step = coarse ? Math.max(RELOAD_MS, Math.min(60_000, (range.endMs - range.startMs) / POINTS)) : RELOAD_LIVE_MS;
    if (Date.now() - this.loaded > (liveState() === "live" ? step : Math.max(RELOAD_MS, coarse ? step : 0))) {
      this.load();
      return;
    }
    for (const [name, { frame, chart, drawn }] of this.panels) {
      if (!drawn || !isSeen(frame.element)) continue;
      const lines = this.#lines(name);
      if (this.dirty) for (const { column } of lines) trim(column, range.startMs / 1000);
      chart.redraw([range.startMs / 1000, range.endMs / 1000]);
      this.#judge(frame, lines, range);
    }
    this.dirty = false;
  }
}

/** A chart that nobody sees is not drawn again every second. */
function isSeen(element) {
  const box = element.getBoundingClientRect();
  return box.bottom > 0 && box.top < innerHeight;
}

function table(chart, title) {
  const [head, ...body] = chart.rows();
  const view = dataTable(head.map((label, i) => ({
    label: i ? label : "Time", numeric: i > 0,
    value: (row) => row[i], cell: (row) => (i ? (row[i] === null ? "" : String(Math.round(row[i] * 1000) / 1000)) : dateTime(Date.parse(row[0]))),
  })), { caption: `${title}, every point drawn`, sort: 0, descending: true });
  view.set(body);
  return view.element;
}

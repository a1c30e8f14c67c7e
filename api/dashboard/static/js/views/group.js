// Several GPUs that belong together, of a host or of a job: beside each other, in numbers and over time.

import { byImportance, catalogue } from "../catalogue.js";
import { ChartGrid } from "../chart-grid.js";
import { LINES_MAX } from "../chart.js";
import { fill, h, refill } from "../dom.js";
import { ago, count, metricTitle, parseTime, quantity } from "../format.js";
import { jobOf } from "../jobs.js";
import { showKpis } from "../kpis.js";
import { every } from "../live.js";
import { panel } from "../panel.js";
import { link, param, setParams } from "../state.js";
import { dataTable } from "../table.js";

const REFRESH_MS = 5_000;
const TABLE_METRICS_MAX = 8;
const CHIPS_MAX = 64;

/**
 * @param {HTMLElement} main
 * @param {object} group
 * @param {string} group.title
 * @param {string} group.caption of the table of GPUs
 * @param {() => Promise<{gpus: object[], facts: any[], tiles?: any[][]}>} group.load GPUs as /api/v1/hosts/{name} tells
 *   them, in the order to show; `facts` stand beside the title, `tiles` before the other figures
 * @param {any[]} group.path what it is part of
 * @param {(gpu) => string} group.label what names a GPU
 * @param {(gpu, gpus) => string} [group.brief] what tells it from the others, for legends
 * @param {HTMLElement} [group.verdict] stands below the figures
 */
export function groupView(main, { title, caption, load: ask, path, label, brief = label, verdict = null }) {
  let found = null;
  let gpuTable = null;
  let tableKey = "";
  let shownKey = "";
  const latest = new Map(); // GPU id -> Map of metric -> value
  const head = h("header", { class: "page-head" });
  const kpis = h("dl", { class: "kpis", "aria-label": "Totals" });
  const chips = h("div", { class: "chips", role: "group", "aria-label": "GPUs to draw" });
  const gpuPanel = panel({ title: "GPUs", rows: () => gpuTable?.rows() ?? [[]] });
  const grid = new ChartGrid({
    onSamples(samples) {
      for (const sample of samples) {
        const known = latest.get(sample.gpu_id)?.get(sample.metric_name);
        if (known && sample.timestamp > known.timestamp) Object.assign(known, { value: sample.value, timestamp: sample.timestamp });
      }
    },
  });
  fill(main, head, kpis, verdict, gpuPanel.element, chips, grid.element);

  async function load() {
    try {
      [found] = await Promise.all([ask(), catalogue()]);
    } catch (error) {
      if (found) return gpuPanel.badge(error.message);
      const p = panel({ title: error.status === 404 && !error.missing ? "Not found" : "Something went wrong" });
      fill(main, h("h1", {}, title), p.element);
      return p.error(error, () => location.reload());
    }
    gpuPanel.badge("");
    for (const gpu of found.gpus) latest.set(gpu.id, new Map(gpu.latest.map((value) => [value.metric_name, value])));
    gpuPanel.ready();
    showNumbers();
    return arrange();
  }

  const value = (gpu, metric) => latest.get(gpu.id)?.get(metric)?.value ?? NaN;

  function showNumbers() {
    const { gpus, facts, tiles = [] } = found;
    const active = gpus.filter((gpu) => gpu.status === "active");
    const all = (metric) => active.map((gpu) => value(gpu, metric)).filter(Number.isFinite);
    const [power, util, temp, used] = ["DCGM_FI_DEV_POWER_USAGE", "DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_DEV_GPU_TEMP", "DCGM_FI_DEV_FB_USED"].map(all);
    const sum = (values) => (values.length ? values.reduce((a, b) => a + b, 0) : NaN);
    const seen = Math.max(...gpus.map((gpu) => parseTime(gpu.last_seen)), ...[...latest.values()].flatMap((values) => [...values.values()].map((v) => parseTime(v.timestamp))));
    refill(head,
      h("nav", { class: "crumbs", "aria-label": "Path" }, path.flatMap(([view, name]) => [h("a", { href: link(view) }, name), " / "])),
      h("h1", {}, title), h("div", { class: "facts" }, [...facts, `last seen ${ago(seen)}`].map((fact) => h("span", {}, fact))));
    showKpis(kpis, [
      ...tiles,
      ["GPUs", count(gpus.length)],
      ["Reporting", count(active.length), active.length === gpus.length ? "all of them" : `${gpus.length - active.length} silent`, active.length < gpus.length ? "warn" : ""],
      ["Mean utilisation", quantity(sum(util) / util.length, "%")],
      ["Hottest", quantity(temp.length ? Math.max(...temp) : NaN, "C")],
      ["Power", quantity(sum(power), "W"), power.length ? `${quantity(sum(power) / power.length, "W")} a GPU` : ""],
      ["Memory used", quantity(sum(used), "MiB")],
    ]);
    showTable();
  }

  const metricNames = () => byImportance(new Set(found.gpus.flatMap((gpu) => gpu.latest.map((v) => v.metric_name))));

  function showTable() {
    const names = metricNames().slice(0, TABLE_METRICS_MAX);
    if (tableKey !== names.join()) {
      tableKey = names.join();
      const unit = (metric) => found.gpus.flatMap((gpu) => gpu.latest).find((v) => v.metric_name === metric)?.unit;
      gpuTable = dataTable([
        { label: "GPU", value: label, cell: (gpu) => h("a", { href: link("gpus", gpu.id), title: gpu.id }, label(gpu)) },
        { label: "Status", value: (gpu) => gpu.status },
        { label: "Pod", value: (gpu) => gpu.pod, cell: (gpu) => (gpu.pod ? h("a", { href: link("jobs", jobOf(gpu).id) }, gpu.pod) : "–") },
        ...names.map((metric) => ({ label: metricTitle(metric), numeric: true, value: (gpu) => value(gpu, metric), cell: (gpu) => quantity(value(gpu, metric), unit(metric)) })),
      ], { caption, sort: 0 });
      fill(gpuPanel.body, gpuTable.element);
    }
    gpuTable.set(found.gpus);
  }

  const chosen = () => {
    const wanted = param("gpus").split(",").filter(Boolean);
    const some = found.gpus.filter((gpu) => wanted.includes(nameOf(gpu)));
    return (some.length ? some : found.gpus).slice(0, LINES_MAX);
  };

  /** How the address names a GPU: by its index where that says which, else by its id. */
  const nameOf = (gpu) => (found.gpus.some((other) => other !== gpu && other.gpu_index === gpu.gpu_index) ? gpu.id : gpu.gpu_index);

  async function arrange() {
    const known = await catalogue();
    const names = metricNames();
    const gpus = chosen();
    const key = JSON.stringify([gpus.map((gpu) => gpu.id), names, param("range"), param("from"), param("to"), param("tz")]);
    if (key === shownKey) return;
    shownKey = key;
    const drawn = new Set(gpus.map(nameOf));
    refill(chips, h("span", { class: "found" }, "Draw:"), found.gpus.slice(0, CHIPS_MAX).map((gpu) => h("button", {
      type: "button", class: "chip", "aria-pressed": String(drawn.has(nameOf(gpu))), onclick: () => {
        if (!drawn.delete(nameOf(gpu))) drawn.add(nameOf(gpu));
        setParams({ gpus: [...drawn].slice(-LINES_MAX).join(",") });
      },
    }, brief(gpu, found.gpus))));
    grid.set({
      gpus: gpus.map((gpu) => ({ id: gpu.id, label: brief(gpu, found.gpus) })),
      metrics: names.map((metric) => known.get(metric) ?? { name: metric, unit: "", kind: "gauge", help: "" }),
    });
  }

  gpuPanel.loading();
  load();
  const stops = [every(REFRESH_MS, load), every(1000, () => { if (found) showNumbers(); })];
  return {
    title,
    update: () => { if (found) { showNumbers(); arrange(); } },
    close() {
      grid.close();
      for (const stop of stops) stop();
    },
  };
}

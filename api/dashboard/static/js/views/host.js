// One host: its GPUs beside each other, in numbers and over time.

import { get } from "../api.js";
import { byImportance, catalogue } from "../catalogue.js";
import { ChartGrid } from "../chart-grid.js";
import { LINES_MAX } from "../chart.js";
import { fill, h, refill } from "../dom.js";
import { ago, count, metricTitle, parseTime, quantity } from "../format.js";
import { every } from "../live.js";
import { panel } from "../panel.js";
import { link, param, setParams } from "../state.js";
import { dataTable } from "../table.js";

const REFRESH_MS = 5_000;
const TABLE_METRICS_MAX = 8;

export function hostView(main, name) {
  let host = null;
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
  fill(main, head, kpis, gpuPanel.element, chips, grid.element);

  async function load() {
    try {
      host = await get(`api/v1/hosts/${encodeURIComponent(name)}`);
    } catch (error) {
      if (host) return;
      const p = panel({ title: error.status === 404 && !error.missing ? "Not found" : "Something went wrong" });
      fill(main, h("h1", {}, name), p.element);
      p.error(error, () => location.reload());
      return;
    }
    for (const gpu of host.gpu_list) latest.set(gpu.id, new Map(gpu.latest.map((value) => [value.metric_name, value])));
    gpuPanel.ready();
    showNumbers();
    await arrange();
  }

  const value = (gpu, metric) => latest.get(gpu.id)?.get(metric)?.value ?? NaN;

  function showNumbers() {
    const active = host.gpu_list.filter((gpu) => gpu.status === "active");
    const all = (metric) => active.map((gpu) => value(gpu, metric)).filter(Number.isFinite);
    const [power, util, temp, used] = ["DCGM_FI_DEV_POWER_USAGE", "DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_DEV_GPU_TEMP", "DCGM_FI_DEV_FB_USED"].map(all);
    const sum = (values) => (values.length ? values.reduce((a, b) => a + b, 0) : NaN);
    refill(head,
      h("nav", { class: "crumbs", "aria-label": "Path" }, h("a", { href: link("fleet") }, "Fleet"), " / "),
      h("h1", {}, host.name || "no host name"),
      h("div", { class: "facts" }, host.models.map((model) => h("span", {}, model)), host.cluster && h("span", {}, `cluster ${host.cluster}`), h("span", {}, `last seen ${ago(Math.max(parseTime(host.last_seen), ...[...latest.values()].flatMap((values) => [...values.values()].map((v) => parseTime(v.timestamp)))))}`)));
    fill(kpis, [
      ["GPUs", count(host.gpus), ""],
      ["Reporting", count(active.length), active.length === host.gpus ? "all of them" : `${host.gpus - active.length} silent`, active.length < host.gpus ? "warn" : ""],
      ["Mean utilisation", quantity(sum(util) / util.length, "%"), ""],
      ["Hottest", quantity(temp.length ? Math.max(...temp) : NaN, "C"), ""],
      ["Power", quantity(sum(power), "W"), ""],
      ["Memory used", quantity(sum(used), "MiB"), ""],
    ].map(([label, text, under, level = ""]) => h("div", { class: `kpi ${level}` }, h("dt", {}, label), h("dd", {}, text, h("div", { class: "under" }, under)))));
    showTable();
  }

  function showTable() {
    const names = byImportance(new Set(host.gpu_list.flatMap((gpu) => gpu.latest.map((v) => v.metric_name)))).slice(0, TABLE_METRICS_MAX);
    if (tableKey !== names.join()) {
      tableKey = names.join();
      const unit = (metric) => host.gpu_list.flatMap((gpu) => gpu.latest).find((v) => v.metric_name === metric)?.unit;
      gpuTable = dataTable([
        { label: "GPU", value: (gpu) => Number(gpu.gpu_index), cell: (gpu) => h("a", { href: link("gpus", gpu.id) }, `GPU ${gpu.gpu_index}`) },
        { label: "Status", value: (gpu) => gpu.status },
        ...names.map((metric) => ({ label: metricTitle(metric), numeric: true, value: (gpu) => value(gpu, metric), cell: (gpu) => quantity(value(gpu, metric), unit(metric)) })),
        { label: "Pod", value: (gpu) => gpu.pod },
        { label: "Id", value: (gpu) => gpu.id, cell: (gpu) => h("code", {}, gpu.id) },
      ], { caption: "GPUs of this host with their latest values", sort: 0 });
      fill(gpuPanel.body, gpuTable.element);
    }
    gpuTable.set(host.gpu_list);
  }

  const chosen = () => {
    const wanted = param("gpus").split(",").filter(Boolean);
    const some = host.gpu_list.filter((gpu) => wanted.includes(gpu.gpu_index));
    return (some.length ? some : host.gpu_list).slice(0, LINES_MAX);
  };

  async function arrange() {
    const known = await catalogue();
    const names = byImportance(new Set(host.gpu_list.flatMap((gpu) => gpu.latest.map((v) => v.metric_name))));
    const gpus = chosen();
    const key = JSON.stringify([gpus.map((gpu) => gpu.id), names, param("range"), param("from"), param("to"), param("tz")]);
    if (key === shownKey) return;
    shownKey = key;
    const drawn = new Set(gpus.map((gpu) => gpu.gpu_index));
    refill(chips, h("span", { class: "found" }, "Draw:"), host.gpu_list.map((gpu) => h("button", {
      type: "button", class: "chip", "aria-pressed": String(drawn.has(gpu.gpu_index)), onclick: () => {
        if (drawn.has(gpu.gpu_index)) drawn.delete(gpu.gpu_index);
        else drawn.add(gpu.gpu_index);
        setParams({ gpus: [...drawn].join(",") });
      },
    }, `GPU ${gpu.gpu_index}`)));
    grid.set({
      gpus: gpus.map((gpu) => ({ id: gpu.id, label: `GPU ${gpu.gpu_index}` })),
      metrics: names.map((metric) => known.get(metric) ?? { name: metric, unit: "", kind: "gauge", help: "" }),
    });
  }

  gpuPanel.loading();
  load();
  const stops = [every(REFRESH_MS, load), every(1000, () => { if (host) showNumbers(); })];
  return {
    title: name,
    update: () => { if (host) { showNumbers(); arrange(); } },
    close() {
      grid.close();
      for (const stop of stops) stop();
    },
  };
}

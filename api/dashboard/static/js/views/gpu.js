// One GPU, or several beside each other: every metric over time, what happened, what it last said.

import { get } from "../api.js";
import { byImportance, catalogue } from "../catalogue.js";
import { ChartGrid } from "../chart-grid.js";
import { LINES_MAX } from "../chart.js";
import { fill, h, icon, refill } from "../dom.js";
import { ago, dateTime, isAmount, metricTitle, parseTime, quantity } from "../format.js";
import { jobOf } from "../jobs.js";
import { showKpis } from "../kpis.js";
import { every } from "../live.js";
import { panel } from "../panel.js";
import { current, link, param, setParams } from "../state.js";
import { dataTable } from "../table.js";
import { trendPanel } from "../trend.js";

const REFRESH_MS = 5_000;
const KPIS = 6;
const STATUS = { active: ["good", "check"], stale: ["warn", "alert"], lost: ["bad", "close"] };

export function gpuView(main, id) {
  let gpu = null;
  let shownKey = "";
  const latest = new Map();
  const head = h("header", { class: "page-head" });
  const kpis = h("dl", { class: "kpis", "aria-label": "Latest values" });
  const chips = h("div", { class: "chips", role: "group", "aria-label": "Draw several metrics in one chart" });
  const compareInput = h("input", { class: "input", list: "gpu-choices", id: "gpu-compare", placeholder: "host or GPU id" });
  const choices = h("datalist", { id: "gpu-choices" });
  const compared = h("span", { class: "chips" });
  const compareForm = h("form", { class: "controls", onsubmit: addGpu }, h("label", { class: "field", for: "gpu-compare" }, "Compare with ", compareInput), choices, h("button", { class: "button" }, "Add"), compared);

  const latestTable = dataTable([
    { label: "Metric", value: (row) => row.metric_name, cell: (row) => h("span", { title: row.help }, metricTitle(row.metric_name)) },
    { label: "Value", value: (row) => row.value, numeric: true, cell: (row) => h("b", {}, quantity(row.value, row.unit)) },
    { label: "Measured", value: (row) => row.timestamp, numeric: true, cell: (row) => h("span", { title: dateTime(parseTime(row.timestamp), { zone: true }) }, ago(parseTime(row.timestamp))) },
    { label: "Name", value: (row) => row.metric_name, cell: (row) => h("code", { class: "breaks" }, row.metric_name) },
  ], { caption: "Latest value of every metric", empty: "No value in the hour before it was last seen" });
  const latestPanel = panel({ title: "Latest values", rows: () => latestTable.rows() });
  latestPanel.body.append(latestTable.element);

  const eventTable = dataTable([
    { label: "Time", value: (row) => new Date(row.t * 1000).toISOString(), cell: (row) => dateTime(row.t * 1000) },
    { label: "What", value: (row) => row.text },
    { label: "Severity", value: (row) => row.event?.severity ?? "info" },
    { label: "What to do", value: (row) => row.event?.action ?? "" },
  ], { caption: "XIDs and throttling in this range", sort: 0, descending: true, empty: "Nothing happened in this range" });
  const eventPanel = panel({ title: "Events", rows: () => eventTable.rows() });
  eventPanel.body.append(eventTable.element);

  const grid = new ChartGrid({
    onSamples(samples) {
      for (const sample of samples) {
        const known = sample.gpu_id === id && latest.get(sample.metric_name);
        if (known && sample.timestamp > known.timestamp) Object.assign(known, { value: sample.value, timestamp: sample.timestamp });
      }
    },
    onMarks(found) {
      eventTable.set(found);
      eventPanel.note(found.length ? `${found.length} in this range` : "");
    },
  });
  const trend = trendPanel(id);
  fill(main, head, kpis, h("div", { class: "pickers" }, chips, compareForm), grid.element, h("div", { class: "columns" }, latestPanel.element, h("div", { class: "side" }, trend.panel.element, eventPanel.element)));

  function showLatest() {
    const names = byImportance(latest.keys());
    latestTable.set(names.map((name) => latest.get(name)));
    showKpis(kpis, names.filter((name) => isAmount(latest.get(name).unit)).slice(0, KPIS).map((name) => {
      const { value, unit, timestamp } = latest.get(name);
      return [metricTitle(name), quantity(value, unit), ago(parseTime(timestamp))];
    }));
  }

  async function load() {
    try {
      [gpu] = await Promise.all([get(`api/v1/gpus/${encodeURIComponent(id)}`), catalogue()]);
    } catch (error) {
      if (gpu) return;
      fill(main, h("h1", {}, "GPU"), errorPanel(error));
      return;
    }
    for (const value of gpu.latest) latest.set(value.metric_name, value);
    latestPanel.ready();
    showHead();
    showLatest();
    await arrange();
  }

  function errorPanel(error) {
    const p = panel({ title: error.status === 404 ? "Not found" : "Something went wrong" });
    p.error(error, () => location.reload());
    return p.element;
  }

  function showHead() {
    const [kind, sign] = STATUS[gpu.status] ?? ["", "info"];
    const facts = [
      gpu.model_name, gpu.device, gpu.gpu_index !== "" && `index ${gpu.gpu_index}`, gpu.cluster && `cluster ${gpu.cluster}`,
      gpu.pod && ["pod ", h("a", { href: link("jobs", jobOf(gpu).id), title: "The job with all its GPUs" }, `${gpu.namespace ? `${gpu.namespace}/` : ""}${gpu.pod}`)], gpu.job && `job ${gpu.job}`,
      `first seen ${dateTime(parseTime(gpu.first_seen))}`, `last seen ${ago(Math.max(parseTime(gpu.last_seen), ...[...latest.values()].map((value) => parseTime(value.timestamp))))}`,
    ].filter(Boolean);
    refill(head,
      h("nav", { class: "crumbs", "aria-label": "Path" }, h("a", { href: link("fleet") }, "Fleet"), " / ", h("a", { href: link("hosts", gpu.hostname) }, gpu.hostname || "no host"), " / "),
      h("h1", {}, `${gpu.hostname} · GPU ${gpu.gpu_index}`), h("span", { class: `badge ${kind}` }, icon(sign), gpu.status),
      h("div", { class: "facts" }, h("code", {}, gpu.id), facts.map((fact) => h("span", {}, fact))));
    document.title = `${gpu.hostname} GPU ${gpu.gpu_index} · GPU telemetry`;
  }

  const others = () => param("with").split(",").filter((other) => other && other !== id).slice(0, LINES_MAX - 1);
  const overlay = () => param("metrics").split(",").filter(Boolean);

  /** What to draw follows from the address; charts are arranged anew only if that changed. */
  async function arrange() {
    const known = await catalogue();
    const names = [...latest.keys()];
    const key = JSON.stringify([others(), overlay(), names, param("range"), param("from"), param("to"), param("tz")]);
    if (key === shownKey) return;
    shownKey = key;
    drawChips(names);
    const labels = await Promise.all(others().map(async (other) => {
      const found = await get(`api/v1/gpus/${encodeURIComponent(other)}`).catch(() => null);
      return { id: other, label: found ? `${found.hostname} GPU ${found.gpu_index}` : other };
    }));
    fill(compared, labels.map(({ id: other, label }) => h("button", { type: "button", class: "chip", "aria-label": `Stop comparing with ${label}`, onclick: () => setParams({ with: others().filter((o) => o !== other).join(",") }) }, label, icon("close"))));
    grid.set({
      gpus: [{ id, label: `${gpu.hostname} GPU ${gpu.gpu_index}` }, ...labels],
      metrics: names.map((name) => known.get(name) ?? { name, unit: latest.get(name).unit, kind: "gauge", help: "" }),
      overlay: overlay(),
    });
    trend.set(names.map((name) => known.get(name) ?? { name, unit: latest.get(name).unit, kind: "gauge" }));
  }

  function drawChips(names) {
    const chosen = new Set(overlay());
    refill(chips, h("span", { class: "found" }, "In one chart:"), byImportance(names).map((name) =>
      h("button", {
        type: "button", class: "chip", "aria-pressed": String(chosen.has(name)), onclick: () => {
          if (chosen.has(name)) chosen.delete(name);
          else chosen.add(name);
          setParams({ metrics: [...chosen].join(",") });
        },
      }, metricTitle(name))));
  }

  async function addGpu(event) {
    event.preventDefault();
    const text = compareInput.value.trim();
    if (!text) return;
    const body = await get("api/v1/gpus", { q: text, page_size: LINES_MAX }).catch(() => ({ gpus: [] }));
    const ids = body.gpus.map((found) => found.id).filter((found) => found !== id);
    if (!ids.length) {
      compareInput.setCustomValidity("No GPU matches");
      compareInput.reportValidity();
      return;
    }
    compareInput.value = "";
    // A whole id names one GPU; a host's name all of its GPUs.
    setParams({ with: [...new Set([...others(), ...(ids.includes(text) ? [text] : ids)])].slice(0, LINES_MAX - 1).join(",") });
  }

  let asked = 0;
  compareInput.addEventListener("input", async () => {
    compareInput.setCustomValidity("");
    const turn = ++asked;
    const text = compareInput.value.trim();
    if (text.length < 2) return;
    const body = await get("api/v1/gpus", { q: text, page_size: 20 }).catch(() => ({ gpus: [] }));
    if (turn === asked) fill(choices, body.gpus.map((found) => h("option", { value: found.id }, `${found.hostname} GPU ${found.gpu_index}`)));
  });

  latestPanel.loading();
  load();
  const stops = [every(REFRESH_MS, load), every(1000, () => { if (gpu) { showLatest(); showHead(); } })];
  return {
    title: "GPU",
    update: () => { if (gpu && current().id === id) { showHead(); arrange(); trend.update(); } },
    close() {
      grid.close();
      trend.close();
      for (const stop of stops) stop();
    },
  };
}

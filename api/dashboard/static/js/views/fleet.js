// The fleet at a glance: every GPU as a cell, totals, the funnel, and who stands out.

import { askAlerts, byRule, firing, firingText } from "../alerts.js";
import { get } from "../api.js";
import { byImportance, catalogue } from "../catalogue.js";
import { fill, h, icon, refill, rem } from "../dom.js";
import { ago, count, metricTitle, parseTime, quantity, unitName } from "../format.js";
import { funnel } from "../funnel.js";
import { Heatmap } from "../heatmap.js";
import { jobOf, jobTitle } from "../jobs.js";
import { showKpis } from "../kpis.js";
import { Legend } from "../legend.js";
import { every, Stream } from "../live.js";
import { panel } from "../panel.js";
import { domain, RAMPS } from "../ramp.js";
import { liveSamples } from "../samples.js";
import { onTheme } from "../settings.js";
import { go, link, param, setParams } from "../state.js";
import { dataTable } from "../table.js";

const DEFAULT_METRIC = "DCGM_FI_DEV_GPU_UTIL";
const POLL_MS = 5_000;
const DRAW_MS = 500; // Live values are drawn together: an eye follows two changes a second, not a thousand.
const ALERTS_SHOWN = 7;
const STANDOUTS = 8;
const JOBS_FOUND_MAX = 3;
const PHONE_PX = 640;
const LIVE_GPUS_MAX = 4_000; // Above, a second of rows weighs more than the whole fleet's answer every few seconds.

export function fleetView(main) {
  let fleet = null;
  let stream = null;
  let streamKey = "";
  let asking = null;
  let alerts = null;
  let alertsTold = "–";
  const fresh = new Map();

  const kpis = h("dl", { class: "kpis", "aria-label": "Totals" });
  const heatmap = new Heatmap({ onPick: (gpu) => go("gpus", gpu.id), onHost: (host) => go("hosts", host.hostname) });
  // As high as the window, so that a wall is filled; a phone is scrolled anyhow.
  heatmap.heightMax = () => (innerWidth < PHONE_PX ? 2 * innerHeight : Math.max(300, innerHeight - heatmap.element.getBoundingClientRect().top - scrollY - 7.5 * rem()));
  heatmap.summary = () => `Heatmap of ${count(heatmap.cells.length)} GPUs in ${count(heatmap.hosts.length)} hosts, coloured by ${metricTitle(metric())}`;
  const rampSelect = h("select", { class: "select", id: "fleet-ramp", onchange: () => setParams({ ramp: rampSelect.value === "viridis" ? "" : rampSelect.value }) },
    RAMPS.map((name) => h("option", { value: name }, name)));
  const legend = new Legend();
  legend.element.append(h("label", { class: "field", for: "fleet-ramp" }, "Colours ", rampSelect));
  const gpuTable = dataTable([
    { label: "Host", value: (row) => row.host.hostname, cell: (row) => h("a", { href: link("hosts", row.host.hostname) }, row.host.hostname || "(none)") },
    { label: "GPU", value: (row) => Number(row.gpu.gpu_index), numeric: true, cell: (row) => row.gpu.gpu_index },
    { label: "Id", value: (row) => row.gpu.id, cell: (row) => h("a", { class: "mono", href: link("gpus", row.gpu.id) }, row.gpu.id) },
    { label: "Value", value: (row) => row.gpu.value, numeric: true, cell: (row) => quantity(row.gpu.value ?? NaN, fleet?.unit) },
    { label: "Status", value: (row) => row.gpu.status },
    { label: "Pod", value: (row) => row.gpu.pod, cell: (row) => (row.gpu.pod ? h("a", { href: link("jobs", jobOf(row.gpu).id) }, row.gpu.pod) : "") },
    { label: "Namespace", value: (row) => row.gpu.namespace },
  ], { caption: "GPUs with their latest value", empty: "No GPU matches" });

  const metricSelect = h("select", { class: "select", id: "fleet-metric", onchange: () => setParams({ metric: metricSelect.value === DEFAULT_METRIC ? "" : metricSelect.value }, { replace: false }) });
  const orderSelect = h("select", { class: "select", id: "fleet-order", onchange: () => setParams({ order: orderSelect.value }) },
    [["", "host name"], ["high", "highest mean first"], ["low", "lowest mean first"]].map(([value, label]) => h("option", { value }, label)));
  const found = h("span", { class: "found", role: "status" });
  const foundJobs = h("span", { class: "row" });
  const search = h("input", {
    class: "input", type: "search", id: "fleet-search", placeholder: "Host, GPU or pod", value: param("q"),
    oninput: () => setParams({ q: search.value.trim() }),
    onkeydown: (event) => { if (event.key === "Enter") openFirst(); },
  });
  const controls = h("div", { class: "controls", role: "search" },
    h("span", { class: "search" }, icon("search"), h("label", { class: "hidden", for: "fleet-search" }, "Search by host, GPU or pod"), search), found, foundJobs,
    h("label", { class: "field", for: "fleet-metric" }, "Colour by ", metricSelect),
    h("label", { class: "field", for: "fleet-order" }, "Hosts by ", orderSelect));

  const heatPanel = panel({
    title: "GPUs by host", canvas: () => heatmap.canvas,
    rows: () => gpuTable.rows(),
    table: () => gpuTable.element,
  });
  heatPanel.onTable = (wanted) => setParams({ view: wanted ? "table" : "" });
  heatPanel.element.querySelector(".panel-head").after(h("div", { class: "panel-body" }, controls));
  heatPanel.body.append(heatmap.element, legend.element);

  const steps = funnel();
  const funnelPanel = panel({ title: "From total to active", rows: () => steps.rows(fleet?.totals ?? {}) });
  funnelPanel.body.append(steps.element);
  const ranking = h("ol", { class: "rank" });
  const endButton = h("button", { type: "button", class: "tool", onclick: () => setParams({ rank: param("rank") ? "" : "low" }) });
  const rankPanel = panel({ title: "Stand-outs", tools: [endButton], rows: () => [["host", "gpu", "value"], ...standouts().map(({ host, gpu }) => [host.hostname, gpu.id, gpu.value])] });
  rankPanel.body.append(ranking);
  const alertList = h("ul", { class: "rank" });
  const alertPanel = panel({ title: "Alerts" });
  alertPanel.body.append(alertList);

  fill(main, h("h1", { class: "hidden" }, "Fleet"), kpis,
    h("div", { class: "fleet" }, h("div", { class: "side" }, heatPanel.element, alertPanel.element), h("div", { class: "side" }, funnelPanel.element, rankPanel.element)));

  function metric() {
    return param("metric", DEFAULT_METRIC);
  }

  async function load() {
    asking?.abort();
    asking = new AbortController();
    const { signal } = asking;
    try {
      const body = await get("api/v1/fleet", { metric_name: metric() }, { signal });
      if (signal.aborted) return;
      fleet = body;
      fresh.clear();
      show();
    } catch (error) {
      if (signal.aborted) return;
      // What was seen stays: the badge says how old it is.
      if (fleet) heatPanel.badge(`not updated since ${ago(parseTime(fleet.timestamp))}: ${error.message}`);
      else for (const p of [heatPanel, funnelPanel, rankPanel]) p.error(error, load);
    }
  }

  async function loadAlerts() {
    try {
      const asked = await askAlerts();
      alerts = firing(asked.alerts);
      alertsTold = firingText(asked);
      refill(alertList, byRule(alerts).slice(0, ALERTS_SHOWN).map((group) => h("li", {},
        h("a", { href: link("alerts") }, group.rule), h("span", { class: "rank-why" }, group.summary),
        h("span", { class: `badge ${{ critical: "bad", warning: "warn" }[group.severity] ?? ""}` }, `${group.severity} × ${count(group.alerts.length)}`))));
      if (alerts.length) alertPanel.ready();
      else alertPanel.empty("Nothing fires.");
    } catch (error) {
      alertPanel.error(error, loadAlerts);
    }
    if (fleet) showTotals();
  }

  function show() {
    const { hosts } = fleet;
    if (!hosts.length) {
      for (const p of [heatPanel, rankPanel]) p.empty("No GPU was ever seen. Start a streamer, or upload a file.");
    } else {
      heatPanel.ready();
      rankPanel.ready();
    }
    funnelPanel.ready();
    heatPanel.heading.textContent = `${metricTitle(fleet.metric_name)} by host`;
    heatPanel.note(unitName(fleet.unit) ? `in ${unitName(fleet.unit)}` : "");
    const newest = fleet.totals.reporting === 0 && hosts.length;
    heatPanel.badge(newest ? "no GPU reports now: last known values" : "");
    showTotals();
    heatmap.setHosts(ordered(hosts));
    recolour();
    steps.set(fleet.totals);
    filter();
    listen();
  }

  function ordered(hosts) {
    const order = param("order");
    if (!order) return hosts;
    const mean = (host) => {
      const values = host.gpus.map((gpu) => gpu.value).filter((value) => value !== null);
      return values.length ? values.reduce((a, b) => a + b, 0) / values.length : -Infinity;
    };
    const keyed = hosts.map((host) => [mean(host), host]);
    keyed.sort(([a], [b]) => (order === "high" ? b - a : a - b));
    return keyed.map(([, host]) => host);
  }

  /** Everything that follows from values alone: colours, legend, stand-outs. */
  function recolour() {
    const values = heatmap.cells.map(({ gpu }) => gpu.value).filter((value) => value !== null && value !== undefined);
    const [low, high] = domain(values, fleet.unit);
    const scale = { low, high, unit: fleet.unit, ramp: param("ramp", "viridis") };
    heatmap.setScale(scale);
    legend.set(values, scale);
    const lowest = param("rank") === "low";
    rankPanel.heading.textContent = lowest ? "Lowest" : "Highest";
    rankPanel.note(metricTitle(fleet.metric_name));
    fill(endButton, lowest ? "Highest" : "Lowest");
    endButton.setAttribute("aria-label", `Show the ${lowest ? "highest" : "lowest"} instead`);
    refill(ranking, standouts().map(({ gpu, host }) => h("li", {}, h("a", { href: link("gpus", gpu.id) }, `${host.hostname} · GPU ${gpu.gpu_index}`), h("span", {}, quantity(gpu.value, fleet.unit)))));
  }

  function standouts() {
    const sign = param("rank") === "low" ? 1 : -1;
    return heatmap.cells.filter(({ gpu }) => gpu.value !== null && gpu.status !== "lost").sort((a, b) => sign * (a.gpu.value - b.gpu.value)).slice(0, STANDOUTS);
  }

  function showTotals() {
    const t = fleet.totals;
    const power = t.power_watts ?? NaN;
    showKpis(kpis, [
      ["GPUs", count(t.gpus), `${count(t.hosts)} hosts`],
      ["Reporting", count(t.reporting), t.gpus === t.reporting ? "all of them" : `${count(t.stale)} stale, ${count(t.lost)} lost`, t.lost + t.stale ? "warn" : ""],
      ["Working", count(t.working), t.allocated ? `${count(t.active)} of them allocated` : "above 5\u00a0%"],
      ["Held but idle", count(t.idle_allocated), `of ${count(t.allocated)} allocated`, t.idle_allocated ? "warn" : ""],
      ["Power", quantity(power, "W"), t.reporting && power ? `${quantity(power / t.reporting, "W")} a GPU` : ""],
      ["Mean utilisation", quantity(t.mean_utilization ?? NaN, "%"), "of those reporting"],
      ["Alerts", alertsTold, alerts === null ? "not known" : alerts.length ? "firing" : "all quiet", alerts?.some((a) => a.severity === "critical") ? "bad" : alerts?.length ? "warn" : ""],
    ]);
  }

  function matching() {
    const text = param("q").toLowerCase();
    if (!text) return null;
    return heatmap.cells.filter(({ gpu, host }) => [gpu.id, host.hostname, gpu.pod, gpu.namespace].some((field) => field?.toLowerCase().includes(text)));
  }

  function filter() {
    const matches = matching();
    heatmap.setMatches(matches && new Set(matches.map(({ gpu }) => gpu.id)));
    gpuTable.set((matches ?? heatmap.cells).map(({ gpu, host }) => ({ gpu, host })));
    found.textContent = matches ? `${count(matches.length)} of ${count(heatmap.cells.length)}` : "";
    const jobs = matchingJobs(matches);
    refill(foundJobs, jobs.length <= JOBS_FOUND_MAX ? jobs.map((job) => h("a", { href: link("jobs", job.id) }, `job ${jobTitle(job)}`)) : h("a", { href: link("jobs") }, `${count(jobs.length)} jobs`));
  }

  /** The jobs that a search for a pod's or namespace's name means. */
  function matchingJobs(matches) {
    const text = param("q").toLowerCase();
    const held = (matches ?? []).filter(({ gpu }) => [gpu.pod, gpu.namespace].some((field) => field?.toLowerCase().includes(text)));
    return [...new Map(held.filter(({ gpu }) => gpu.pod).map(({ gpu }) => [jobOf(gpu).id, jobOf(gpu)])).values()];
  }

  function openFirst() {
    const matches = matching() ?? [];
    const [first] = matches;
    if (!first) return;
    const jobs = matchingJobs(matches);
    if (jobs.length === 1 && matches.length > 1) return go("jobs", jobs[0].id);
    const host = first.host.hostname;
    if (host.toLowerCase() === param("q").toLowerCase()) return go("hosts", host);
    return go("gpus", first.gpu.id);
  }

  /** Live rows of the metric on show; a very large fleet is polled instead. */
  function listen() {
    const wanted = param("live") !== "off" && heatmap.cells.length && heatmap.cells.length <= LIVE_GPUS_MAX ? metric() : "";
    if (wanted === streamKey) return;
    stream?.close();
    streamKey = wanted;
    stream = wanted && new Stream({ metric_name: wanted }, (body) => {
      for (const sample of liveSamples(body)) if (sample.metric_name === metric()) fresh.set(sample.gpu_id, sample.value);
    });
  }

  const timer = setInterval(() => {
    if (!fresh.size || !fleet || document.hidden) return;
    heatmap.update(fresh);
    fresh.clear();
    recolour();
  }, DRAW_MS);
  const stops = [every(POLL_MS, load), every(15_000, loadAlerts), onTheme(() => { heatmap.draw(); legend.draw(); })];

  async function fillMetrics() {
    const known = await catalogue().catch(() => new Map());
    const names = byImportance([...known.values()].filter((m) => m.seen).map((m) => m.name));
    if (!names.includes(metric())) names.unshift(metric());
    fill(metricSelect, names.map((name) => h("option", { value: name }, `${metricTitle(name)}${unitName(known.get(name)?.unit) ? ` (${unitName(known.get(name).unit)})` : ""}`)));
    metricSelect.value = metric();
  }

  let shownMetric = metric();
  function update() {
    if (search.value.trim() !== param("q")) search.value = param("q");
    orderSelect.value = param("order");
    rampSelect.value = param("ramp", "viridis");
    metricSelect.value = metric();
    if ((param("view") === "table") !== heatPanel.isTable) heatPanel.showTable(param("view") === "table");
    if (shownMetric !== metric()) {
      shownMetric = metric();
      load();
    } else if (fleet) show();
  }

  heatPanel.loading();
  funnelPanel.loading();
  rankPanel.loading();
  alertPanel.loading();
  fillMetrics();
  if (param("view") === "table") heatPanel.showTable(true);
  orderSelect.value = param("order");
  rampSelect.value = param("ramp", "viridis");
  load();
  loadAlerts();

  return {
    title: "Fleet",
    update,
    close() {
      asking?.abort();
      stream?.close();
      clearInterval(timer);
      for (const stop of stops) stop();
    },
  };
}

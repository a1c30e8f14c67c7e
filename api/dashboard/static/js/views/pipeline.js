// The pipeline itself: from streamers to the store, each with its state and rates, and what holds it up now.

import { get } from "../api.js";
import { bottleneck } from "../bottleneck.js";
import { Chart } from "../chart.js";
import { fill, h, icon } from "../dom.js";
import { bytes, count, dateTime, duration, parseTime, short } from "../format.js";
import { every } from "../live.js";
import { panel } from "../panel.js";
import { Rates } from "../rates.js";
import { append, trim } from "../series.js";
import { dataTable } from "../table.js";

const POLL_MS = 2_000;
const KEPT_SECONDS = 900;
const REJECTS_POLL_MS = 15_000;
const REJECTS_SHOWN = 50;
const BADGES = { healthy: ["good", "check"], degraded: ["warn", "alert"], unhealthy: ["bad", "alert"], unknown: ["", "info"] };

export function pipelineView(main) {
  const rates = new Rates();
  const began = Date.now() / 1000;
  const lines = { in: column(), out: column(), lag: column() };
  let last = null;

  const verdict = h("div", { class: "verdict", role: "status" });
  const flow = h("div", { class: "flow" });
  const rateChart = new Chart({ label: "Rows a second into the broker and into the store. Left and right read values.", sync: "pipeline" });
  const ratePanel = panel({ title: "Rows a second", rows: () => rateChart.rows(), canvas: () => rateChart.canvas() });
  ratePanel.body.append(rateChart.element);
  const lagChart = new Chart({ label: "Rows that wait at the broker. Left and right read values.", sync: "pipeline" });
  const lagPanel = panel({ title: "Rows waiting at the broker", rows: () => lagChart.rows(), canvas: () => lagChart.canvas() });
  lagPanel.body.append(lagChart.element);
  const topicTable = dataTable([
    { label: "Topic", value: (t) => t.name, cell: (t) => h("code", {}, t.name) },
    { label: "Rows/s", value: (t) => t.throughput_rows_per_sec, numeric: true, cell: (t) => short(t.throughput_rows_per_sec) },
    { label: "Rows waiting", value: (t) => t.rows, numeric: true, cell: (t) => count(t.rows) },
    { label: "Messages waiting", value: (t) => t.messages, numeric: true, cell: (t) => count(t.messages) },
    { label: "Bytes waiting", value: (t) => t.bytes, numeric: true, cell: (t) => bytes(t.bytes) },
    { label: "In flight", value: (t) => t.in_flight, numeric: true, cell: (t) => count(t.in_flight) },
    { label: "Oldest", value: (t) => t.oldest_age_seconds, numeric: true, cell: (t) => (t.messages ? duration(t.oldest_age_seconds) : "–") },
    { label: "Subscribers", value: (t) => t.subscribers, numeric: true, cell: (t) => count(t.subscribers) },
    { label: "Dead letters", value: (t) => t.dead, numeric: true, cell: (t) => (t.dead ? h("span", { class: "badge bad" }, icon("alert"), count(t.dead)) : "0") },
    { label: "On disk", value: (t) => t.disk_bytes, numeric: true, cell: (t) => bytes(t.disk_bytes) },
  ], { caption: "Topics of the broker", empty: "The broker has no topic yet" });
  const topicPanel = panel({ title: "Broker by topic", rows: () => topicTable.rows() });
  topicPanel.body.append(topicTable.element);
  const groupTable = dataTable([
    { label: "Group", value: (g) => `${g.topic} / ${g.group}`, cell: (g) => h("code", {}, `${g.topic} / ${g.group}`) },
    { label: "Mode", value: (g) => `${g.mode}${g.durable ? "" : ", ephemeral"}${g.paused ? ", paused" : ""}` },
    { label: "Members", value: (g) => g.members, numeric: true },
    { label: "Rows behind", value: (g) => g.lag_rows, numeric: true, cell: (g) => count(g.lag_rows) },
    { label: "Oldest", value: (g) => g.oldest_age_seconds, numeric: true, cell: (g) => (g.lag_messages ? duration(g.oldest_age_seconds) : "–") },
    { label: "Ranges held", value: (g) => g.in_flight, numeric: true },
    { label: "Free credit", value: (g) => g.free_credit, numeric: true },
    { label: "Rows settled", value: (g) => g.settled_rows, numeric: true, cell: (g) => count(g.settled_rows) },
    { label: "Redelivered", value: (g) => g.redelivered, numeric: true, cell: (g) => count(g.redelivered) },
    { label: "Last ack", value: (g) => g.last_ack_seconds_ago, numeric: true, cell: (g) => (g.last_ack_seconds_ago === null ? "never" : `${duration(g.last_ack_seconds_ago)} ago`) },
  ], { caption: "Groups of collectors", empty: "No group of collectors is known" });
  const groupPanel = panel({ title: "Collectors by group", rows: () => groupTable.rows() });
  groupPanel.body.append(groupTable.element);
  const storeTable = dataTable([
    { label: "Table", value: (t) => t.name, cell: (t) => h("code", {}, t.name) },
    { label: "Rows", value: (t) => t.rows, numeric: true, cell: (t) => count(t.rows) },
    { label: "On disk", value: (t) => t.bytes_on_disk, numeric: true, cell: (t) => bytes(t.bytes_on_disk) },
    { label: "Bytes a row", value: (t) => t.bytes_on_disk / t.rows, numeric: true, cell: (t) => (t.rows ? short(t.bytes_on_disk / t.rows) : "–") },
    { label: "Parts", value: (t) => t.parts, numeric: true },
  ], { caption: "Tables of the store", sort: 1, descending: true });
  const storePanel = panel({ title: "Store by table", rows: () => storeTable.rows() });
  storePanel.body.append(storeTable.element);
  const rejectTable = dataTable([
    { label: "Reason", value: (r) => r[0], cell: (r) => h("code", {}, r[0]) },
    { label: "Rows", value: (r) => r[1], numeric: true, cell: (r) => count(r[1]) },
  ], { caption: "Reasons of rejection, with rows", sort: 1, descending: true, empty: "No row was rejected" });
  const rejectPanel = panel({ title: "Rejected rows by reason", rows: () => rejectTable.rows() });
  rejectPanel.body.append(rejectTable.element);
  const latestTable = dataTable([
    { label: "Refused", value: (r) => r.rejected_at, cell: (r) => dateTime(parseTime(r.rejected_at)) },
    { label: "Reason", value: (r) => r.reason, cell: (r) => h("code", {}, r.reason) },
    { label: "Metric", value: (r) => r.metric_name, cell: (r) => h("code", {}, r.metric_name) },
    { label: "Value", value: (r) => r.value, numeric: true },
    { label: "GPU", value: (r) => r.gpu_id, cell: (r) => h("code", {}, r.gpu_id || "–") },
    { label: "Host", value: (r) => r.hostname },
    { label: "Its own time", value: (r) => r.timestamp },
  ], { caption: "Rows that were refused last", empty: "No row was rejected" });
  const latestPanel = panel({ title: "Latest rejected rows", rows: () => latestTable.rows() });
  latestPanel.body.append(latestTable.element);
  const all = [ratePanel, lagPanel, topicPanel, groupPanel, storePanel, rejectPanel];
  fill(main, h("h1", {}, "Pipeline"), verdict, flow,
    h("div", { class: "columns" }, ratePanel.element, lagPanel.element), topicPanel.element, groupPanel.element, h("div", { class: "columns" }, storePanel.element, rejectPanel.element), latestPanel.element);

  async function load() {
    // /health answers 503 with a body when something is wrong: that is what this page is for.
    const [stats, health] = await Promise.allSettled([get("api/v1/stats"), get("health", {}, { accept: [503] })]);
    const known = health.status === "fulfilled" ? health.value : null;
    if (stats.status === "rejected") {
      for (const p of last ? [] : all) p.error(stats.reason, load);
      const reason = known?.checks?.store?.status === "unhealthy" ? { level: "bad", what: "The store", why: known.checks.store.reason } : { level: "bad", what: "The API", why: stats.reason.message };
      showVerdict(reason);
      showStages(last ?? empty(), known);
      return;
    }
    last = facts(stats.value, known);
    for (const p of all) p.ready();
    showVerdict(bottleneck(last));
    showStages(last, known);
    topicTable.set(last.topics);
    groupTable.set(last.groups);
    storeTable.set(Object.entries(stats.value.store?.tables ?? {}).map(([name, table]) => ({ name, ...table })));
    rejectTable.set(Object.entries(stats.value.rejected_by_reason ?? {}));
    record(last);
  }

  async function loadRejects() {
    try {
      latestTable.set((await get("api/v1/rejects", { page_size: REJECTS_SHOWN })).rejects);
      latestPanel.ready();
    } catch (error) {
      latestPanel.error(error, loadRejects);
    }
  }

  const empty = () => ({ topics: [], groups: [], rates: {}, rows: {}, store: {}, broker: {}, newestAge: null, health: null });

  function facts(stats, health) {
    const now = Date.now();
    const topics = Object.entries(stats.broker?.topics ?? {}).map(([name, topic]) => ({ name, ...topic }));
    const groups = topics.flatMap((topic) => Object.entries(topic.groups ?? {}).map(([group, report]) => ({ topic: topic.name, group, ...report })));
    const published = topics.some((t) => "published_rows" in t) ? sum(topics.filter((t) => !t.name.endsWith(".dlq")), "published_rows") : stats.sent;
    return {
      health, topics, groups, rows: { stored: stats.stored, rejected: stats.rejected, dead: stats.dead }, store: stats.store ?? {}, broker: stats.broker ?? {},
      newestAge: stats.lag?.newest_sample_age_seconds ?? null,
      published,
      waiting: sum(topics.filter((t) => !t.name.endsWith(".dlq")), "rows"),
      oldest: Math.max(0, ...topics.map((t) => t.oldest_age_seconds ?? 0)),
      rates: {
        in: rates.of("published", published, now) ?? stats.rates?.rows_per_second ?? null,
        out: rates.of("stored", stats.stored, now),
        settled: rates.of("settled", sum(groups.filter((group) => group.durable), "settled_rows"), now),
      },
    };
  }

  function showVerdict({ level, what, why }) {
    verdict.dataset.level = level;
    fill(verdict, icon(level === "good" ? "check" : "alert"), h("div", {}, h("strong", {}, level === "good" ? what : `Bottleneck: ${what}`), h("span", {}, why)));
  }

  function showStages(f, health) {
    const checks = health?.checks ?? {};
    const credit = f.broker.credit_pool_bytes ? `${bytes(f.broker.credit_outstanding_bytes)} of ${bytes(f.broker.credit_pool_bytes)}` : null;
    const streaming = f.rates.in === null || f.rates.in === undefined ? "unknown" : f.rates.in > 0 ? "healthy" : "degraded";
    fill(flow,
      stage("Streamers", f.broker.reachable === false ? "unknown" : streaming, perSecond(f.rates.in), "rows/s in", streaming === "degraded" ? "nothing arrives now" : "",
        [["Connected", count(f.broker.producers)], ["Rows sent", count(f.published)], ["Newest sample", f.newestAge === null ? "none" : `${duration(f.newestAge)} old`]]),
      stage("Broker", checks.broker?.status ?? "unknown", count(f.waiting), "rows wait", checks.broker?.reason,
        [["Oldest waits", f.waiting ? duration(f.oldest) : "–"], ["In flight", count(sum(f.topics, "in_flight"))], ["Credit out", credit ?? "–"], ["Dead letters", count(sum(f.topics, "dead"))], ["Uptime", duration(f.broker.uptime_seconds ?? NaN)]]),
      stage("Collectors", checks.collectors?.status ?? "unknown", perSecond(f.rates.settled), "rows/s settled", checks.collectors?.reason,
        [["Connected", count(f.broker.collectors)], ["Free credit", count(sum(f.groups.filter((group) => group.durable), "free_credit"))], ["Rows rejected", count(f.rows.rejected)], ["Redelivered", count(sum(f.groups, "redelivered"))]]),
      stage("Store", checks.store?.status ?? "unknown", perSecond(f.rates.out), "rows/s stored", checks.store?.reason,
        [["Rows", count(f.rows.stored)], ["On disk", bytes(f.store.bytes_on_disk)], ["Oldest row", f.store.oldest ? `${duration((Date.now() - parseTime(f.store.oldest)) / 1000)} old` : "–"]]),
      stage("API", health?.status ?? "unknown", duration(health?.uptime_seconds ?? NaN), "up", "", [["Version", health?.version ?? "–"]]));
  }

  function record(f) {
    const now = Date.now() / 1000;
    for (const [line, value] of [[lines.in, f.rates.in], [lines.out, f.rates.out], [lines.lag, f.waiting]]) {
      if (Number.isFinite(value)) append(line, now, value);
      trim(line, now - KEPT_SECONDS);
    }
    const range = [Math.max(began - 60, now - KEPT_SECONDS), now];
    ratePanel.note("since this page was opened");
    lagPanel.note("since this page was opened");
    rateChart.set([{ label: "into the broker", unit: "rows/s", column: lines.in }, { label: "into the store", unit: "rows/s", column: lines.out }], range);
    lagChart.set([{ label: "waiting", unit: "rows", column: lines.lag }], range);
  }

  for (const p of all) p.loading();
  latestPanel.loading();
  load();
  loadRejects();
  const stops = [every(POLL_MS, load), every(REJECTS_POLL_MS, loadRejects)];
  return {
    title: "Pipeline",
    close() {
      for (const stop of stops) stop();
      rateChart.close();
      lagChart.close();
    },
  };
}

const column = () => ({ t: [], v: [], low: [], high: [], gap: 15 });
const sum = (items, name) => items.reduce((total, item) => total + (item[name] ?? 0), 0);
const perSecond = (rate) => (rate === null || rate === undefined ? "–" : short(rate));

function stage(title, status, big, unit, reason, facts) {
  const [kind, sign] = BADGES[status];
  return h("section", { class: "stage", dataset: { status } },
    h("h2", {}, title, h("span", { class: `badge ${kind}` }, icon(sign), status)),
    h("p", { class: "big" }, big, h("small", {}, ` ${unit}`)),
    reason ? h("p", { class: "reason" }, reason) : null,
    h("dl", { class: "facts-list" }, facts.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])));
}

// The pipeline itself: from streamers to the store, each with its state and rates, and what holds it up now.

import { get } from "../api.js";
import { bottleneck } from "../bottleneck.js";
import { Chart } from "../chart.js";
import { fill, h, icon } from "../dom.js";
import { bytes, count, duration, parseTime, short } from "../format.js";
import { every } from "../live.js";
import { panel } from "../panel.js";
import { Rates } from "../rates.js";
import { append, trim } from "../series.js";
import { stateBadge, tablePanel, upSeconds } from "./pipeline-tables.js";

const POLL_MS = 2_000;
const KEPT_SECONDS = 900;
const REJECTS_POLL_MS = 15_000;
const REJECTS_SHOWN = 50;
const QUIET_SECONDS = 60;
const STATES = ["healthy", "degraded", "unhealthy"];

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
  const [parts, topics, groups, store, reasons, rejects] = ["parts", "topics", "groups", "store", "reasons", "rejects"].map(tablePanel);
  const all = [ratePanel, lagPanel, ...[parts, topics, groups, store, reasons].map((table) => table.panel)];
  fill(main, h("h1", {}, "Pipeline"), verdict, flow,
    h("div", { class: "columns" }, ratePanel.element, lagPanel.element), ...[parts, topics, groups].map((table) => table.panel.element),
    h("div", { class: "columns" }, store.panel.element, reasons.panel.element), rejects.panel.element);

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
    parts.set(last.parts);
    topics.set(last.topics);
    groups.set(last.groups);
    store.set(Object.entries(last.store.tables ?? {}).map(([name, table]) => ({ name, ...table })));
    reasons.set(Object.entries(stats.value.rejected_by_reason ?? {}));
    record(last);
  }

  async function loadRejects() {
    try {
      rejects.set((await get("api/v1/rejects", { page_size: REJECTS_SHOWN })).rejects);
      rejects.panel.ready();
    } catch (error) {
      rejects.panel.error(error, loadRejects);
    }
  }

  const empty = () => ({ parts: [], topics: [], groups: [], rates: {}, rows: {}, store: {}, broker: {}, newestAge: null, health: null });

  function facts(stats, health) {
    const now = Date.now();
    const topics = Object.entries(stats.broker?.topics ?? {}).map(([name, topic]) => ({ name, ...topic }));
    const groups = topics.flatMap((topic) => Object.entries(topic.groups ?? {}).map(([group, report]) => ({ topic: topic.name, group, ...report })));
    const published = topics.some((t) => "published_rows" in t) ? sum(topics.filter((t) => !t.name.endsWith(".dlq")), "published_rows") : stats.sent;
    return {
      health, topics, groups, parts: stats.parts ?? [], rows: { stored: stats.stored, rejected: stats.rejected, dead: stats.dead }, store: stats.store ?? {}, broker: stats.broker ?? {},
      cache: stats.cache ?? null,
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
    const of = (part) => f.parts.filter((one) => one.part === part);
    const quiet = !f.rates.in && (f.newestAge === null || f.newestAge > QUIET_SECONDS);
    const streaming = f.broker.reachable === false ? { status: "unknown", reason: "the broker does not answer" } : quiet ? { status: "degraded", reason: "nothing arrives now" } : worst(of("streamer"));
    fill(flow,
      stage("Streamers", streaming, perSecond(f.rates.in), "rows/s in",
        [["Connected", count(f.broker.producers)], ["Connected for", uptime(of("streamer"))], ["Rows sent", count(f.published)], ["Newest sample", f.newestAge === null ? "none" : `${duration(f.newestAge)} old`]]),
      stage("Broker", checks.broker, count(f.waiting), "rows wait",
        [["Up for", uptime(of("broker"))], ["Oldest waits", f.waiting ? duration(f.oldest) : "–"], ["In flight", count(sum(f.topics, "in_flight"))], ["Credit out", credit ?? "–"], ["Dead letters", count(sum(f.topics, "dead"))]]),
      stage("Collectors", checks.collectors?.status === "healthy" ? worst(of("collector")) : checks.collectors, perSecond(f.rates.settled), "rows/s settled",
        [["Connected", count(f.broker.collectors)], ["Connected for", uptime(of("collector"))], ["Free credit", count(sum(f.groups.filter((group) => group.durable), "free_credit"))], ["Rows rejected", count(f.rows.rejected)], ["Redelivered", count(sum(f.groups, "redelivered"))]]),
      stage("Store", checks.store, perSecond(f.rates.out), "rows/s stored",
        [["Up for", uptime(of("store"))], ["Rows", count(f.rows.stored)], ["On disk", bytes(f.store.bytes_on_disk)], ["Oldest row", f.store.oldest ? `${duration((Date.now() - parseTime(f.store.oldest)) / 1000)} old` : "–"]]),
      stage("API", health, duration(health?.uptime_seconds ?? NaN), "up", [["Live tails", count(sum(of("reader"), "connections"))], ["Answers from memory", f.cache ? `${Math.round((100 * f.cache.hits) / Math.max(1, f.cache.hits + f.cache.misses))} %` : "–"], ["Version", health?.version ?? "–"]]));
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
  rejects.panel.loading();
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

/** The state of several processes: that of the one that is worst off. */
const worst = (parts) => parts.map(({ state, reason }) => ({ status: state, reason })).sort((a, b) => STATES.indexOf(b.status) - STATES.indexOf(a.status))[0] ?? { status: "healthy" };

/** "3 h", or "12 s to 3 h" where one of several came later. */
function uptime(parts) {
  const seconds = parts.map(upSeconds).filter(Number.isFinite).sort((a, b) => a - b);
  const [shortest, longest] = [seconds[0], seconds.at(-1)].map(duration);
  return shortest === longest ? longest : `${shortest} to ${longest}`;
}

function stage(title, { status = "unknown", reason = "" } = {}, big, unit, facts) {
  return h("section", { class: "stage", dataset: { status } },
    h("h2", {}, title, stateBadge(status)),
    h("p", { class: "big" }, big, h("small", {}, ` ${unit}`)),
    reason ? h("p", { class: "reason" }, reason) : null,
    h("dl", { class: "facts-list" }, facts.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])));
}

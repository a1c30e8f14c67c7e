// The pipeline in detail, a table for each of its parts.

import { fill, h, icon } from "../dom.js";
import { bytes, count, dateTime, duration, parseTime, short } from "../format.js";
import { panel } from "../panel.js";
import { dataTable } from "../table.js";

export const BADGES = { healthy: ["good", "check"], degraded: ["warn", "alert"], unhealthy: ["bad", "alert"], unknown: ["", "info"] };

/** "healthy" and the like as a word with a sign and a colour. */
export function stateBadge(state) {
  const [kind, sign] = BADGES[state] ?? BADGES.unknown;
  return h("span", { class: `badge ${kind}` }, icon(sign), state);
}

/** Seconds since a part runs; NaN where that is not known. */
export const upSeconds = (part) => (Date.now() - parseTime(part.since)) / 1000;

const code = (text) => h("code", {}, text);
const PARTS = ["streamer", "broker", "collector", "reader", "store", "api"];
const RATES = { rows_per_second: (rate) => `${short(rate)} rows/s`, bytes_per_second: (rate) => `${bytes(rate)}/s`, deliveries_per_second: (rate) => `${short(rate)} deliveries/s` };

/** What a part does a second, in its own words. */
function rateOf({ rates }) {
  const [name, rate] = Object.entries(rates ?? {})[0] ?? [];
  return Number.isFinite(rate) ? RATES[name]?.(rate) ?? short(rate) : "–";
}

const TABLES = {
  parts: {
    title: "Processes", caption: "Processes of the pipeline", empty: "No process is known",
    columns: [
      { label: "Part", value: (p) => `${PARTS.indexOf(p.part)} ${p.part}`, cell: (p) => p.part },
      { label: "Name", value: (p) => p.name, cell: (p) => code(p.name) },
      { label: "State", value: (p) => p.state, cell: (p) => h("span", {}, stateBadge(p.state), p.reason ? ` ${p.reason}` : "") },
      { label: "Up or connected for", value: (p) => upSeconds(p), numeric: true, cell: (p) => h("span", { title: `since ${dateTime(parseTime(p.since), { zone: true })}` }, duration(upSeconds(p))) },
      { label: "Connections", value: (p) => p.connections, numeric: true },
      { label: "Rate", value: (p) => Object.values(p.rates ?? {})[0], numeric: true, cell: rateOf },
      { label: "Topic", value: (p) => p.topic, cell: (p) => (p.topic ? code(p.topic) : "–") },
      { label: "Group", value: (p) => p.group, cell: (p) => (p.group ? code(p.group) : "–") },
    ],
    sort: 0,
  },
  topics: {
    title: "Broker by topic", caption: "Topics of the broker", empty: "The broker has no topic yet",
    columns: [
      { label: "Topic", value: (t) => t.name, cell: (t) => code(t.name) },
      { label: "Rows/s", value: (t) => t.throughput_rows_per_sec, numeric: true, cell: (t) => short(t.throughput_rows_per_sec) },
      { label: "Rows waiting", value: (t) => t.rows, numeric: true, cell: (t) => count(t.rows) },
      { label: "Messages waiting", value: (t) => t.messages, numeric: true, cell: (t) => count(t.messages) },
      { label: "Bytes waiting", value: (t) => t.bytes, numeric: true, cell: (t) => bytes(t.bytes) },
      { label: "In flight", value: (t) => t.in_flight, numeric: true, cell: (t) => count(t.in_flight) },
      { label: "Oldest", value: (t) => t.oldest_age_seconds, numeric: true, cell: (t) => (t.messages ? duration(t.oldest_age_seconds) : "–") },
      { label: "Subscribers", value: (t) => t.subscribers, numeric: true, cell: (t) => count(t.subscribers) },
      { label: "Dead letters", value: (t) => t.dead, numeric: true, cell: (t) => (t.dead ? h("span", { class: "badge bad" }, icon("alert"), count(t.dead)) : "0") },
      { label: "On disk", value: (t) => t.disk_bytes, numeric: true, cell: (t) => bytes(t.disk_bytes) },
    ],
  },
  groups: {
    title: "Collectors by group", caption: "Groups of collectors", empty: "No group of collectors is known",
    columns: [
      { label: "Group", value: (g) => `${g.topic} / ${g.group}`, cell: (g) => code(`${g.topic} / ${g.group}`) },
      { label: "Mode", value: (g) => `${g.mode}${g.durable ? "" : ", ephemeral"}${g.paused ? ", paused" : ""}` },
      { label: "Members", value: (g) => g.members, numeric: true },
      { label: "Rows behind", value: (g) => g.lag_rows, numeric: true, cell: (g) => count(g.lag_rows) },
      { label: "Oldest", value: (g) => g.oldest_age_seconds, numeric: true, cell: (g) => (g.lag_messages ? duration(g.oldest_age_seconds) : "–") },
      { label: "Ranges held", value: (g) => g.in_flight, numeric: true },
      { label: "Free credit", value: (g) => g.free_credit, numeric: true },
      { label: "Rows settled", value: (g) => g.settled_rows, numeric: true, cell: (g) => count(g.settled_rows) },
      { label: "Redelivered", value: (g) => g.redelivered, numeric: true, cell: (g) => count(g.redelivered) },
      { label: "Last ack", value: (g) => g.last_ack_seconds_ago, numeric: true, cell: (g) => (g.last_ack_seconds_ago === null ? "never" : `${duration(g.last_ack_seconds_ago)} ago`) },
    ],
  },
  store: {
    title: "Store by table", caption: "Tables of the store", sort: 1, descending: true,
    columns: [
      { label: "Table", value: (t) => t.name, cell: (t) => code(t.name) },
      { label: "Rows", value: (t) => t.rows, numeric: true, cell: (t) => count(t.rows) },
      { label: "On disk", value: (t) => t.bytes_on_disk, numeric: true, cell: (t) => bytes(t.bytes_on_disk) },
      { label: "Bytes a row", value: (t) => t.bytes_on_disk / t.rows, numeric: true, cell: (t) => (t.rows ? short(t.bytes_on_disk / t.rows) : "–") },
      { label: "Parts", value: (t) => t.parts, numeric: true },
    ],
  },
  reasons: {
    title: "Rejected rows by reason", caption: "Reasons of rejection, with rows", sort: 1, descending: true, empty: "No row was rejected",
    columns: [
      { label: "Reason", value: (r) => r[0], cell: (r) => code(r[0]) },
      { label: "Rows", value: (r) => r[1], numeric: true, cell: (r) => count(r[1]) },
    ],
  },
  rejects: {
    title: "Latest rejected rows", caption: "Rows that were refused last", empty: "No row was rejected",
    columns: [
      { label: "Refused", value: (r) => r.rejected_at, cell: (r) => dateTime(parseTime(r.rejected_at)) },
      { label: "Reason", value: (r) => r.reason, cell: (r) => code(r.reason) },
      { label: "Metric", value: (r) => r.metric_name, cell: (r) => code(r.metric_name) },
      { label: "Value", value: (r) => r.value, numeric: true },
      { label: "GPU", value: (r) => r.gpu_id, cell: (r) => code(r.gpu_id || "–") },
      { label: "Host", value: (r) => r.hostname },
      { label: "Its own time", value: (r) => r.timestamp },
    ],
  },
};

/** A panel with the table of that name: {panel, set(rows)}. */
export function tablePanel(name) {
  const { title, columns, ...options } = TABLES[name];
  const table = dataTable(columns, options);
  const frame = panel({ title, rows: () => table.rows() });
  fill(frame.body, table.element);
  return { panel: frame, set: table.set };
}

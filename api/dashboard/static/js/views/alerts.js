// Alerts with their evidence, and a way to silence what is known.

import { answer, get, request } from "../api.js";
import { fill, h, icon, notify } from "../dom.js";
import { ago, dateTime, parseTime, quantity } from "../format.js";
import { every } from "../live.js";
import { panel } from "../panel.js";
import { link, param, setParams } from "../state.js";

const POLL_MS = 10_000;
const SEVERITIES = ["critical", "warning", "info"];
const DURATIONS = [["1h", "1 hour"], ["4h", "4 hours"], ["1d", "1 day"], ["7d", "7 days"]];

export function alertsView(main) {
  let alerts = null;
  let shown = "";
  const list = h("ul", { class: "alerts" });
  const filter = h("div", { class: "segment", role: "group", "aria-label": "Severity" });
  const summary = h("span", { class: "found", role: "status" });
  const frame = panel({ title: "Alerts", rows: () => [["severity", "state", "alert", "gpu", "host", "since", "summary", "evidence"], ...visible().map((a) => [a.severity, state(a), name(a), a.gpu_id ?? "", a.hostname ?? "", since(a), text(a), JSON.stringify(a.evidence ?? {})])] });
  frame.body.append(h("div", { class: "controls" }, filter, summary), list);
  fill(main, h("h1", { class: "hidden" }, "Alerts"), frame.element);

  const name = (alert) => alert.name ?? alert.rule ?? alert.id;
  const text = (alert) => alert.summary ?? alert.message ?? alert.description ?? "";
  const since = (alert) => alert.since ?? alert.started_at ?? alert.active_since ?? "";
  const silencedUntil = (alert) => alert.silenced_until ?? alert.silence?.until ?? null;
  const state = (alert) => (silencedUntil(alert) || alert.silenced ? "silenced" : alert.state ?? "firing");

  async function load() {
    try {
      const body = await get("api/v1/alerts");
      alerts = body.alerts ?? [];
      frame.ready();
      frame.badge("");
      show(body);
    } catch (error) {
      if (alerts) frame.badge(error.message);
      else frame.error(error, load);
    }
  }

  function visible() {
    const severity = param("severity");
    const rank = (alert) => (state(alert) === "firing" ? 0 : 10) + SEVERITIES.indexOf(alert.severity);
    return (alerts ?? []).filter((alert) => !severity || alert.severity === severity).sort((a, b) => rank(a) - rank(b) || since(b).localeCompare(since(a)));
  }

  function show() {
    const counts = Object.fromEntries(SEVERITIES.map((severity) => [severity, alerts.filter((alert) => alert.severity === severity).length]));
    const chosen = param("severity");
    fill(filter, [["", `All ${alerts.length}`], ...SEVERITIES.map((severity) => [severity, `${severity} ${counts[severity]}`])].map(([value, label]) =>
      h("button", { type: "button", "aria-pressed": String(value === chosen), onclick: () => setParams({ severity: value }) }, label)));
    const rows = visible();
    summary.textContent = rows.length ? "" : chosen ? `No ${chosen} alert.` : "Nothing fires: every rule was evaluated and found nothing.";
    const key = JSON.stringify(rows);
    if (key === shown) return;
    shown = key;
    fill(list, rows.map(item));
  }

  function item(alert) {
    const kind = { critical: "bad", warning: "warn" }[alert.severity] ?? "";
    const until = silencedUntil(alert);
    const button = until ? null : h("button", { type: "button", class: "button", onclick: () => silence(alert) }, "Silence");
    const subject = [
      alert.gpu_id && h("a", { href: link("gpus", alert.gpu_id) }, alert.gpu_id),
      alert.hostname && h("a", { href: link("hosts", alert.hostname) }, alert.hostname),
    ].filter(Boolean);
    return h("li", { class: "alert", dataset: { severity: alert.severity } },
      h("div", { class: "alert-head" },
        h("span", { class: `badge ${kind}` }, icon(kind ? "alert" : "info"), alert.severity), h("h2", {}, name(alert)),
        h("span", { class: "badge" }, state(alert)), until ? h("span", { class: "found" }, `until ${dateTime(parseTime(until))}`) : null,
        since(alert) ? h("span", { class: "found", title: dateTime(parseTime(since(alert)), { zone: true }) }, `since ${ago(parseTime(since(alert)))}`) : null,
        h("div", { class: "tools" }, button)),
      text(alert) ? h("p", {}, text(alert)) : null,
      subject.length ? h("div", { class: "row" }, subject) : null,
      alert.action ? h("p", {}, h("strong", {}, "Do: "), alert.action) : null,
      evidence(alert.evidence));
  }

  function silence(alert) {
    const length = h("select", { id: "silence-for" }, DURATIONS.map(([value, label]) => h("option", { value }, label)));
    const comment = h("input", { id: "silence-comment", maxlength: "200", placeholder: "who knows about it, and why" });
    const cancel = h("button", { type: "button", class: "button", onclick: () => dialog.close() }, "Cancel");
    const form = h("form", { method: "dialog", class: "stack", onsubmit: send }, h("h2", { id: "silence-title" }, `Silence ${name(alert)}`),
      h("label", {}, "For", length), h("label", {}, "Comment", comment), h("div", { class: "row end" }, cancel, h("button", { class: "button primary" }, "Silence")));
    const dialog = h("dialog", { class: "dialog", "aria-labelledby": "silence-title", onclose: () => dialog.remove() }, form);
    document.body.append(dialog);
    dialog.showModal();

    async function send() {
      try {
        const response = await request(`api/v1/alerts/${encodeURIComponent(alert.id)}/silence`, {
          method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ duration: length.value, comment: comment.value }),
        });
        await answer(response);
        notify(`${name(alert)} is silent for ${length.selectedOptions[0].textContent}`);
        shown = "";
        load();
      } catch (error) {
        notify(`Not silenced: ${error.message}`, "error");
      }
    }
  }

  frame.loading();
  load();
  const stop = every(POLL_MS, load);
  return { title: "Alerts", update: () => alerts && show(), close: stop };
}

/** Evidence as pairs; a list of samples as one line each. */
function evidence(found) {
  if (!found || !Object.keys(found).length) return null;
  const unit = found.unit ?? "";
  const value = (v) => {
    if (typeof v === "number") return quantity(v, unit);
    if (Array.isArray(v)) return v.map((entry) => (typeof entry === "object" ? Object.values(entry).join(" ") : String(entry))).join(", ");
    return v !== null && typeof v === "object" ? JSON.stringify(v) : String(v ?? "–");
  };
  return h("dl", { class: "evidence" }, Object.entries(found).filter(([key]) => key !== "unit").flatMap(([key, v]) => [h("dt", {}, key.replaceAll("_", " ")), h("dd", {}, value(v))]));
}

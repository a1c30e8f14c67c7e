// Alerts with their evidence, and a way to silence what is known.

import { askAlerts, byRule, evidenceText, firing, SEVERITIES } from "../alerts.js";
import { answer, request } from "../api.js";
import { fill, h, icon, notify, refill } from "../dom.js";
import { count, dateTime, duration, parseTime } from "../format.js";
import { every } from "../live.js";
import { panel } from "../panel.js";
import { link, param, setParams } from "../state.js";

const POLL_MS = 10_000;
const SUBJECTS_SHOWN = 50;
const DURATIONS = [["1h", "1 hour"], ["4h", "4 hours"], ["1d", "1 day"], ["7d", "7 days"], ["30d", "30 days"]];

export function alertsView(main) {
  let found = null;
  let shown = "";
  const list = h("ul", { class: "alerts" });
  const filter = h("div", { class: "segment", role: "group", "aria-label": "Severity" });
  const summary = h("span", { class: "found", role: "status" });
  const warnings = h("details", { class: "found", hidden: true });
  const frame = panel({ title: "Alerts", level: 1, rows: () => [["severity", "state", "rule", "host", "gpu", "since", "summary", "action", "evidence"], ...visible().map((a) => [a.severity, a.state, a.rule, a.hostname, a.gpu_id, a.since, a.summary, a.action, JSON.stringify(a.evidence)])] });
  frame.body.append(h("div", { class: "controls" }, filter, summary), list, warnings);
  fill(main, frame.element);

  async function load() {
    try {
      found = await askAlerts();
      frame.ready();
      frame.badge("");
      await show();
    } catch (error) {
      if (found) frame.badge(error.message);
      else frame.error(error, load);
    }
  }

  const visible = () => found.alerts.filter((alert) => !param("severity") || alert.severity === param("severity"));

  async function show() {
    const chosen = param("severity");
    const counts = (severity) => found.alerts.filter((alert) => alert.severity === severity).length;
    const choices = [["", `All ${count(found.total)}`], ...SEVERITIES.map((severity) => [severity, `${severity} ${count(counts(severity))}`])];
    refill(filter, choices.map(([value, label]) => h("button", { type: "button", "aria-pressed": String(value === chosen), onclick: () => setParams({ severity: value }) }, label)));
    const alerts = visible();
    const active = firing(alerts).length;
    summary.textContent = alerts.length ? `${count(active)} firing, ${count(alerts.length - active)} silenced` : chosen ? `No ${chosen} alert.` : "Nothing fires.";
    warnings.hidden = !found.warnings.length;
    fill(warnings, h("summary", {}, `${count(found.warnings.length)} rules cannot fire: nothing reports what they look at`), h("ul", {}, found.warnings.map((text) => h("li", {}, text))));
    const key = JSON.stringify(alerts);
    if (key === shown) return;
    shown = key;
    refill(list, await Promise.all(byRule(alerts).map(item)));
  }

  async function item(group) {
    const kind = { critical: "bad", warning: "warn" }[group.severity] ?? "";
    const many = group.alerts.length;
    const rows = await Promise.all(group.alerts.slice(0, SUBJECTS_SHOWN).map(subject));
    return h("li", { class: "alert", dataset: { severity: group.state === "firing" ? group.severity : "" } },
      h("div", { class: "alert-head" },
        h("span", { class: `badge ${group.state === "firing" ? kind : ""}` }, icon(kind ? "alert" : "info"), group.severity), h("h2", {}, group.rule),
        many > 1 ? h("span", { class: "badge" }, `${count(many)} times`) : null, group.state === "silenced" ? h("span", { class: "badge" }, "silenced") : null),
      h("p", {}, group.summary, group.action ? [" ", h("strong", {}, "Do: "), group.action] : null),
      h("ul", { class: "subjects", "aria-label": `${group.rule}: what it fires for` }, rows),
      many > SUBJECTS_SHOWN ? h("p", {}, `${count(many - SUBJECTS_SHOWN)} more; the CSV has all of them.`) : null);
  }

  async function subject(alert) {
    const about = [
      alert.hostname && h("a", { href: link("hosts", alert.hostname) }, alert.hostname),
      alert.gpu_id && h("a", { class: "mono", href: link("gpus", alert.gpu_id) }, alert.gpu_id.length > 20 ? `${alert.gpu_id.slice(0, 12)}…` : alert.gpu_id),
    ].filter(Boolean);
    const since = parseTime(alert.since);
    const named = `${alert.rule} for ${alert.gpu_id || alert.hostname || "the pipeline"}`;
    const silenced = alert.silence && `silent until ${dateTime(parseTime(alert.silence.until))}${alert.silence.comment ? `: ${alert.silence.comment}` : ""}`;
    return h("li", { class: "subject" },
      h("div", { class: "row" }, about.length ? about : "the pipeline"),
      h("div", {}, await evidenceText(alert.evidence ?? {})),
      h("div", { class: "found", title: `since ${dateTime(since, { zone: true })}` }, silenced ?? `for ${duration((Date.now() - since) / 1000)}`),
      h("div", {}, alert.silence
        ? h("button", { type: "button", class: "button", "aria-label": `End the silence of ${named}`, onclick: () => send(alert, "DELETE", null, `${alert.rule} may be heard again`) }, "End silence")
        : h("button", { type: "button", class: "button", "aria-label": `Silence ${named}`, onclick: () => silence(alert) }, "Silence")));
  }

  function silence(alert) {
    const length = h("select", { id: "silence-for" }, DURATIONS.map(([value, label]) => h("option", { value }, label)));
    const comment = h("input", { id: "silence-comment", maxlength: "200", placeholder: "who knows about it, and why" });
    const cancel = h("button", { type: "button", class: "button", onclick: () => dialog.close() }, "Cancel");
    const confirm = () => send(alert, "POST", { duration: length.value, comment: comment.value }, `${alert.rule} is silent for ${length.selectedOptions[0].textContent}`);
    const form = h("form", { method: "dialog", class: "stack", onsubmit: confirm }, h("h2", { id: "silence-title" }, `Silence ${alert.rule}`),
      h("p", {}, alert.gpu_id || alert.hostname || "the pipeline"), h("label", {}, "For", length), h("label", {}, "Comment", comment),
      h("div", { class: "row end" }, cancel, h("button", { class: "button primary" }, "Silence")));
    const dialog = h("dialog", { class: "dialog", "aria-labelledby": "silence-title", onclose: () => dialog.remove() }, form);
    document.body.append(dialog);
    dialog.showModal();
  }

  async function send(alert, method, body, done) {
    try {
      const response = await request(`api/v1/alerts/${encodeURIComponent(alert.id)}/silence`, {
        method, ...(body ? { headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) } : {}),
      });
      await answer(response);
      notify(done);
      await load();
    } catch (error) {
      notify(`Not changed: ${error.message}`, "error");
    }
  }

  frame.loading();
  load();
  const stop = every(POLL_MS, load);
  return { title: "Alerts", update: () => found && show(), close: stop };
}

// The bar on top: where one is, the range of time, live or paused, zone and theme.

import { askAlerts, firing, firingText } from "./alerts.js";
import { fill, h, icon } from "./dom.js";
import { isUtc } from "./format.js";
import { every, isPaused, liveState, onLiveState, tellLiveState } from "./live.js";
import { setTheme, theme } from "./settings.js";
import { current, link, onChange, setParams } from "./state.js";
import { fixedParams, RELATIVE, timeRange } from "./timerange.js";

const VIEWS = [["fleet", "Fleet"], ["jobs", "Jobs"], ["pipeline", "Pipeline"], ["alerts", "Alerts"], ["upload", "Upload"]];
const PART_OF = { gpus: "fleet", hosts: "fleet" };
/** Views that show a range of time, rather than now: those of one thing or a few. */
const hasRange = ({ view, id }) => Boolean(id) && ["gpus", "hosts", "jobs"].includes(view);
const LIVE_WORDS = { live: "Live", connecting: "Connecting", polling: "Polling", paused: "Paused" };

/** Fill the bar; it keeps itself up to date. */
export function buildShell(bar) {
  const nav = h("nav", { class: "nav", "aria-label": "Views" });
  const alertCount = h("span", { class: "badge bad count", hidden: true });
  const anchors = VIEWS.map(([view, label]) => h("a", { href: "#/" }, label, view === "alerts" ? alertCount : null));
  nav.append(...anchors);
  const liveWord = h("span");
  const liveIcon = h("span");
  const live = h("button", { type: "button", class: "button live-button", onclick: () => setParams({ live: isPaused() ? "" : "off" }) },
    h("span", { class: "dot" }), liveWord, liveIcon);
  const zone = segment("Times in", [["local", "Local"], ["utc", "UTC"]], () => (isUtc() ? "utc" : "local"), (value) => setParams({ tz: value === "utc" ? "utc" : "" }));
  const look = segment("Theme", [["light", "Light"], ["auto", "Auto"], ["dark", "Dark"]], theme, (value) => { setTheme(value); look.update(); });
  const range = rangePicker();
  const display = h("details", { class: "menu" }, h("summary", { class: "button" }, "Display"),
    h("div", { class: "menu-sheet stack" }, h("div", { class: "field" }, "Times ", zone.element), h("div", { class: "field" }, "Theme ", look.element)));

  fill(bar,
    h("a", { class: "brand", href: "#/fleet", "aria-label": "GPU telemetry, fleet" }, h("img", { class: "brand-mark", src: "static/icon.svg", alt: "" }), h("span", { class: "brand-name" }, "GPU telemetry")),
    nav,
    h("div", { class: "bar-end" }, range.element, live, display));
  closeOutside(bar);

  function update() {
    const { view } = current();
    range.element.hidden = !hasRange(current());
    anchors.forEach((a, i) => {
      a.href = link(VIEWS[i][0]);
      if (VIEWS[i][0] === (PART_OF[view] ?? view)) a.setAttribute("aria-current", "page");
      else a.removeAttribute("aria-current");
    });
    range.update();
    zone.update();
    tellLiveState();
  }

  onLiveState((state) => {
    live.dataset.state = state;
    fill(liveWord, LIVE_WORDS[state]);
    fill(liveIcon, icon(state === "paused" ? "play" : "pause"));
    live.setAttribute("aria-pressed", String(state === "paused"));
    live.setAttribute("aria-label", state === "paused" ? "Paused. Resume live updates" : `${LIVE_WORDS[state]}. Pause live updates`);
  });
  onChange(update);
  update();
  tellLiveState(liveState());

  const countAlerts = async () => {
    const found = await askAlerts();
    alertCount.hidden = !firing(found.alerts).length;
    fill(alertCount, firingText(found), h("span", { class: "hidden" }, " firing"));
  };
  countAlerts().catch(() => {});
  every(15_000, countAlerts);
}

function segment(label, choices, value, choose) {
  const buttons = choices.map(([name, text]) => h("button", { type: "button", onclick: () => choose(name) }, text));
  const self = {
    element: h("div", { class: "segment", role: "group", "aria-label": label }, buttons),
    update() {
      buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(choices[i][0] === value())));
    },
  };
  self.update();
  return self;
}

function rangePicker() {
  const summary = h("summary", { class: "button" });
  const relative = RELATIVE.map(([name, text]) =>
    h("button", { type: "button", class: "button plain", onclick: () => { setParams({ range: name, from: "", to: "" }, { replace: false }); sheet.open = false; } }, text));
  const from = h("input", { type: "datetime-local", step: "1", id: "range-from" });
  const to = h("input", { type: "datetime-local", step: "1", id: "range-to" });
  const error = h("p", { class: "state error", hidden: true, role: "alert" });
  const form = h("form", { class: "stack", onsubmit: apply }, h("label", {}, "From", from), h("label", {}, "To", to), error, h("button", { class: "button", type: "submit" }, "Show this range"));
  const sheet = h("details", { class: "menu" }, summary, h("div", { class: "menu-sheet" }, h("div", { class: "choices", role: "group", "aria-label": "Relative ranges" }, relative), form));
  // On the click (a key gives one, too), not on "toggle": that comes later, and over what was typed by then.
  summary.addEventListener("click", () => {
    if (sheet.open) return;
    const { startMs, endMs } = timeRange();
    [from.value, to.value] = [local(startMs), local(endMs)];
  });

  function apply(event) {
    event.preventDefault();
    const [start, end] = [moment(from.value), moment(to.value)];
    error.hidden = start < end;
    error.textContent = "“From” must be before “To”.";
    if (!(start < end)) return;
    setParams(fixedParams(start, end), { replace: false });
    sheet.open = false;
  }

  return {
    element: sheet,
    update() {
      const now = timeRange();
      fill(summary, now.label);
      summary.setAttribute("aria-label", `Time range: ${now.label}`);
      relative.forEach((button, i) => button.setAttribute("aria-pressed", String(RELATIVE[i][0] === now.relative)));
    },
  };
}

/** A datetime-local value in the chosen zone, and back. */
const local = (ms) => new Date(ms - (isUtc() ? 0 : new Date(ms).getTimezoneOffset() * 60_000)).toISOString().slice(0, 19);
const moment = (text) => (text ? Date.parse(isUtc() ? `${text}Z` : text) : NaN);

/** Menus close by Escape and by a click elsewhere. */
function closeOutside(bar) {
  const close = (except) => bar.querySelectorAll("details[open]").forEach((menu) => { if (!except || !menu.contains(except)) menu.open = false; });
  document.addEventListener("click", (event) => close(event.target));
  bar.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    const open = bar.querySelector("details[open]");
    close();
    open?.querySelector("summary").focus();
  });
}

// The frame around everything shown: a title, what can be done with it, and the states between asking and seeing.

import { fill, h, icon, notify } from "./dom.js";
import { downloadCsv, downloadPng } from "./export.js";

let panels = 0;

/**
 * @param {object} options
 * @param {string} options.title
 * @param {string} [options.className]
 * @param {() => any[][]} [options.rows] heading row and rows, for CSV and for the PNG of a panel without canvas
 * @param {() => HTMLCanvasElement} [options.canvas] for PNG
 * @param {() => HTMLElement} [options.table] another view of the same as a table
 * @param {HTMLElement[]} [options.tools]
 */
export function panel({ title, className = "", level = 2, rows, canvas, table, tools = [] }) {
  panels += 1;
  const id = `panel-${panels}`;
  const note = h("span", { class: "panel-note" });
  const badge = h("span", { class: "badge warn", hidden: true });
  const body = h("div", { class: "panel-body" });
  const state = h("div", { class: "state", hidden: true });
  const tableBox = h("div", { class: "panel-table", hidden: true });
  const heading = h(`h${level}`, { id }, title);
  const buttons = [...tools];

  let tableButton = null;
  if (table) {
    tableButton = h("button", { type: "button", class: "tool", "aria-pressed": "false", "aria-label": `${title}: view as table`, onclick: () => self.showTable(tableBox.hidden) }, "Table");
    buttons.push(tableButton);
  }
  if (rows) {
    buttons.push(
      h("button", { type: "button", class: "tool", "aria-label": `${title}: download CSV`, onclick: () => downloadCsv(heading.textContent, rows()) }, "CSV"),
      h("button", {
        type: "button", class: "tool", "aria-label": `${title}: download PNG`,
        onclick: () => downloadPng(heading.textContent, { canvas: canvas?.(), rows: rows(), note: note.textContent }).catch((e) => notify(e.message, "error")),
      }, "PNG"),
    );
  }
  const element = h("section", { class: `panel ${className}`, "aria-labelledby": id },
    h("header", { class: "panel-head" }, h("div", { class: "panel-title" }, heading, note, badge), h("div", { class: "tools" }, buttons)), body, tableBox, state);

  const self = {
    element, body, heading,
    get isTable() {
      return !tableBox.hidden;
    },
    note(text) {
      note.textContent = text;
    },
    /** A warning beside the title, such as "no data since 12:03:11"; "" takes it away. */
    badge(text) {
      badge.hidden = !text;
      fill(badge, text ? icon("alert") : null, text);
    },
    showTable(wanted) {
      tableBox.hidden = !wanted;
      body.hidden = wanted;
      tableButton?.setAttribute("aria-pressed", String(wanted));
      if (wanted) fill(tableBox, table());
      self.onTable?.(wanted);
    },
    refreshTable() {
      if (!tableBox.hidden) fill(tableBox, table());
    },
    ready() {
      state.hidden = true;
      element.removeAttribute("aria-busy");
      body.classList.remove("off");
    },
    loading() {
      element.setAttribute("aria-busy", "true");
      show("loading", "Loading…");
    },
    empty(text) {
      show("empty", text);
    },
    /** An ApiError; `retry` asks again. */
    error(error, retry) {
      if (error.missing) return show("empty", "Not available: this API does not offer it.");
      return show("error", error.message, retry);
    },
  };

  function show(kind, text, retry) {
    if (kind !== "loading") element.removeAttribute("aria-busy");
    body.classList.add("off");
    state.className = `state ${kind}`;
    state.hidden = false;
    fill(state, kind === "error" ? icon("alert") : null, h("span", { role: kind === "error" ? "alert" : null }, text),
      retry ? h("button", { type: "button", class: "button", onclick: retry }, "Try again") : null);
  }

  return self;
}

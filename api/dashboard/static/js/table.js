// A table that sorts by its headings and draws only as many rows as a person reads.

import { fill, h, refill } from "./dom.js";

const ROWS_SHOWN = 200;

/**
 * @param {{label: string, value: (row) => any, cell?: (row) => any, numeric?: boolean}[]} columns
 * @param {{caption: string, sort?: number, descending?: boolean, empty?: string}} options
 * @returns {{element: HTMLElement, set: (rows: any[]) => void, rows: () => any[][]}} `rows` are what a CSV holds.
 */
export function dataTable(columns, { caption, sort = -1, descending = false, empty = "Nothing here" }) {
  let data = [];
  let shown = ROWS_SHOWN;
  const order = { column: sort, descending };
  const body = h("tbody");
  const more = h("button", { class: "button", type: "button", onclick: () => { shown += 1000; draw(); } }, "Show more");
  const note = h("div", { class: "table-more", hidden: true }, more);
  const headings = columns.map((column, i) =>
    h("th", { scope: "col", class: column.numeric ? "numeric" : "" },
      h("button", { type: "button", class: "sort", onclick: () => sortBy(i) }, column.label)));
  const table = h("table", { class: "table" }, h("caption", { class: "hidden" }, caption), h("thead", {}, h("tr", {}, ...headings)), body);
  const element = h("div", { class: "table-wrap", tabindex: "0", role: "region", "aria-label": caption }, table, note);

  function sortBy(i) {
    order.descending = order.column === i ? !order.descending : Boolean(columns[i].numeric);
    order.column = i;
    draw();
  }

  function sorted() {
    if (order.column < 0) return data;
    const { value } = columns[order.column];
    const sign = order.descending ? -1 : 1;
    const absent = (v) => v === null || v === undefined || Number.isNaN(v);
    return [...data].sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (absent(x) || absent(y)) return absent(x) - absent(y); // Whatever the order, what is missing comes last.
      return sign * (typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y), "en", { numeric: true }));
    });
  }

  function draw() {
    headings.forEach((heading, i) => {
      if (i === order.column) heading.setAttribute("aria-sort", order.descending ? "descending" : "ascending");
      else heading.removeAttribute("aria-sort");
    });
    const rows = sorted();
    refill(body, rows.slice(0, shown).map((row) =>
      h("tr", {}, columns.map((column, i) => {
        const content = column.cell ? column.cell(row) : column.value(row);
        return i === 0 ? h("th", { scope: "row" }, content ?? "–") : h("td", { class: column.numeric ? "numeric" : "" }, content ?? "–");
      }))));
    if (!rows.length) fill(body, h("tr", {}, h("td", { class: "none", colspan: String(columns.length) }, empty)));
    note.hidden = rows.length <= shown;
    more.textContent = `Show more (${rows.length - shown} not shown)`;
  }

  return {
    element,
    set(rows) {
      data = rows;
      draw();
    },
    rows: () => [columns.map((column) => column.label), ...sorted().map((row) => columns.map((column) => column.value(row) ?? ""))],
  };
}

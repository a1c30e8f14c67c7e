// A row of figures that are read from afar: label, amount with its unit, and a line of explanation.

import { fill, h } from "./dom.js";

/** `tiles`: [label, text such as "25.1 kW", explanation, "" | "warn" | "bad"]. */
export function showKpis(list, tiles) {
  fill(list, tiles.map(([label, text, under = "", level = ""]) => {
    const [, amount, unit] = /^(\S+)(?: (.+))?$/.exec(text) ?? [, text];
    return h("div", { class: `kpi ${level}` }, h("dt", {}, label),
      h("dd", {}, amount, unit ? h("small", {}, ` ${unit}`) : "", h("div", { class: "under" }, under)));
  }));
}

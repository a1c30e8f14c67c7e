// From the GPUs there are to the GPUs that work: where a fleet loses its worth.

import { fill, h } from "./dom.js";
import { count } from "./format.js";

const STEPS = [
  ["Total", "gpus", "ever seen"],
  ["Reporting", "reporting", "seen within a minute"],
  ["Allocated", "allocated", "reporting and held by a pod or job"],
  ["Active", "last", "allocated and working: above 5\u00a0%"],
];

/** `totals` of the fleet with the last step: of those allocated, unless no GPU tells who holds it. */
const narrowed = (totals) => ({ ...totals, last: totals.allocated ? totals.active : totals.working });

/** "96 %"; what is not all is never told as 100. */
const percent = (share) => (share < 1 && share >= 0.995 ? "> 99 %" : `${Math.round(share * 100)} %`);

export function funnel() {
  const lines = STEPS.map(([label, , meaning]) => {
    const value = h("b", {}, "–");
    const share = h("span");
    const bar = h("div", { class: "funnel-fill", css: { transform: "scaleX(0)" } });
    return { value, share, bar, element: h("div", { class: "funnel-step" }, h("div", { class: "funnel-line" }, value, h("span", {}, label), share), h("div", { class: "funnel-track" }, bar), h("p", {}, meaning)) };
  });
  return {
    element: h("div", { class: "funnel" }, lines.map((line) => line.element)),
    set(given) {
      const totals = narrowed(given);
      STEPS.forEach(([, name], i) => {
        const share = totals.gpus ? (totals[name] ?? 0) / totals.gpus : 0;
        fill(lines[i].value, count(totals[name]));
        fill(lines[i].share, i && totals.gpus ? percent(share) : "");
        lines[i].bar.style.setProperty("transform", `scaleX(${share})`);
      });
    },
    rows(given) {
      const totals = narrowed(given);
      return [["step", "gpus", "share of total"], ...STEPS.map(([label, name]) => [label, totals[name] ?? 0, totals.gpus ? (totals[name] ?? 0) / totals.gpus : 0])];
    },
  };
}

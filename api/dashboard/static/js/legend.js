// What the heatmap's colours mean: the ramp with its ends and unit, and above it how many GPUs have each value.

import { fill, h, token } from "./dom.js";
import { count, quantity } from "./format.js";
import { ramp, step } from "./ramp.js";

const BINS = 44;

export class Legend {
  constructor() {
    this.canvas = h("canvas", { role: "img" });
    this.scaleLine = h("div", { class: "legend-scale" });
    this.keys = [keyCanvas("stale"), keyCanvas("none")];
    this.element = h("div", { class: "legend" },
      h("div", { class: "legend-ramp" }, this.canvas, this.scaleLine),
      h("div", { class: "legend-keys" },
        h("span", { class: "key" }, this.keys[0], "stale: not seen for a minute"),
        h("span", { class: "key" }, this.keys[1], "lost, or no value")));
    new ResizeObserver(() => this.draw()).observe(this.canvas);
  }

  set(values, scale) {
    this.values = values;
    this.scale = scale;
    this.draw();
  }

  draw() {
    const width = this.canvas.clientWidth;
    const height = this.canvas.clientHeight;
    if (!width || !this.scale) return;
    const { low, high, unit } = this.scale;
    const { colours } = ramp(this.scale.ramp);
    const ratio = devicePixelRatio || 1;
    this.canvas.width = width * ratio;
    this.canvas.height = height * ratio;
    const g = this.canvas.getContext("2d");
    g.scale(ratio, ratio);
    const bins = new Array(BINS).fill(0);
    for (const value of this.values) bins[Math.min(BINS - 1, Math.floor((step(value, low, high) / 256) * BINS))] += 1;
    const most = Math.max(1, ...bins);
    const bar = 10;
    const room = height - bar - 3;
    bins.forEach((n, i) => {
      const x = (i * width) / BINS;
      g.fillStyle = colours[Math.round(((i + 0.5) / BINS) * 255)];
      g.fillRect(x, height - bar, width / BINS + 0.5, bar);
      g.fillStyle = token("--edge");
      // A square root, so that the odd ones out stay visible beside the many.
      const tall = n ? Math.max(2, Math.sqrt(n / most) * room) : 0;
      g.fillRect(x + 0.5, height - bar - 2 - tall, width / BINS - 1, tall);
    });
    this.canvas.setAttribute("aria-label", `Distribution of ${count(this.values.length)} values from ${quantity(low, unit)} to ${quantity(high, unit)}`);
    fill(this.scaleLine, [low, (low + high) / 2, high].map((value) => h("span", {}, quantity(value, unit))));
    this.keys.forEach(paintKey);
  }
}

const keyCanvas = (kind) => h("canvas", { width: "14", height: "14", dataset: { kind }, "aria-hidden": "true" });

function paintKey(canvas) {
  const g = canvas.getContext("2d");
  g.clearRect(0, 0, 14, 14);
  g.strokeStyle = token("--edge");
  g.strokeRect(0.5, 0.5, 13, 13);
  const lines = canvas.dataset.kind === "stale" ? [-7, 0, 7] : [0];
  if (canvas.dataset.kind === "stale") {
    g.fillStyle = token("--line");
    g.fillRect(1, 1, 12, 12);
  }
  g.strokeStyle = token("--text");
  g.beginPath();
  for (const d of lines) {
    g.moveTo(d + 2, 12);
    g.lineTo(d + 12, 2);
  }
  g.stroke();
}

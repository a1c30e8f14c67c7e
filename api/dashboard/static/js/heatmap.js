// Every GPU of the fleet as a cell, host by host, on one canvas: 8 or 10,000 of them.
//
// Cells are as large as the space allows. Large ones carry their number and their host's name; small ones are read
// by colour, with the pointer or with the arrow keys. What is shown is never told by colour alone: stale GPUs are
// hatched, GPUs without a value are hollow, and the same data is a table on request.

import { h, rem, token } from "./dom.js";
import { quantity } from "./format.js";
import { ramp, step } from "./ramp.js";

const CELL_MAX = 96;
const CELL_MIN = 4;
const CELL_WITH_TEXT = 22;
const CELL_WITH_EDGE = 12;
const LABEL_PX = 15;
const ROW_OF_GPUS_MAX = 8;
const RULER_PX = 118;

/**
 * Where everything goes: as many columns of hosts as make the cells largest, spread over the whole `width`.
 *
 * `heightMax` is kept unless cells would be too small to see. `scale` is that of the type, for walls.
 */
export function arrange(hosts, width, heightMax, scale = 1) {
  const most = hosts.reduce((n, host) => Math.max(n, host.gpus.length), 1);
  const across = Math.min(most, ROW_OF_GPUS_MAX);
  const down = Math.ceil(most / across);
  let best = null;
  for (let columns = 1; columns <= Math.max(1, hosts.length); columns += 1) {
    const found = layOut(hosts.length, columns, across, down, width, heightMax, scale);
    if (found.cellWidth < CELL_MIN && best) break;
    if (!best || found.score > best.score) best = found;
  }
  return best;
}

/** The same for so many `columns`; `score` is the cell's size where all fits, else by how much it does not. */
function layOut(hosts, columns, across, down, width, heightMax, scale) {
  const rows = Math.ceil(hosts / columns);
  const labelled = (width / columns) * 0.9 >= 64 * scale && heightMax / rows >= (LABEL_PX + 10) * scale;
  const label = labelled ? LABEL_PX * scale : 0;
  const ruler = !labelled && width >= 640 ? RULER_PX * scale : 0;
  const room = width - ruler;
  const pitchMax = CELL_MAX * scale + 2;
  // Between two hosts lies less than half a cell, at least four pixels.
  const widest = Math.min(room / (columns * (across + 0.4) - 0.4), (room - 4 * (columns - 1)) / (columns * across));
  const pitchX = Math.floor(Math.min(widest, 2 * pitchMax));
  const above = labelled ? Math.max(4, Math.round(pitchX / 5)) : 1;
  const fitting = Math.floor((heightMax / rows - label - above) / down);
  const pitchY = Math.max(CELL_MIN + 1, Math.min(fitting, pitchX, pitchMax));
  const gap = Math.min(pitchX, pitchY) >= 14 ? 2 : 1;
  // What is left over goes between the hosts, unless that would tear them apart.
  const between = columns > 1 ? Math.min((room - columns * across * pitchX) / (columns - 1), pitchX) : 0;
  const blockHeight = label + down * pitchY + above;
  const height = Math.ceil(rows * blockHeight);
  const size = Math.min(pitchX, pitchY);
  return {
    columns, across, label, ruler, pitchX, pitchY, cellWidth: pitchX - gap, cellHeight: pitchY - gap,
    blockWidth: across * pitchX + between, blockHeight, height, scale,
    // Of layouts with cells of the same size the widest is the easiest to read.
    score: height <= heightMax ? size + columns * pitchX * across / width / 2 : -height,
  };
}

export class Heatmap {
  /** `onPick(gpu, host)`, `onHost(host)`: what a click or a key chose. */
  constructor({ onPick, onHost }) {
    this.onPick = onPick;
    this.onHost = onHost;
    this.hosts = [];
    this.cells = [];
    this.index = new Map();
    this.cursor = -1;
    this.shown = false;
    this.matches = null;
    this.scale = { low: 0, high: 1, unit: "", ramp: "viridis" };
    this.heightMax = () => 600;
    this.canvas = h("canvas", { class: "heat-canvas", role: "img", "aria-label": "Heatmap of all GPUs" });
    this.tip = h("div", { class: "tip", hidden: true });
    this.says = h("div", { class: "hidden", "aria-live": "polite" });
    this.stage = h("div", {
      class: "heat-stage", tabindex: "0", role: "application", "aria-roledescription": "heatmap",
      "aria-label": "GPUs by host. Arrow keys move, Enter opens the GPU, H opens its host, Escape leaves.",
      onkeydown: (event) => this.#key(event),
      onfocus: () => { if (this.cursor < 0) this.#move(0); else this.#show(true); },
      onblur: () => { this.shown = false; this.tip.hidden = true; this.draw(); },
      onpointermove: (event) => this.#point(event),
      onpointerleave: () => { if (document.activeElement !== this.stage) { this.cursor = -1; this.shown = false; } this.tip.hidden = true; this.draw(); },
      onclick: (event) => this.#click(event),
    }, this.canvas, this.tip);
    this.element = h("div", { class: "heat" }, this.stage, this.says);
    new ResizeObserver(() => this.#resized()).observe(this.element);
  }

  /** `hosts` as /api/v1/fleet tells them, in the order to show. */
  setHosts(hosts) {
    const at = this.cells[this.cursor]?.gpu.id;
    this.hosts = hosts;
    this.cells = [];
    this.index.clear();
    hosts.forEach((host, hostNumber) => {
      host.gpus.forEach((gpu, place) => {
        this.index.set(gpu.id, this.cells.length);
        this.cells.push({ gpu, host, hostNumber, place });
      });
    });
    this.cursor = at === undefined ? -1 : this.index.get(at) ?? -1;
    this.#arrange();
  }

  setScale(scale) {
    this.scale = { ...this.scale, ...scale };
    this.draw();
  }

  /** Dim all cells but these; null for none. */
  setMatches(matches) {
    this.matches = matches;
    this.draw();
  }

  /** New values, [id, value] each, drawn together. Unknown GPUs are left for the next whole answer. */
  update(values) {
    for (const [id, value] of values) {
      const cell = this.cells[this.index.get(id)];
      if (cell) {
        cell.gpu.value = value;
        cell.gpu.status = "active";
      }
    }
    this.draw();
  }

  #resized() {
    if (this.element.clientWidth !== this.width) this.#arrange();
  }

  #arrange() {
    this.width = this.element.clientWidth;
    if (!this.width) return;
    this.layout = arrange(this.hosts, this.width, this.heightMax(), rem() / 16);
    this.draw(true);
  }

  #origin(cell) {
    const { label, ruler, pitchX, pitchY, across, columns, blockWidth, blockHeight } = this.layout;
    return [
      Math.round(ruler + (cell.hostNumber % columns) * blockWidth) + (cell.place % across) * pitchX,
      Math.round(Math.floor(cell.hostNumber / columns) * blockHeight + label) + Math.floor(cell.place / across) * pitchY,
    ];
  }

  draw(resize = false) {
    if (!this.layout) return;
    const { canvas, layout, scale } = this;
    const ratio = devicePixelRatio || 1;
    if (resize || canvas.width !== Math.round(this.width * ratio)) {
      canvas.width = Math.round(this.width * ratio);
      canvas.height = Math.round(Math.max(1, layout.height) * ratio);
      canvas.style.setProperty("height", `${layout.height}px`);
    }
    const g = canvas.getContext("2d");
    g.setTransform(ratio, 0, 0, ratio, 0, 0);
    g.clearRect(0, 0, this.width, layout.height);
    const look = { text: token("--text"), muted: token("--muted"), edge: token("--edge"), sans: token("--sans") };
    this.#drawLabels(g, look);
    const { colours, darkText } = ramp(scale.ramp);
    const { cellWidth: w, cellHeight: t } = layout;
    const size = Math.min(w, t);
    g.textAlign = "center";
    g.textBaseline = "middle";
    g.font = `600 ${Math.max(10, Math.min(20 * layout.scale, Math.round(size * 0.38)))}px ${look.sans}`;
    g.lineWidth = 1;
    for (const cell of this.cells) {
      const [x, y] = this.#origin(cell);
      const { value, status } = cell.gpu;
      g.globalAlpha = this.matches && !this.matches.has(cell.gpu.id) ? 0.12 : 1;
      if (value === null || value === undefined || status === "lost") {
        g.strokeStyle = look.edge;
        g.strokeRect(x + 0.5, y + 0.5, w - 1, t - 1);
        if (size >= 10) {
          g.beginPath();
          g.moveTo(x + (w - size * 0.4) / 2, y + (t + size * 0.4) / 2);
          g.lineTo(x + (w + size * 0.4) / 2, y + (t - size * 0.4) / 2);
          g.stroke();
        }
        continue;
      }
      const at = step(value, scale.low, scale.high);
      g.fillStyle = colours[at];
      g.fillRect(x, y, w, t);
      if (size >= CELL_WITH_EDGE) {
        g.strokeStyle = look.edge;
        g.strokeRect(x + 0.5, y + 0.5, w - 1, t - 1);
      }
      if (status === "stale") this.#hatch(g, x, y, w, t, darkText[at]);
      if (size >= CELL_WITH_TEXT) {
        g.fillStyle = darkText[at] ? "#000" : "#fff";
        g.fillText(brief(value, scale.unit), x + w / 2, y + t / 2 + 0.5, w - 4);
      }
    }
    g.globalAlpha = 1;
    this.#drawCursor(g);
    this.canvas.setAttribute("aria-label", this.summary?.() ?? "Heatmap of all GPUs");
  }

  /** Lines from below to above; where there is room for one only, the diagonal. */
  #hatch(g, x, y, w, t, dark) {
    g.save();
    g.beginPath();
    g.rect(x, y, w, t);
    g.clip();
    g.strokeStyle = dark ? "rgb(0 0 0 / 75%)" : "rgb(255 255 255 / 80%)";
    g.beginPath();
    const apart = t >= 10 ? Math.max(5, t / 5) : t;
    for (let d = t < 10 ? 0 : apart / 2 - t; d < w; d += apart) {
      g.moveTo(x + d, y + t);
      g.lineTo(x + d + t, y);
    }
    g.stroke();
    g.restore();
  }

  #drawLabels(g, look) {
    const { label, ruler, columns, blockWidth, blockHeight, pitchX, pitchY, across, scale } = this.layout;
    g.textAlign = "left";
    g.textBaseline = "alphabetic";
    g.fillStyle = look.muted;
    g.font = `${Math.round(11 * scale)}px ${look.sans}`;
    if (label) {
      this.hosts.forEach((host, i) => {
        const text = fit(g, host.hostname || "(no host)", across * pitchX);
        g.fillText(text, (i % columns) * blockWidth, Math.floor(i / columns) * blockHeight + label - 4 * scale);
      });
    } else if (ruler) {
      // Like the ticks of a ruler: the first host of every row that has room for its name.
      let free = 0;
      for (let row = 0; row * columns < this.hosts.length; row += 1) {
        const y = row * blockHeight;
        if (y < free || y + 12 * scale > this.layout.height) continue;
        g.fillText(fit(g, this.hosts[row * columns].hostname, ruler - 10), 0, y + Math.max(9 * scale, pitchY - 1));
        free = y + 14 * scale;
      }
    }
  }

  #drawCursor(g) {
    const cell = this.cells[this.cursor];
    if (!cell || !this.shown) return;
    const [x, y] = this.#origin(cell);
    const { cellWidth: w, cellHeight: t } = this.layout;
    g.lineWidth = 2;
    g.strokeStyle = token("--panel");
    g.strokeRect(x - 1, y - 1, w + 2, t + 2);
    g.strokeStyle = token("--text");
    g.strokeRect(x - 3, y - 3, w + 6, t + 6);
  }

  #at(event) {
    const { ruler, label, pitchX, pitchY, across, columns, blockWidth, blockHeight } = this.layout;
    const box = this.canvas.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left - ruler, event.clientY - box.top];
    const column = Math.floor(x / blockWidth);
    const row = Math.floor(y / blockHeight);
    if (x < 0 || y < 0 || column >= columns) return {};
    const host = this.hosts[row * columns + column];
    if (!host) return {};
    const within = y - row * blockHeight - label;
    if (within < 0) return { host };
    const inRow = Math.floor((x - column * blockWidth) / pitchX);
    const place = Math.floor(within / pitchY) * across + inRow;
    if (inRow >= across || !host.gpus[place]) return {};
    return { host, number: this.index.get(host.gpus[place].id) };
  }

  #point(event) {
    const { number, host } = this.layout ? this.#at(event) : {};
    this.stage.classList.toggle("pointing", Boolean(host));
    if (number === undefined) {
      this.tip.hidden = true;
      return;
    }
    if (number !== this.cursor || !this.shown) {
      this.cursor = number;
      this.#show(false);
    }
  }

  #click(event) {
    const { number, host } = this.#at(event);
    if (number !== undefined) this.onPick(this.cells[number].gpu, host);
    else if (host) this.onHost(host);
  }

  #key(event) {
    const { columns, across } = this.layout ?? {};
    const cell = this.cells[this.cursor];
    const moves = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity };
    if (event.key in moves) this.#move(Math.max(0, Math.min(this.cells.length - 1, this.cursor + moves[event.key])));
    else if (event.key === "ArrowDown" || event.key === "ArrowUp") this.#vertical(event.key === "ArrowDown" ? 1 : -1, across, columns);
    else if (event.key === "Enter" && cell) this.onPick(cell.gpu, cell.host);
    else if (event.key.toLowerCase() === "h" && cell) this.onHost(cell.host);
    else if (event.key === "Escape") { this.stage.blur(); return; }
    else return;
    event.preventDefault();
  }

  #vertical(direction, across, columns) {
    const cell = this.cells[this.cursor];
    if (!cell) return this.#move(0);
    // Within a host with several rows of GPUs first, then to the host below or above.
    const inside = cell.host.gpus[cell.place + direction * across];
    const host = inside ? cell.host : this.hosts[cell.hostNumber + direction * columns];
    if (!host?.gpus.length) return undefined;
    const place = inside ? cell.place + direction * across : Math.min(cell.place, host.gpus.length - 1);
    return this.#move(this.index.get(host.gpus[place].id));
  }

  #move(number) {
    if (!this.cells.length || !Number.isFinite(number)) return;
    this.cursor = number;
    this.#show(true);
  }

  /** Draw the cursor and its tip; `aloud` also for screen readers. */
  #show(aloud) {
    const cell = this.cells[this.cursor];
    if (!cell || !this.layout) return;
    this.shown = true;
    this.draw();
    const { gpu, host } = cell;
    const held = gpu.pod ? `${gpu.namespace ? `${gpu.namespace}/` : ""}${gpu.pod}` : "";
    const value = gpu.value === null || gpu.value === undefined ? "no value of the last 5 minutes" : quantity(gpu.value, this.scale.unit);
    this.tip.replaceChildren(
      h("strong", {}, value),
      h("span", {}, `${host.hostname || "no host"} · GPU ${gpu.gpu_index ?? ""}`),
      h("span", { class: "tip-id" }, gpu.id),
      held ? h("span", {}, held) : "",
      gpu.status === "active" ? "" : h("span", { class: "tip-status" }, gpu.status),
    );
    this.tip.hidden = false;
    const [x, y] = this.#origin(cell);
    const left = Math.max(0, Math.min(x, this.width - this.tip.offsetWidth));
    const above = y - this.tip.offsetHeight - 10;
    this.tip.style.setProperty("transform", `translate(${left}px, ${above > -60 ? above : y + this.layout.cellHeight + 10}px)`);
    if (aloud) this.says.textContent = `${host.hostname}, GPU ${gpu.gpu_index}: ${value}, ${gpu.status}${held ? `, held by ${held}` : ""}`;
  }
}

function brief(value, unit) {
  if (unit === "MiB") return (value / 1024).toFixed(value >= 102_400 ? 0 : 1);
  const size = Math.abs(value);
  if (size >= 1e4) return `${Math.round(value / 1000)}k`;
  return size >= 10 || Number.isInteger(value) ? String(Math.round(value)) : value.toFixed(size >= 1 ? 1 : 2);
}

/** The end of a host name tells hosts apart, so the middle goes. */
function fit(g, text, width) {
  if (g.measureText(text).width <= width) return text;
  const room = Math.max(4, Math.floor((text.length * width) / g.measureText(text).width) - 1);
  const tail = Math.ceil(room * 0.65);
  return `${text.slice(0, room - tail)}…${text.slice(-tail)}`;
}

// Every GPU of the fleet as a cell, host by host, on one canvas: 8 or 10,000 of them.
//
// Cells are as large as the space allows. Large ones carry their number and their host's name; small ones are read
// by colour, with the pointer or with the arrow keys. What is shown is never told by colour alone: stale GPUs are
// hatched, GPUs without a value are hollow, and the same data is a table on request.

import { h, token } from "./dom.js";
import { quantity } from "./format.js";
import { ramp, step } from "./ramp.js";

const CELL_MAX = 72;
const CELL_MIN = 4;
const CELL_WITH_TEXT = 26;
const LABEL_PX = 15;
const ROW_OF_GPUS_MAX = 8;
const RULER_PX = 118;

/** Where everything goes: the largest cell with which all hosts fit into `width` x `heightMax`. */
export function arrange(hosts, width, heightMax) {
  const most = hosts.reduce((n, host) => Math.max(n, host.gpus.length), 1);
  const across = Math.min(most, ROW_OF_GPUS_MAX);
  const down = Math.ceil(most / across);
  for (let cell = CELL_MAX; ; cell -= 1) {
    const gap = cell >= 14 ? 2 : 1;
    const pitch = cell + gap;
    const label = cell >= 9 && across * pitch >= 64 ? LABEL_PX : 0;
    const ruler = !label && width >= 640 ? RULER_PX : 0;
    const between = Math.max(4, Math.round(cell / 2.5));
    const blockWidth = across * pitch + between;
    const blockHeight = label + down * pitch + (label ? between / 2 : gap);
    const columns = Math.max(1, Math.floor((width - ruler + between) / blockWidth));
    const height = Math.ceil(hosts.length / columns) * blockHeight;
    if (height <= heightMax || cell === CELL_MIN) {
      return { cell, pitch, label, ruler, across, columns, blockWidth, blockHeight, height: Math.ceil(height) };
    }
  }
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
    this.heightMax = 600;
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
    this.layout = arrange(this.hosts, this.width, this.heightMax);
    this.draw(true);
  }

  #origin(cell) {
    const { label, ruler, pitch, across, columns, blockWidth, blockHeight } = this.layout;
    return [
      ruler + (cell.hostNumber % columns) * blockWidth + (cell.place % across) * pitch,
      Math.floor(cell.hostNumber / columns) * blockHeight + label + Math.floor(cell.place / across) * pitch,
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
    const { cell: size } = layout;
    g.textAlign = "center";
    g.textBaseline = "middle";
    g.font = `600 ${Math.min(20, Math.round(size * 0.36))}px ${look.sans}`;
    g.lineWidth = 1;
    for (const cell of this.cells) {
      const [x, y] = this.#origin(cell);
      const { value, status } = cell.gpu;
      g.globalAlpha = this.matches && !this.matches.has(cell.gpu.id) ? 0.12 : 1;
      if (value === null || value === undefined || status === "lost") {
        g.strokeStyle = look.edge;
        g.strokeRect(x + 0.5, y + 0.5, size - 1, size - 1);
        if (size >= 10) {
          g.beginPath();
          g.moveTo(x + size * 0.3, y + size * 0.7);
          g.lineTo(x + size * 0.7, y + size * 0.3);
          g.stroke();
        }
        continue;
      }
      const at = step(value, scale.low, scale.high);
      g.fillStyle = colours[at];
      g.fillRect(x, y, size, size);
      if (size >= 7) {
        g.strokeStyle = look.edge;
        g.strokeRect(x + 0.5, y + 0.5, size - 1, size - 1);
      }
      if (status === "stale") this.#hatch(g, x, y, size, darkText[at]);
      if (size >= CELL_WITH_TEXT) {
        g.fillStyle = darkText[at] ? "#000" : "#fff";
        g.fillText(brief(value, scale.unit), x + size / 2, y + size / 2 + 0.5, size - 4);
      }
    }
    g.globalAlpha = 1;
    this.#drawCursor(g);
    this.canvas.setAttribute("aria-label", this.summary?.() ?? "Heatmap of all GPUs");
  }

  #hatch(g, x, y, size, dark) {
    g.save();
    g.beginPath();
    g.rect(x, y, size, size);
    g.clip();
    g.strokeStyle = dark ? "rgb(0 0 0 / 75%)" : "rgb(255 255 255 / 80%)";
    g.beginPath();
    for (let d = -size; d < size; d += Math.max(3, size / 4)) {
      g.moveTo(x + d, y + size);
      g.lineTo(x + d + size, y);
    }
    g.stroke();
    g.restore();
  }

  #drawLabels(g, look) {
    const { label, ruler, columns, blockWidth, blockHeight, pitch, across } = this.layout;
    g.textAlign = "left";
    g.textBaseline = "alphabetic";
    g.fillStyle = look.muted;
    g.font = `11px ${look.sans}`;
    if (label) {
      this.hosts.forEach((host, i) => {
        const text = fit(g, host.hostname || "(no host)", across * pitch);
        g.fillText(text, (i % columns) * blockWidth, Math.floor(i / columns) * blockHeight + label - 4);
      });
    } else if (ruler) {
      // Like the ticks of a ruler: the first host of every row that has room for its name.
      let free = 0;
      for (let row = 0; row * columns < this.hosts.length; row += 1) {
        const y = row * blockHeight;
        if (y < free) continue;
        g.fillText(fit(g, this.hosts[row * columns].hostname, ruler - 10), 0, y + Math.max(9, pitch - 1));
        free = y + 14;
      }
    }
  }

  #drawCursor(g) {
    const cell = this.cells[this.cursor];
    if (!cell || !this.shown) return;
    const [x, y] = this.#origin(cell);
    const { cell: size } = this.layout;
    g.lineWidth = 2;
    g.strokeStyle = token("--panel");
    g.strokeRect(x - 1, y - 1, size + 2, size + 2);
    g.strokeStyle = token("--text");
    g.strokeRect(x - 3, y - 3, size + 6, size + 6);
  }

  #at(event) {
    const { ruler, label, pitch, across, columns, blockWidth, blockHeight } = this.layout;
    const box = this.canvas.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left - ruler, event.clientY - box.top];
    const column = Math.floor(x / blockWidth);
    const row = Math.floor(y / blockHeight);
    if (x < 0 || y < 0 || column >= columns) return {};
    const host = this.hosts[row * columns + column];
    if (!host) return {};
    const within = y - row * blockHeight - label;
    if (within < 0) return { host };
    const place = Math.floor(within / pitch) * across + Math.floor((x - column * blockWidth) / pitch);
    if (Math.floor((x - column * blockWidth) / pitch) >= across || !host.gpus[place]) return {};
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
    const value = gpu.value === null || gpu.value === undefined ? "no value within the hour" : quantity(gpu.value, this.scale.unit);
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
    this.tip.style.setProperty("transform", `translate(${left}px, ${above > -60 ? above : y + this.layout.cell + 10}px)`);
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

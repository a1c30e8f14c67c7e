// A line chart (uPlot) with min/max bands, a cursor shared with its neighbours, marks on the time line, zoom by
// dragging or by keys, and a legend that says value and unit.

import { fill, h, rem, token } from "./dom.js";
import { dateTime, isAmount, isUtc, quantity, short, unitName } from "./format.js";
import { silentSince, summary } from "./series.js";
import { onTheme } from "./settings.js";

const uPlot = window.uPlot;
const DASHES = [[], [6, 4], [2, 3], [10, 3, 2, 3]];
const HEIGHT = 190;
const MARK_PX = 9; // Marks that would touch are one.
export const LINES_MAX = 8;

/** "#rrggbb" with an alpha. */
const faint = (colour, alpha) => colour + Math.round(alpha * 255).toString(16).padStart(2, "0");

export class Chart {
  /**
   * @param {object} options
   * @param {string} options.label what is drawn, for screen readers
   * @param {string} [options.sync] charts with the same name share their cursor
   * @param {(startMs: number, endMs: number) => void} [options.onZoom]
   * @param {() => void} [options.onWiden] one step out
   */
  constructor({ label, sync = "", onZoom = () => {}, onWiden = () => {}, height = HEIGHT }) {
    this.label = label;
    this.sync = sync;
    this.onZoom = onZoom;
    this.onWiden = onWiden;
    this.height = height;
    this.lines = [];
    this.marks = [];
    this.range = [0, 1];
    this.plotBox = h("div", {
      class: "chart", tabindex: "0", role: "application", "aria-roledescription": "line chart", "aria-label": label,
      onkeydown: (event) => this.#key(event),
    });
    this.legend = h("div", { class: "chart-legend" });
    this.says = h("div", { class: "hidden", "aria-live": "polite" });
    this.element = h("div", {}, this.plotBox, this.legend, this.says);
    this.observer = new ResizeObserver(() => this.#fit());
    this.observer.observe(this.plotBox);
    this.forgetTheme = onTheme(() => this.#build());
  }

  close() {
    this.observer.disconnect();
    this.forgetTheme();
    this.plot?.destroy();
  }

  canvas() {
    return this.plot?.root.querySelector("canvas");
  }

  /** `lines`: [{label, unit, column}] of series.js; `range`: [start, end] in seconds; `marks`: [{t, kind, text}]. */
  set(lines, range, marks = []) {
    const same = lines.length === this.lines.length && lines.every((line, i) => line.label === this.lines[i].label && line.unit === this.lines[i].unit);
    this.lines = lines.slice(0, LINES_MAX);
    this.range = range;
    this.marks = marks;
    if (same && this.plot) this.redraw();
    else this.#build();
  }

  /** After the columns were changed in place. */
  redraw(range = this.range) {
    this.range = range;
    this.plot?.setData(this.#data(), false);
    this.plot?.batch(() => {
      this.plot.setScale("x", { min: range[0], max: range[1] });
      for (const unit of new Set(this.lines.map((line) => line.unit))) this.plot.setScale(scaleName(unit), this.#bounds(unit));
    });
    this.#describe();
  }

  /** Table of what is drawn: time, then value, min and max of every line. */
  rows() {
    const data = this.#data();
    const several = this.lines.length > 1;
    const head = ["time", ...this.lines.flatMap((line) => {
      const name = several ? `${line.label} ` : "";
      return [`${name}value (${unitName(line.unit) || "1"})`, `${name}min`, `${name}max`];
    })];
    const body = data[0].map((t, i) => [new Date(t * 1000).toISOString(), ...data.slice(1).map((values) => values[i] ?? null)]);
    return [head, ...body.filter((row) => row.slice(1).some((value) => value !== null))];
  }

  #data() {
    const tables = this.lines.map(({ column }) => [column.t, column.v, column.low, column.high]);
    if (!tables.length) return [[]];
    return tables.length === 1 ? tables[0] : uPlot.join(tables, tables.map(() => [0, 2, 2, 2]));
  }

  /** A range that starts at 0 where the data is near it, so that noise does not look like a storm. */
  #bounds(unit) {
    if (unit === "%") return { min: 0, max: 100 };
    let [low, high] = [Infinity, -Infinity];
    for (const line of this.lines) {
      if (line.unit !== unit) continue;
      const s = summary(line.column);
      if (s) [low, high] = [Math.min(low, s.low), Math.max(high, s.high)];
    }
    if (low > high || (low === 0 && high === 0)) return { min: 0, max: 1 };
    if (low >= 0 && low < 0.5 * high) low = 0;
    const pad = (high - low || Math.abs(high) || 1) * 0.08;
    return { min: low === 0 ? 0 : low - pad, max: high + pad };
  }

  #build() {
    this.plot?.destroy();
    this.plot = null;
    const width = Math.floor(this.plotBox.clientWidth);
    if (!width || !this.lines.length) return;
    const units = [...new Set(this.lines.map((line) => line.unit))].slice(0, 2);
    this.scale = rem() / 16;
    const look = { text: token("--muted"), grid: token("--line"), font: `${Math.round(11 * this.scale)}px ${token("--sans")}` };
    const axis = { stroke: look.text, font: look.font, grid: { stroke: look.grid, width: 1 }, ticks: { stroke: look.grid, width: 1, size: 4 }, size: 46 * this.scale };
    const series = [{}];
    const bands = [];
    this.lines.forEach((line, i) => {
      const colour = token(`--s${(i % LINES_MAX) + 1}`);
      const scale = scaleName(line.unit);
      series.push({ scale, stroke: colour, width: 1.75, dash: DASHES[i % DASHES.length], points: { show: line.column.t.length < 40, size: 4, filter: lonely }, paths: isAmount(line.unit) ? undefined : STEPPED });
      series.push({ scale, stroke: faint(colour, 0), points: { show: false } }, { scale, stroke: faint(colour, 0), points: { show: false } });
      bands.push({ series: [3 * i + 3, 3 * i + 2], fill: faint(colour, 0.2) });
    });
    const options = {
      width, height: this.height * this.scale, series, bands,
      padding: [8, units.length > 1 ? 0 : 8, 0, 0],
      legend: { show: false },
      tzDate: (seconds) => (isUtc() ? uPlot.tzDate(new Date(seconds * 1000), "Etc/UTC") : new Date(seconds * 1000)),
      scales: { x: { time: true, range: () => this.range }, ...Object.fromEntries(units.map((unit) => [scaleName(unit), { range: () => { const b = this.#bounds(unit); return [b.min, b.max]; } }])) },
      axes: [
        { ...axis, space: 70 * this.scale, values: TIME_AXIS },
        ...units.map((unit, i) => ({
          ...axis, scale: scaleName(unit), side: i ? 1 : 3, size: 52 * this.scale, grid: { ...axis.grid, show: !i },
          values: (_, ticks) => ticks.map((value) => (unit === "MiB" ? short(value / 1024) : unit === "bitmask" ? `0x${Math.max(0, value).toString(16)}` : short(value))),
          ...(unit === "MiB" ? { incrs: MIB_STEPS } : isAmount(unit) ? {} : { incrs: WHOLE_STEPS }),
          label: unit === "MiB" ? "GiB" : unitName(unit), labelFont: look.font, labelSize: unitName(unit) ? 16 * this.scale : 0, labelGap: 0,
        })),
      ],
      cursor: {
        drag: { x: true, y: false, setScale: false }, points: { size: 7 },
        ...(this.sync ? { sync: { key: this.sync, setSeries: false } } : {}),
      },
      hooks: {
        setSelect: [(u) => this.#selected(u)],
        setCursor: [(u) => this.#describe(u.cursor.idx)],
        draw: [(u) => this.#drawMarks(u)],
      },
    };
    this.plot = new uPlot(options, this.#data(), this.plotBox);
    this.#describe();
  }

  #fit() {
    const width = Math.floor(this.plotBox.clientWidth);
    if (!this.plot) this.#build();
    else if (width && width !== this.plot.width) this.plot.setSize({ width, height: this.height * this.scale });
  }

  #selected(u) {
    if (u.select.width < 4) return;
    const [start, end] = [u.select.left, u.select.left + u.select.width].map((left) => u.posToVal(left, "x") * 1000);
    u.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
    this.onZoom(start, end);
  }

  /** Arrow keys read the line, + and - zoom: whatever a pointer can do. */
  #key(event) {
    const u = this.plot;
    if (!u || !u.data[0].length) return;
    const moves = { ArrowRight: 1, ArrowLeft: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity };
    if (event.key in moves) {
      const at = Math.max(0, Math.min(u.data[0].length - 1, (u.cursor.idx ?? 0) + moves[event.key]));
      u.setCursor({ left: u.valToPos(u.data[0][at], "x"), top: u.bbox.height / devicePixelRatio / 2 });
      this.says.textContent = this.legend.textContent;
    } else if (event.key === "+" || event.key === "=") {
      const [start, end] = this.range;
      const middle = u.data[0][u.cursor.idx] ?? (start + end) / 2;
      this.onZoom((middle - (end - start) / 4) * 1000, (middle + (end - start) / 4) * 1000);
    } else if (event.key === "-") this.onWiden();
    else if (event.key === "Escape") u.setCursor({ left: -10, top: -10 });
    else return;
    event.preventDefault();
  }

  /** The legend: under the cursor if there is one, else last value and extremes. */
  #describe(at = null) {
    const data = this.plot?.data;
    const time = at === null || !data ? null : data[0][at];
    const parts = time === null ? [] : [h("span", {}, dateTime(time * 1000, { zone: true }))];
    this.lines.forEach((line, i) => {
      const name = h("span", { class: `swatch s${(i % LINES_MAX) + 1}` });
      if (time === null) {
        const s = summary(line.column);
        parts.push(h("span", {}, name, this.lines.length > 1 ? `${line.label} ` : "", h("b", {}, s ? quantity(s.last, line.unit) : "no data"),
          ...(s && this.lines.length <= 2 && isAmount(line.unit) ? [["min", s.low], ["mean", s.mean], ["max", s.high]].flatMap(([what, value]) => [" ", h("span", { class: "extreme" }, `· ${what} ${quantity(value, line.unit)}`)]) : [])));
        return;
      }
      const [value, low, high] = [1, 2, 3].map((k) => data[3 * i + k]?.[at]);
      const spread = this.lines.length <= 2 && isAmount(line.unit) && Number.isFinite(low) && low !== high ? ` (${quantity(low, line.unit)} to ${quantity(high, line.unit)})` : "";
      parts.push(h("span", {}, name, this.lines.length > 1 ? `${line.label} ` : "", h("b", {}, Number.isFinite(value) ? quantity(value, line.unit) : "no data"), spread));
    });
    const mark = time === null ? null : this.marks.find(({ t }) => Math.abs(t - time) < (this.range[1] - this.range[0]) / 150);
    if (mark) parts.push(h("span", {}, h("b", {}, mark.text)));
    fill(this.legend, parts);
  }

  /** XIDs and throttling as flags on the time line, and hatching where there is no data up to the end. */
  #drawMarks(u) {
    const { ctx } = u;
    const { left, top, width, height } = u.bbox;
    const ratio = devicePixelRatio || 1;
    ctx.save();
    ctx.beginPath();
    ctx.rect(left, top, width, height);
    ctx.clip();
    const silent = this.lines.map((line) => silentSince(line.column, this.range[1])).filter((t) => t !== null);
    if (silent.length === this.lines.length && silent.length) {
      const from = Math.max(left, u.valToPos(Math.max(...silent), "x", true));
      ctx.strokeStyle = token("--line");
      ctx.lineWidth = ratio;
      ctx.beginPath();
      for (let x = from - height; x < left + width; x += 9 * ratio) {
        ctx.moveTo(Math.max(from, x), x < from ? top + height - (from - x) : top + height);
        ctx.lineTo(x + height, top);
      }
      ctx.stroke();
    }
    ctx.lineWidth = ratio;
    const drawn = {};
    for (const { t, kind } of this.marks) {
      const x = Math.round(u.valToPos(t, "x", true));
      if (x < left || x > left + width || x - drawn[kind] < MARK_PX * ratio) continue;
      drawn[kind] = x;
      ctx.strokeStyle = ctx.fillStyle = token(kind === "xid" ? "--bad" : kind === "throttle" ? "--warn" : "--edge");
      ctx.setLineDash(kind === "xid" ? [] : [3 * ratio, 3 * ratio]);
      ctx.beginPath();
      ctx.moveTo(x, top);
      ctx.lineTo(x, top + height);
      ctx.stroke();
      ctx.beginPath(); // A flag for XIDs, a wedge for the rest: the kinds differ by shape, too.
      if (kind === "xid") ctx.rect(x, top, 7 * ratio, 7 * ratio);
      else {
        ctx.moveTo(x - 4 * ratio, top);
        ctx.lineTo(x + 4 * ratio, top);
        ctx.lineTo(x, top + 7 * ratio);
      }
      ctx.fill();
    }
    ctx.restore();
  }
}

/** Codes and bits stay what they are until they change. */
const STEPPED = uPlot.paths.stepped({ align: 1 });

/** Points with nothing beside them, which a line would not show. `undefined` is where only another line has a point. */
function lonely(u, series, shown) {
  if (shown) return null;
  const values = u.data[series];
  const found = [];
  for (let i = 0, before = null; i < values.length; i += 1) {
    if (values[i] === undefined) continue;
    if (values[i] !== null && before === null) {
      let after = i + 1;
      while (after < values.length && values[after] === undefined) after += 1;
      if (values[after] === null || after >= values.length) found.push(i);
    }
    before = values[i];
  }
  return found;
}

/** Steps of an axis of codes: whole numbers. */
const WHOLE_STEPS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096, 16_384];

/** Steps of an axis in MiB that are round numbers in GiB. */
const MIB_STEPS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, ...[1, 2, 5, 10, 20, 50, 100, 200, 500, 1000].map((gib) => gib * 1024)];

const scaleName = (unit) => `y-${unit || "1"}`;

const TIME_AXIS = [
  [3600 * 24 * 365, "{YYYY}", null, null, null, null, null, null, 1],
  [3600 * 24 * 28, "{MMM}", "\n{YYYY}", null, null, null, null, null, 1],
  [3600 * 24, "{DD} {MMM}", "\n{YYYY}", null, null, null, null, null, 1],
  [3600, "{HH}:{mm}", "\n{DD} {MMM} {YYYY}", null, "\n{DD} {MMM}", null, null, null, 1],
  [60, "{HH}:{mm}", "\n{DD} {MMM} {YYYY}", null, "\n{DD} {MMM}", null, null, null, 1],
  [1, "{HH}:{mm}:{ss}", "\n{DD} {MMM} {YYYY}", null, "\n{DD} {MMM}", null, null, null, 1],
  [0.001, ":{ss}.{fff}", "\n{DD} {MMM} {HH}:{mm}", null, "\n{DD} {MMM} {HH}:{mm}", null, "\n{HH}:{mm}", null, 1],
];

// CSV and PNG of what a panel shows, made here: nothing is sent anywhere.

import { token } from "./dom.js";

/** RFC 4180; a cell that a spreadsheet would run as a formula gets an apostrophe before it. */
export function csv(rows) {
  return rows.map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}

function cell(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "";
  if (typeof value === "number") return String(value);
  const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

export function download(name, blob) {
  const address = URL.createObjectURL(blob);
  const a = document.createElement("a");
  a.href = address;
  a.download = name;
  a.click();
  // The click only queues the download; the address must live until that has begun.
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

export const fileName = (title, ending) =>
  `${title.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "")}-${new Date().toISOString().slice(0, 19).replace(/[:T]/g, "")}.${ending}`;

export const downloadCsv = (title, rows) =>
  download(fileName(title, "csv"), new Blob([csv(rows)], { type: "text/csv;charset=utf-8" }));

/** A picture with the panel's title: of its canvas where it has one, else of its rows as a table. */
export function downloadPng(title, { canvas, rows, note = "" }) {
  const picture = canvas ? framed(title, note, canvas) : table(title, note, rows);
  return new Promise((resolve) => {
    picture.toBlob((blob) => {
      download(fileName(title, "png"), blob);
      resolve();
    }, "image/png");
  });
}

const MARGIN = 16;
const HEAD = 52;

function sheet(width, height, scale, title, note) {
  const canvas = document.createElement("canvas");
  canvas.width = width * scale;
  canvas.height = height * scale;
  const g = canvas.getContext("2d");
  g.scale(scale, scale);
  g.fillStyle = token("--panel");
  g.fillRect(0, 0, width, height);
  g.fillStyle = token("--text");
  g.font = `600 15px ${token("--sans")}`;
  g.fillText(title, MARGIN, 24);
  g.fillStyle = token("--muted");
  g.font = `12px ${token("--sans")}`;
  g.fillText(note, MARGIN, 42);
  return [canvas, g];
}

function framed(title, note, source) {
  const scale = devicePixelRatio || 1;
  const [width, height] = [source.width / scale, source.height / scale];
  const [canvas, g] = sheet(width + 2 * MARGIN, height + HEAD + MARGIN, scale, title, note);
  g.drawImage(source, MARGIN, HEAD, width, height);
  return canvas;
}

function table(title, note, rows) {
  const shown = rows.slice(0, 200).map((row) => row.map((value) => (value === null || value === undefined ? "" : String(value))));
  const measure = document.createElement("canvas").getContext("2d");
  measure.font = `12px ${token("--sans")}`;
  const widths = shown[0].map((_, i) => Math.min(360, 16 + Math.max(...shown.map((row) => measure.measureText(row[i] ?? "").width))));
  const width = Math.max(320, widths.reduce((a, b) => a + b, 0)) + 2 * MARGIN;
  const [canvas, g] = sheet(width, HEAD + shown.length * 20 + MARGIN, 2, title, note);
  shown.forEach((row, y) => {
    g.font = `${y ? "" : "600 "}12px ${token("--sans")}`;
    g.fillStyle = token(y ? "--text" : "--muted");
    let x = MARGIN;
    row.forEach((text, i) => {
      g.fillText(text, x, HEAD + 14 + y * 20, widths[i] - 8);
      x += widths[i];
    });
  });
  return canvas;
}

// Numbers, units and times as people read them.

import { param } from "./state.js";

const GROUPED = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

/** 1234567 -> "1,234,567". */
export const count = (value) => (Number.isFinite(value) ? GROUPED.format(value) : "–");

/** 1234567 -> "1.23 M": three significant digits. */
export function short(value, digits = 3) {
  if (!Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size >= 1e15) return value.toExponential(2);
  for (const [from, divisor, suffix] of [[1e12, 1e12, " T"], [1e9, 1e9, " G"], [1e6, 1e6, " M"], [1e4, 1e3, " k"]]) {
    if (size >= from) return plain(value / divisor, digits) + suffix;
  }
  return plain(value, digits);
}

function plain(value, digits) {
  if (value === 0) return "0";
  if (Number.isInteger(value) && Math.abs(value) < 1e4) return String(value);
  const decimals = Math.max(0, digits - 1 - Math.floor(Math.log10(Math.abs(value))));
  return String(Number(value.toFixed(Math.min(decimals, 6))));
}

const UNIT_NAMES = { C: "°C", count: "", code: "", bool: "", bitmask: "", generation: "", bytes: "B", "": "" };

export const unitName = (unit) => UNIT_NAMES[unit] ?? unit ?? "";

/** Value and unit: "87 %", "41 °C", "1.2 GiB", "0x40". */
export function quantity(value, unit) {
  if (!Number.isFinite(value)) return "–";
  if (unit === "bitmask") return `0x${Math.max(0, Math.round(value)).toString(16)}${reasons(value)}`;
  if (unit === "bool") return value ? "yes" : "no";
  if (unit === "code" || unit === "generation") return String(value);
  if (unit === "MiB" && Math.abs(value) >= 1024) return `${plain(value / 1024, 3)} GiB`;
  if (unit === "bytes") return bytes(value);
  if (unit === "W" && Math.abs(value) >= 1e6) return `${plain(value / 1e6, 3)} MW`;
  if (unit === "W" && Math.abs(value) >= 10_000) return `${plain(value / 1000, 3)} kW`;
  if (unit === "mJ") return `${short(value / 1000)}J`.replace(/(\d)J/, "$1 J");
  const name = unitName(unit);
  return short(value) + (name ? ` ${name}` : "");
}

const THROTTLE_BITS = ["idle", "application clocks", "power cap", "hardware slowdown", "sync boost", "software thermal", "hardware thermal", "power brake", "display"];

/** " power cap, idle": what the bits of DCGM's clock event reasons stand for. */
function reasons(value) {
  const bits = Math.max(0, Math.round(value));
  const names = THROTTLE_BITS.filter((_, i) => Math.floor(bits / 2 ** i) % 2);
  return names.length ? ` ${names.join(", ")}` : " none";
}

/** Whether means and extremes of this unit say anything: codes and bits are names, not amounts. */
export const isAmount = (unit) => !["bitmask", "code", "bool", "generation"].includes(unit);

export function bytes(value) {
  if (!Number.isFinite(value)) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let step = 0;
  while (Math.abs(value) >= 1024 && step < units.length - 1) {
    value /= 1024;
    step += 1;
  }
  return `${plain(value, 3)} ${units[step]}`;
}

/** Seconds as "3 s", "4 min 5 s", "2 h 3 min", "5 d 6 h". */
export function duration(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  if (seconds < 1) return `${Math.max(0, Math.round(seconds * 1000))} ms`;
  const s = Math.round(seconds);
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min${s % 60 ? ` ${s % 60} s` : ""}`;
  if (s < 86400) return `${Math.floor(s / 3600)} h${Math.floor((s % 3600) / 60) ? ` ${Math.floor((s % 3600) / 60)} min` : ""}`;
  return `${Math.floor(s / 86400)} d${Math.floor((s % 86400) / 3600) ? ` ${Math.floor((s % 86400) / 3600)} h` : ""}`;
}

/** Whether times are shown in UTC rather than in the viewer's zone. */
export const isUtc = () => param("tz", "local") === "utc";

const formats = new Map();

function formatter(options) {
  const key = JSON.stringify(options) + isUtc();
  if (!formats.has(key)) {
    formats.set(key, new Intl.DateTimeFormat("en-GB", { ...options, ...(isUtc() ? { timeZone: "UTC" } : {}) }));
  }
  return formats.get(key);
}

const PARTS = { year: "numeric", month: "2-digit", day: "2-digit", hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" };

/** "2025-07-18 20:42:34" in the chosen zone; `zone` adds "UTC" where that is chosen. */
export function dateTime(ms, { zone = false } = {}) {
  if (!Number.isFinite(ms) || ms <= 0) return "never";
  const p = Object.fromEntries(formatter(PARTS).formatToParts(ms).map(({ type, value }) => [type, value]));
  return `${p.year}-${p.month}-${p.day} ${p.hour}:${p.minute}:${p.second}${zone && isUtc() ? " UTC" : ""}`;
}

export const timeOfDay = (ms) => dateTime(ms).slice(11);

/** "3 s ago"; times ahead of this clock are "now". */
export function ago(ms, now = Date.now()) {
  if (!Number.isFinite(ms) || ms <= 0) return "never";
  return now - ms < 1000 ? "now" : `${duration((now - ms) / 1000)} ago`;
}

/** Milliseconds of an RFC 3339 time; NaN if there is none. */
export const parseTime = (text) => (text ? Date.parse(text) : NaN);

/** A metric's name for people: DCGM_FI_DEV_GPU_UTIL -> "GPU util". */
export function metricTitle(name) {
  const words = name.replace(/^DCGM_(FI|EXP)_(DEV_|PROF_|SYSTEM_|DRIVER_)?/, "").toLowerCase().split("_");
  const title = words.map((word) => TITLE_WORDS[word] ?? word).join(" ");
  return title[0].toUpperCase() + title.slice(1);
}

const TITLE_WORDS = {
  gpu: "GPU", sm: "SM", mem: "memory", fb: "framebuffer", enc: "encoder", dec: "decoder", util: "utilisation", temp: "temperature",
  xid: "XID", ecc: "ECC", sbe: "single-bit", dbe: "double-bit", vol: "volatile", agg: "aggregate", pcie: "PCIe", nvlink: "NVLink",
  tx: "TX", rx: "RX", gr: "graphics", dram: "DRAM", crc: "CRC", mgmt: "management",
};

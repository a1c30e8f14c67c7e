// Colour ramps that keep their order in grey and for colour-blind eyes: viridis and cividis (matplotlib, CC0).

const STOPS = {
  viridis: ["#440154", "#482475", "#414487", "#355f8d", "#2a788e", "#21918c", "#22a884", "#44bf70", "#7ad151", "#bddf26", "#fde725"],
  cividis: ["#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#f1d84c", "#fee838"],
};

export const RAMPS = Object.keys(STOPS);
const SIZE = 256;

const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));

/** 256 colours and, for each, whether black text reads better on it than white. */
function build(stops) {
  const colours = [];
  const darkText = [];
  for (let i = 0; i < SIZE; i += 1) {
    const at = (i / (SIZE - 1)) * (stops.length - 1);
    const low = Math.min(stops.length - 2, Math.floor(at));
    const [a, b] = [rgb(stops[low]), rgb(stops[low + 1])];
    const c = a.map((v, k) => Math.round(v + (b[k] - v) * (at - low)));
    colours.push(`rgb(${c.join(" ")})`);
    const light = c.map((v) => (v / 255 <= 0.03928 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
    // Equal contrast with black and white is at a luminance of 0.179.
    darkText.push(0.2126 * light[0] + 0.7152 * light[1] + 0.0722 * light[2] > 0.179);
  }
  return { colours, darkText };
}

const built = Object.fromEntries(Object.entries(STOPS).map(([name, stops]) => [name, build(stops)]));

export const ramp = (name) => built[name] ?? built.viridis;

/** Index of a colour for `value` within [low, high]. */
export function step(value, low, high) {
  const share = high > low ? (value - low) / (high - low) : 0.5;
  return Math.max(0, Math.min(SIZE - 1, Math.round(share * (SIZE - 1))));
}

/** The range that colours span: fixed for shares, so that colours mean the same tomorrow; else round numbers around the data. */
export function domain(values, unit) {
  if (unit === "%") return [0, 100];
  if (unit === "ratio") return [0, 1];
  let low = Infinity;
  let high = -Infinity;
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  if (low > high) return [0, 1];
  if (low === high) return low === 0 ? [0, 1] : [Math.min(0, low), Math.max(0, high)];
  const tick = 10 ** Math.floor(Math.log10(high - low));
  return [Math.floor(low / tick) * tick, Math.ceil(high / tick) * tick];
}

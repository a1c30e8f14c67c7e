// Elements without a framework: h("button", { class: "x", onclick: f }, "text", child).

const SVG = "http://www.w3.org/2000/svg";

/** An element. `on*` are listeners, `css` sets style properties (allowed by the CSP, unlike a style attribute). */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "css") for (const [k, v] of Object.entries(value)) element.style.setProperty(k, v);
    else if (name === "dataset") Object.assign(element.dataset, value);
    else if (name in element && typeof value !== "string" && !name.startsWith("aria")) element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Replace what is in `parent`. */
export function fill(parent, ...children) {
  parent.replaceChildren(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return parent;
}

/** As `fill`, for what is drawn again while people use it: the keyboard stays on the link or button it was on. */
export function refill(parent, ...children) {
  const name = (element) => `${element.tagName} ${element.getAttribute("href") ?? element.getAttribute("aria-label") ?? element.textContent}`;
  const held = parent.contains(document.activeElement) && parent !== document.activeElement ? name(document.activeElement) : "";
  fill(parent, ...children);
  if (held) [...parent.querySelectorAll("a, button")].find((element) => name(element) === held)?.focus({ preventScroll: true });
  return parent;
}

const ICONS = {
  alert: "M8 1.5 15 14H1L8 1.5zm0 4.6v3.6m0 2v.1",
  check: "M2.5 8.5 6 12l7.5-8",
  close: "M3.5 3.5l9 9m0-9l-9 9",
  dash: "M3 8h10",
  info: "M8 1.5a6.5 6.5 0 1 0 0 13 6.5 6.5 0 0 0 0-13zM8 7.2v4M8 4.8v.1",
  pause: "M5.5 3v10m5-10v10",
  play: "M4.5 2.8v10.4L13 8 4.5 2.8z",
  search: "M7 2.2a4.8 4.8 0 1 0 0 9.6 4.8 4.8 0 0 0 0-9.6zm3.5 8.3 3.3 3.3",
  upload: "M8 11V2.5M4.5 6 8 2.5 11.5 6M2.5 10.5v3h11v-3",
};

/** A small line drawing; decoration only, so hidden from screen readers. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 16 16");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

/** Read a colour or length of the theme in force. */
export const token = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** Pixels of the type's unit, which grows on walls; canvases scale by it. */
export const rem = () => parseFloat(getComputedStyle(document.documentElement).fontSize);

/** Tell something to everyone, screen readers included; it goes away by itself. */
export function notify(text, kind = "info") {
  const notice = h("div", { class: `notice ${kind}` }, icon(kind === "info" ? "info" : "alert"), h("span", {}, text));
  document.getElementById("notices").append(notice);
  setTimeout(() => notice.remove(), kind === "info" ? 4000 : 8000);
}

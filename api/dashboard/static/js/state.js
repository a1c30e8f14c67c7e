// All state is in the URL's fragment: #/gpus/GPU-5fd4?range=6h&metrics=A,B. A link shows what its sender saw.
//
// A fragment, because the page is served at one address whatever proxy prefix stands before it.

/** Parameters that go along from view to view. */
const SHARED = ["range", "from", "to", "tz", "live"];

const listeners = new Set();

/** {view, id, params} of the address. */
export function current() {
  const [path, query = ""] = location.hash.replace(/^#/, "").split("?");
  const [view = "", ...rest] = path.split("/").filter(Boolean);
  return { view: view || "fleet", id: rest.map(decodeURIComponent).join("/"), params: new URLSearchParams(query) };
}

export const param = (name, fallback = "") => current().params.get(name) ?? fallback;

/** The fragment of another view, with the shared parameters kept. */
export function link(view, id = "", params = {}) {
  const kept = new URLSearchParams();
  const now = current().params;
  for (const name of SHARED) if (now.has(name)) kept.set(name, now.get(name));
  for (const [name, value] of Object.entries(params)) set(kept, name, value);
  return address(view, id, kept);
}

export function go(view, id, params) {
  location.hash = link(view, id, params);
}

/** Change parameters of this view. `replace` adds no step to the history: for what changes all the time. */
export function setParams(changes, { replace = true } = {}) {
  const { view, id, params } = current();
  for (const [name, value] of Object.entries(changes)) set(params, name, value);
  const hash = address(view, id, params);
  if (hash === location.hash) return;
  if (replace) {
    history.replaceState(null, "", hash);
    tell();
  } else {
    location.hash = hash;
  }
}

/** Call `listener` whenever the address changes; returns how to stop. */
export function onChange(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

function set(params, name, value) {
  if (value === undefined || value === null || value === "") params.delete(name);
  else params.set(name, value);
}

function address(view, id, params) {
  const query = params.toString().replaceAll("%2C", ",");
  return `#/${view}${id ? `/${encodeURIComponent(id)}` : ""}${query ? `?${query}` : ""}`;
}

function tell() {
  for (const listener of [...listeners]) listener();
}

addEventListener("hashchange", () => {
  // The skip link's target is no route.
  if (location.hash.startsWith("#/") || location.hash === "") tell();
});

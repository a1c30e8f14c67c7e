// What a viewer prefers, kept on this device: theme, API key. What a viewer looks at is in the URL (state.js).

const memory = new Map();

function read(storage, name) {
  try {
    return storage.getItem(`telemetry.${name}`) ?? "";
  } catch {
    return memory.get(name) ?? "";
  }
}

function write(storage, name, value) {
  try {
    if (value) storage.setItem(`telemetry.${name}`, value);
    else storage.removeItem(`telemetry.${name}`);
  } catch {
    memory.set(name, value);
  }
}

const themeListeners = new Set();
const dark = matchMedia("(prefers-color-scheme: dark)");

/** "auto", "light" or "dark". */
export const theme = () => read(localStorage, "theme") || "auto";

export function setTheme(chosen) {
  write(localStorage, "theme", chosen === "auto" ? "" : chosen);
  if (chosen === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = chosen;
  for (const listener of themeListeners) listener();
}

export const isDark = () => (theme() === "auto" ? dark.matches : theme() === "dark");

/** Canvases do not follow CSS variables by themselves: draw again when this calls. */
export function onTheme(listener) {
  themeListeners.add(listener);
  return () => themeListeners.delete(listener);
}
dark.addEventListener("change", () => themeListeners.forEach((listener) => listener()));

/** The API key: for this tab, or for this device if the viewer said so. */
export const apiKey = () => read(sessionStorage, "key") || read(localStorage, "key");

export function setApiKey(key, remember) {
  write(sessionStorage, "key", key);
  write(localStorage, "key", remember ? key : "");
}

export const reducedMotion = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

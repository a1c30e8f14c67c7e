// Runs before the first paint, so that a chosen theme never flashes the other one. A classic script on purpose:
// modules run after the page is parsed.
try {
  const chosen = localStorage.getItem("telemetry.theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
} catch {
  // Storage may be forbidden; the automatic theme is fine then.
}

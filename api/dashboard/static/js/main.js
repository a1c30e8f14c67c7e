// Starts the page: the bar, and the view that the address names.

import { fill, h } from "./dom.js";
import { buildShell } from "./shell.js";
import { current, link, onChange } from "./state.js";
import { alertsView } from "./views/alerts.js";
import { fleetView } from "./views/fleet.js";
import { gpuView } from "./views/gpu.js";
import { hostView } from "./views/host.js";
import { jobView } from "./views/job.js";
import { jobsView } from "./views/jobs.js";
import { pipelineView } from "./views/pipeline.js";
import { uploadView } from "./views/upload.js";

/** Each gets (main, id) and returns {title, update(), close()}: `update` when parameters change. */
const VIEWS = { fleet: fleetView, gpus: gpuView, hosts: hostView, jobs: (element, id) => (id ? jobView(element, id) : jobsView(element)), pipeline: pipelineView, alerts: alertsView, upload: uploadView };

const main = document.getElementById("main");
let open = null;

function show() {
  const { view, id } = current();
  const key = `${view}/${id}`;
  if (open?.key === key) {
    open.update?.();
    return;
  }
  const first = open === null;
  open?.close?.();
  const make = VIEWS[view] ?? notFound;
  fill(main);
  open = { ...make(main, id), key };
  document.title = `${open.title} · GPU telemetry`;
  scrollTo(0, 0);
  // As on any page turn, the keyboard starts at the new content.
  if (!first) main.focus({ preventScroll: true });
}

function notFound(element) {
  fill(element, h("h1", {}, "No such page"), h("p", {}, "This address names no view. ", h("a", { href: link("fleet") }, "Go to the fleet")));
  return { title: "No such page" };
}

document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault(); // The fragment holds the state.
  main.focus();
});

buildShell(document.getElementById("bar"));
onChange(show);
show();

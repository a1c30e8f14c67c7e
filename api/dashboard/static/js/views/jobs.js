// Who holds the GPUs: every job with what it makes of them.

import { get } from "../api.js";
import { fill, h } from "../dom.js";
import { count, quantity } from "../format.js";
import { jobOf } from "../jobs.js";
import { every } from "../live.js";
import { panel } from "../panel.js";
import { link, param, setParams } from "../state.js";
import { dataTable } from "../table.js";

const UTILISATION = "DCGM_FI_DEV_GPU_UTIL";
const IDLE = 5; // %, as the API counts.
const POLL_MS = 5_000;

export function jobsView(main) {
  let jobs = null;
  const search = h("input", { class: "input", type: "search", id: "jobs-search", placeholder: "Job, pod or namespace", value: param("q"), oninput: () => setParams({ q: search.value.trim() }) });
  const found = h("span", { class: "found", role: "status" });
  const table = dataTable([
    { label: "Job", value: (job) => job.name, cell: (job) => h("a", { href: link("jobs", job.id) }, job.name) },
    { label: "Namespace", value: (job) => job.namespace },
    { label: "GPUs", value: (job) => job.gpus, numeric: true },
    { label: "Hosts", value: (job) => job.hosts.size, numeric: true },
    { label: "Pods", value: (job) => job.pods.size, numeric: true },
    { label: "Mean utilisation", value: (job) => job.mean, numeric: true, cell: (job) => quantity(job.mean, "%") },
    { label: "Lowest", value: (job) => job.lowest, numeric: true, cell: (job) => quantity(job.lowest, "%") },
    { label: "Idle GPUs", value: (job) => job.idle, numeric: true },
    { label: "Silent GPUs", value: (job) => job.silent, numeric: true },
  ], { caption: "Jobs that hold GPUs", sort: 2, descending: true, empty: "No job matches" });
  const frame = panel({ title: "Jobs", level: 1, rows: () => table.rows() });
  frame.body.append(h("div", { class: "controls", role: "search" }, h("label", { class: "hidden", for: "jobs-search" }, "Search by job, pod or namespace"), search, found), table.element);
  fill(main, frame.element);

  async function load() {
    try {
      jobs = byJob(await get("api/v1/fleet", { metric_name: UTILISATION }));
      frame.badge("");
      if (jobs.length) frame.ready();
      else frame.empty("No GPU is held by a pod, or nothing that reports tells which pod.");
      show();
    } catch (error) {
      if (jobs) frame.badge(error.message);
      else frame.error(error, load);
    }
  }

  function show() {
    const text = param("q").toLowerCase();
    const matching = jobs.filter((job) => [job.id, ...job.pods].some((name) => name.toLowerCase().includes(text)));
    table.set(matching);
    found.textContent = text ? `${count(matching.length)} of ${count(jobs.length)}` : "";
  }

  frame.loading();
  load();
  return { title: "Jobs", update: () => jobs && show(), close: every(POLL_MS, load) };
}

/** Jobs of an answer of /api/v1/fleet. */
function byJob({ hosts }) {
  const jobs = new Map();
  for (const { hostname, gpus } of hosts) {
    for (const gpu of gpus) {
      if (!gpu.pod || gpu.status === "lost") continue;
      const { id, name, namespace } = jobOf(gpu);
      if (!jobs.has(id)) jobs.set(id, { id, name, namespace, gpus: 0, hosts: new Set(), pods: new Set(), values: [], silent: 0 });
      const job = jobs.get(id);
      job.gpus += 1;
      job.hosts.add(hostname);
      job.pods.add(gpu.pod);
      if (gpu.status !== "active") job.silent += 1;
      else if (gpu.value !== null) job.values.push(gpu.value);
    }
  }
  return [...jobs.values()].map((job) => ({
    ...job,
    mean: job.values.length ? job.values.reduce((a, b) => a + b, 0) / job.values.length : NaN,
    lowest: job.values.length ? Math.min(...job.values) : NaN,
    idle: job.values.filter((value) => value <= IDLE).length,
  }));
}

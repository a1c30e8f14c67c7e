// The metric catalogue of the API: asked for once, kept while the page lives.

import { get } from "./api.js";

let asked = null;

/** Map of name -> {name, unit, kind, help, seen}; empty where the API does not answer. */
export function catalogue() {
  asked ??= get("api/v1/metrics")
    .then((body) => new Map(body.metrics.map((metric) => [metric.name, metric])))
    .catch((error) => {
      asked = null; // Ask again next time.
      if (error.status === 401) throw error;
      return new Map();
    });
  return asked;
}

/** What people look at first; everything else follows by name. */
const FIRST = [
  "DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_PROF_SM_ACTIVE", "DCGM_FI_DEV_GPU_TEMP", "DCGM_FI_DEV_POWER_USAGE", "DCGM_FI_DEV_FB_USED",
  "DCGM_FI_DEV_MEM_COPY_UTIL", "DCGM_FI_DEV_SM_CLOCK", "DCGM_FI_DEV_MEM_CLOCK", "DCGM_FI_DEV_MEMORY_TEMP",
];

export function byImportance(names) {
  const rank = (name) => (FIRST.indexOf(name) + 1 || FIRST.length + 1);
  return [...names].sort((a, b) => rank(a) - rank(b) || a.localeCompare(b));
}

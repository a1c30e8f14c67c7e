// One host: its GPUs beside each other.

import { get } from "../api.js";
import { groupView } from "./group.js";

export function hostView(main, name) {
  return groupView(main, {
    title: name || "no host name",
    path: [["fleet", "Fleet"]],
    caption: "GPUs of this host with their latest values",
    label: (gpu) => `GPU ${gpu.gpu_index}`,
    async load() {
      const host = await get(`api/v1/hosts/${encodeURIComponent(name)}`);
      return { gpus: host.gpu_list, facts: [...host.models, ...(host.cluster ? [`cluster ${host.cluster}`] : [])] };
    },
  });
}

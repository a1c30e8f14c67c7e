// One job: all GPUs of its pods beside each other, and which of them the others wait for.

import { ApiError, get } from "../api.js";
import { fill, h, icon } from "../dom.js";
import { count, quantity } from "../format.js";
import { jobNamed, jobOf, jobTitle, stragglers } from "../jobs.js";
import { link } from "../state.js";
import { groupView } from "./group.js";

const UTILISATION = "DCGM_FI_DEV_GPU_UTIL";
const WINDOW = "15m";
const HOSTS_MAX = 64;
const NAMED_MAX = 4;
const JUDGED_MS = 30_000;

const labelOf = (gpu) => `${gpu.hostname} · GPU ${gpu.gpu_index}`;

/** As short as tells the job's GPUs apart: without what all their hosts' names begin with. */
function briefly(gpu, gpus) {
  const names = [...new Set(gpus.map(({ hostname }) => hostname))];
  if (names.length === 1) return `GPU ${gpu.gpu_index}`;
  let same = 0;
  while (same < names[0].length && names.every((name) => name[same] === names[0][same])) same += 1;
  const from = gpu.hostname.slice(0, same).search(/[^-._]*$/); // Whole words only.
  return `${gpu.hostname.slice(from)} · GPU ${gpu.gpu_index}`;
}

export function jobView(main, id) {
  const job = jobNamed(id);
  const verdict = h("div", { class: "verdict", role: "status", hidden: true });
  let judged = 0;

  async function load() {
    const listed = await get("api/v1/gpus", { q: job.name, page_size: 1000 });
    const hosts = [...new Set(listed.gpus.map((gpu) => gpu.hostname))];
    const answers = await Promise.all(hosts.slice(0, HOSTS_MAX).map((name) => get(`api/v1/hosts/${encodeURIComponent(name)}`)));
    const gpus = answers.flatMap((host) => host.gpu_list).filter((gpu) => jobOf(gpu).id === job.id);
    if (!gpus.length) throw new ApiError(404, `No GPU is held by a pod of ${jobTitle(job)}. The fleet's search finds pods by any part of their name.`);
    if (Date.now() - judged > JUDGED_MS) {
      judged = Date.now();
      judge(gpus).catch(() => {}); // What only the verdict misses is no reason to show nothing.
    }
    const pods = new Set(gpus.map((gpu) => gpu.pod)).size;
    return {
      gpus,
      facts: [job.namespace && `namespace ${job.namespace}`, `${count(pods)} ${pods === 1 ? "pod" : "pods"}`, hosts.length > HOSTS_MAX && `the first ${HOSTS_MAX} of ${count(hosts.length)} hosts`].filter(Boolean),
      tiles: [["Hosts", count(new Set(gpus.map((gpu) => gpu.hostname)).size)]],
    };
  }

  /** By the mean of some minutes: at one moment any GPU may be between two kernels. */
  async function judge(gpus) {
    const values = await Promise.all(gpus.map(async (gpu) => {
      const body = await get(`api/v1/gpus/${encodeURIComponent(gpu.id)}/series`, { metric_name: UTILISATION, start_time: `now-${WINDOW}`, step: "1d" });
      const points = body.series[0]?.points ?? [];
      return { gpu, value: points.length ? points.reduce((sum, point) => sum + point.value, 0) / points.length : NaN };
    }));
    const { median, stragglers: slow } = stragglers(values);
    verdict.hidden = !Number.isFinite(median);
    verdict.dataset.level = slow.length ? "warn" : "good";
    const named = slow.slice(0, NAMED_MAX).flatMap(({ gpu, value }, i) => [i ? ", " : "", h("a", { href: link("gpus", gpu.id) }, labelOf(gpu)), ` at ${quantity(value, "%")}`]);
    fill(verdict, icon(slow.length ? "alert" : "check"), h("div", {},
      h("strong", {}, slow.length ? `${count(slow.length)} ${slow.length === 1 ? "straggler" : "stragglers"}` : "No straggler"),
      h("span", {}, slow.length ? [...named, slow.length > NAMED_MAX ? ` and ${count(slow.length - NAMED_MAX)} more` : "", `, while the job's median is ${quantity(median, "%")}`] : `every GPU works about as much as the median of ${quantity(median, "%")}`, `; mean utilisation of ${WINDOW.replace("m", "\u00a0min")}`)));
  }

  return groupView(main, {
    title: job.name, path: [["jobs", "Jobs"]], caption: "GPUs of this job with their latest values",
    label: labelOf, brief: briefly, load, verdict,
  });
}

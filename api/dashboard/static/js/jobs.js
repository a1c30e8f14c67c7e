// Jobs, as Kubernetes tells them: the pods of one namespace whose names differ only in what was added to the job's.

/** What workloads add to their name: a replica set's hash and a random part, a random part, a number, a role. */
const ADDED = [/-[0-9a-f]{6,10}-[bcdfghjklmnpqrstvwxz2456789]{5}$/, /-[bcdfghjklmnpqrstvwxz2456789]{5}$/, /-\d+$/, /-(worker|master|launcher|chief|ps|head)$/];

/** {id, namespace, name} of the job that holds a GPU: `id` is for the address. */
export function jobOf({ namespace = "", pod = "" }) {
  const name = ADDED.reduce((text, ending) => text.replace(ending, ""), pod) || pod;
  return { id: `${namespace}/${name}`, namespace, name };
}

/** The job of such an id. */
export function jobNamed(id) {
  const cut = id.indexOf("/");
  return { id, namespace: id.slice(0, Math.max(0, cut)), name: id.slice(cut + 1) };
}

export const jobTitle = ({ namespace, name }) => (namespace ? `${namespace}/${name}` : name);

/** How much less a GPU has to do than the median of its job before the others are said to wait for it. */
const STRAGGLER_SHARE = 0.8;
/** Below this utilisation (%) of the median a job does too little to tell. */
const WORKING = 10;

/** {median, stragglers: the values well below it, lowest first} of [{value}]; values are utilisations in %. */
export function stragglers(values) {
  const known = values.filter(({ value }) => Number.isFinite(value)).sort((a, b) => a.value - b.value);
  if (!known.length) return { median: NaN, stragglers: [] };
  const median = (known[(known.length - 1) >> 1].value + known[known.length >> 1].value) / 2;
  return { median, stragglers: median < WORKING ? [] : known.filter(({ value }) => value < STRAGGLER_SHARE * median) };
}

// Rates from counters that are looked at now and again.

/** A rate is that of the last ten seconds: the counters themselves are counted by the second, and arrive in batches. */
const WINDOW_MS = 10_000;

/** Feed it (name, value, ms); it answers the increase a second over the last seconds, or null the first time. */
export class Rates {
  #seen = new Map();

  of(name, value, ms) {
    if (!Number.isFinite(value)) return null;
    const seen = this.#seen.get(name) ?? [];
    // A counter that fell was restarted with its process: it begins anew.
    if (seen.length && value < seen.at(-1).value) seen.length = 0;
    seen.push({ value, ms });
    while (seen.length > 2 && seen[1].ms <= ms - WINDOW_MS) seen.shift();
    this.#seen.set(name, seen);
    const [first] = seen;
    return ms - first.ms >= 500 ? ((value - first.value) * 1000) / (ms - first.ms) : null;
  }
}

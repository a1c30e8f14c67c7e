// Rates from counters that are looked at now and again.

/** Feed it (name, value, ms); it answers the increase a second since it was fed last, or null the first time. */
export class Rates {
  #last = new Map();

  of(name, value, ms) {
    const before = this.#last.get(name);
    if (!Number.isFinite(value)) return null;
    if (before && ms - before.ms < 500) return before.rate;
    // A counter that fell was restarted with its process: no rate this once.
    const rate = before && value >= before.value ? ((value - before.value) * 1000) / (ms - before.ms) : null;
    this.#last.set(name, { value, ms, rate });
    return rate;
  }
}

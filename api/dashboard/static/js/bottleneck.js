// What holds the pipeline up now, judged from the same numbers that the page shows. Pure: (facts) -> verdict.

import { bytes, count, duration } from "./format.js";

const LAG_SECONDS = 10;
const QUIET_SECONDS = 60;

/**
 * @param {object} facts of pipeline.js: {health, topics: [{name, ...}], broker, newestAge, rates: {in, out}}
 * @returns {{level: "good"|"warn"|"bad", what: string, why: string}}
 */
export function bottleneck({ health, topics, broker, newestAge, rates }) {
  const checks = health?.checks ?? {};
  if (checks.store?.status === "unhealthy") return { level: "bad", what: "The store", why: checks.store.reason || "it does not answer; collectors wait and the broker keeps everything" };
  if (broker?.reachable === false) return { level: "bad", what: "The broker", why: "it does not answer; streamers wait and keep what they have" };
  const stopped = topics.find((topic) => topic.stopped);
  if (stopped) return { level: "bad", what: "The broker's disk", why: `an fsync failed in topic ${stopped.name}: its partition takes nothing until an operator acts` };
  const full = topics.find((topic) => topic.disk_full);
  if (full) return { level: "bad", what: "The broker's disk", why: `topic ${full.name} has reached its disk cap (${bytes(full.disk_bytes)}); producers wait` };
  const late = topics.filter((topic) => topic.oldest_age_seconds > LAG_SECONDS && !topic.name.endsWith(".dlq")).sort((a, b) => b.oldest_age_seconds - a.oldest_age_seconds)[0];
  if (late) {
    const lag = `${count(late.rows)} rows wait in ${late.name}, the oldest for ${duration(late.oldest_age_seconds)}`;
    const groups = Object.values(late.groups ?? {});
    if (groups.some((group) => group.paused)) return { level: "warn", what: "A paused group", why: lag };
    if (!late.subscribers) return { level: "bad", what: "No collector", why: `${lag}; none is connected` };
    if (groups.length && groups.every((group) => group.free_credit === 0)) return { level: "warn", what: "Collectors or the store", why: `${lag}; every collector has its hands full: inserts are slower than what arrives` };
    return { level: "warn", what: "Collectors", why: lag };
  }
  const { credit_outstanding_bytes: out, credit_pool_bytes: pool } = broker ?? {};
  if (pool && out > 0.9 * pool) return { level: "warn", what: "The broker's log", why: `producers hold ${bytes(out)} of ${bytes(pool)} credit: batches arrive faster than the disk makes them durable` };
  if (newestAge === null) return { level: "warn", what: "Streamers", why: "nothing is stored yet: start a streamer or upload a file" };
  if (newestAge > QUIET_SECONDS && !rates.in) return { level: "warn", what: "Streamers", why: `nothing new arrives; the newest sample is ${duration(newestAge)} old` };
  const bad = Object.entries(checks).find(([, check]) => check.status !== "healthy");
  if (bad) return { level: bad[1].status === "unhealthy" ? "bad" : "warn", what: `${bad[0][0].toUpperCase()}${bad[0].slice(1)}`, why: bad[1].reason };
  return { level: "good", what: "Nothing holds the pipeline up", why: rates.in ? "what arrives is stored at once" : "and nothing waits" };
}

// Rows of the live stream, whichever way they are wrapped.

/** [{gpu_id, metric_name, value, timestamp}] of a message: a list, one sample, or an object with a list in it. */
export function liveSamples(body) {
  if (Array.isArray(body)) return body;
  for (const name of ["telemetry", "samples", "rows"]) if (Array.isArray(body?.[name])) return body[name];
  return body?.gpu_id && body.metric_name ? [body] : [];
}

// Rows of the live stream.

/** [{gpu_id, metric_name, value, timestamp}] of a message; none of a `gap`, which the next whole answer closes. */
export const liveSamples = (body) => body.telemetry ?? [];

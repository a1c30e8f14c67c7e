// The API, by addresses relative to this page so that any proxy prefix works.

import { askForKey } from "./key.js";
import { apiKey } from "./settings.js";

const BASE = new URL(".", location.href.split("#")[0]);
const TIMEOUT_MS = 30_000;

let reached = true;

/** Whether the last request was answered, whatever the answer was. */
export const isReached = () => reached;

/** What went wrong, in words for a person. `missing`: this API has no such endpoint (yet). */
export class ApiError extends Error {
  constructor(status, message, { missing = false, requestId = "" } = {}) {
    super(message);
    this.status = status;
    this.missing = missing;
    this.requestId = requestId;
  }
}

export function url(path, params = {}) {
  const address = new URL(path, BASE);
  for (const [name, value] of Object.entries(params)) {
    if (value !== undefined && value !== null && value !== "") address.searchParams.set(name, value);
  }
  return address;
}

export function headers() {
  const key = apiKey();
  return key ? { Authorization: `Bearer ${key}` } : {};
}

/** A response of the API; asks for a key once when the API wants one. Raises ApiError; an abort raises AbortError. */
export async function request(path, { params, signal, timeout = TIMEOUT_MS, ...options } = {}) {
  const limits = [AbortSignal.timeout(timeout), ...(signal ? [signal] : [])];
  for (;;) {
    const sent = apiKey();
    let response;
    try {
      response = await fetch(url(path, params), {
        ...options,
        headers: { ...headers(), ...options.headers },
        signal: AbortSignal.any(limits),
        credentials: "same-origin",
      });
      reached = true;
    } catch (error) {
      if (signal?.aborted) throw error;
      reached = false;
      const late = error.name === "TimeoutError";
      throw new ApiError(0, late ? `No answer within ${timeout / 1000} s` : "The API cannot be reached");
    }
    if (response.status !== 401) return response;
    // Another panel may have got a key while this one was waiting.
    if (apiKey() === sent && !(await askForKey(Boolean(sent)))) throw new ApiError(401, "An API key is needed");
  }
}

/** The JSON of a GET. */
export async function get(path, params, { accept, ...options } = {}) {
  const response = await request(path, { ...options, params, headers: { Accept: "application/json" } });
  return answer(response, accept);
}

/** The JSON of a response, or an ApiError that quotes its problem document. `accept`: other statuses that are fine. */
export async function answer(response, accept = []) {
  const body = await response.json().catch(() => null);
  if (response.ok || accept.includes(response.status)) return body;
  const text = body?.detail || body?.title || response.statusText || `status ${response.status}`;
  const missing = response.status === 501 || response.status === 405 || (response.status === 404 && isRouteMiss(body));
  throw new ApiError(response.status, missing ? "This API does not offer it" : text, {
    missing,
    requestId: response.headers.get("X-Request-Id") ?? "",
  });
}

/** A 404 for a path that no route takes, rather than for a thing that is not there. */
function isRouteMiss(body) {
  return !body?.detail || body.detail.startsWith("nothing at ");
}

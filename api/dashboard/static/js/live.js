// Live rows by server-sent events, and polling where they are blocked or not offered.
//
// Read with fetch instead of EventSource: EventSource cannot send a key in a header, and a key in an address ends in
// the logs of every proxy on the way.

import { isReached, request } from "./api.js";
import { param } from "./state.js";

const RETRY_MS_MAX = 30_000;
const SILENCE_MS = 45_000; // Three heartbeats of the API.
const FAILURES_TO_POLL = 2;

const listeners = new Set();
const streams = new Set();

export const isPaused = () => param("live") === "off";

/** "live", "connecting", "polling" or "paused": of all streams of this page together. */
export function liveState() {
  if (isPaused()) return "paused";
  if (!streams.size) return isReached() ? "live" : "connecting"; // A view without streams asks by itself all the time.
  const states = new Set([...streams].map((stream) => stream.state));
  for (const state of ["live", "connecting", "polling"]) if (states.has(state)) return state;
  return "polling";
}

export function onLiveState(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

export function tellLiveState() {
  for (const listener of listeners) listener(liveState());
}

/** Split server-sent events out of pieces of text; `emit(event, data, id)`. */
export function sseParser(emit) {
  let rest = "";
  return (text) => {
    const blocks = (rest + text).split(/\r?\n\r?\n/);
    rest = blocks.pop();
    for (const block of blocks) {
      const fields = { event: "message", data: [], id: "" };
      for (const line of block.split(/\r?\n/)) {
        const [, name, value] = /^([a-z]*):? ?(.*)$/s.exec(line) ?? [];
        if (name === "data") fields.data.push(value);
        else if (name) fields[name] = value;
      }
      if (fields.data.length) emit(fields.event, fields.data.join("\n"), fields.id);
    }
  };
}

/** One stream of rows. `params` filter it on the server, `onRows(rows, event)` gets decoded JSON. */
export class Stream {
  constructor(params, onRows) {
    this.params = params;
    this.onRows = onRows;
    this.state = "connecting";
    this.lastId = "";
    this.failures = 0;
    streams.add(this);
    this.#run();
  }

  close() {
    this.closed = true;
    streams.delete(this);
    this.abort?.abort();
    tellLiveState();
  }

  #set(state) {
    if (this.state === state) return;
    this.state = state;
    tellLiveState();
  }

  async #run() {
    while (!this.closed) {
      const began = Date.now();
      try {
        await this.#read();
      } catch (error) {
        if (this.closed) return;
        // What this API does not offer will not come back by asking again.
        if (error.missing || error.status === 403) {
          this.#set("polling");
          return;
        }
      }
      if (this.closed) return;
      this.failures = Date.now() - began > 60_000 ? 0 : this.failures + 1;
      this.#set(this.failures >= FAILURES_TO_POLL ? "polling" : "connecting");
      const wait = Math.min(RETRY_MS_MAX, 1000 * 2 ** Math.min(this.failures, 5));
      await new Promise((resolve) => setTimeout(resolve, wait * (0.5 + Math.random())));
    }
  }

  async #read() {
    this.abort = new AbortController();
    const response = await request("api/v1/stream", {
      params: this.params,
      signal: this.abort.signal,
      timeout: 2 ** 31 - 1,
      headers: { Accept: "text/event-stream", ...(this.lastId ? { "Last-Event-ID": this.lastId } : {}) },
    });
    const isStream = response.headers.get("Content-Type")?.startsWith("text/event-stream");
    if (!response.ok || !isStream) {
      await response.body?.cancel();
      const error = new Error(`stream: status ${response.status}`);
      error.status = response.status;
      error.missing = [404, 405, 501].includes(response.status);
      throw error;
    }
    this.#set("live");
    const feed = sseParser((event, data, id) => {
      if (id) this.lastId = id;
      this.failures = 0;
      this.onRows(JSON.parse(data), event);
    });
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (;;) {
      const silence = setTimeout(() => this.abort.abort(), SILENCE_MS);
      const { done, value } = await reader.read().finally(() => clearTimeout(silence));
      if (done) return;
      feed(value);
    }
  }
}

/** Call `work` now and again while the page is seen and not paused; returns how to stop. `work` may be async. */
export function every(ms, work) {
  let stopped = false;
  let timer = 0;
  const turn = async () => {
    if (!document.hidden && !isPaused()) {
      await Promise.resolve(work()).catch(() => {});
      if (!streams.size) tellLiveState();
    }
    if (!stopped) timer = setTimeout(turn, ms);
  };
  timer = setTimeout(turn, ms);
  return () => {
    stopped = true;
    clearTimeout(timer);
  };
}

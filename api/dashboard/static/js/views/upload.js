// Upload of CSV files by drag and drop: bytes sent, then rows published, then rows refused with reasons.

import { answer, get, headers, request, url } from "../api.js";
import { fill, h, icon } from "../dom.js";
import { bytes, count } from "../format.js";
import { panel } from "../panel.js";
import { link } from "../state.js";

const ASK_MS = 700;
const ENDED = ["done", "failed"];

export function uploadView(main) {
  const input = h("input", { type: "file", id: "upload-file", class: "hidden", accept: ".csv,.csv.gz,text/csv", multiple: true, onchange: () => take(input.files) });
  const drop = h("div", {
    class: "drop",
    ondragover: (event) => { event.preventDefault(); drop.classList.add("over"); },
    ondragleave: () => drop.classList.remove("over"),
    ondrop: (event) => { event.preventDefault(); drop.classList.remove("over"); take(event.dataTransfer.files); },
  }, icon("upload"), h("strong", {}, "Drop CSV files here"),
  h("p", {}, "DCGM exports and similar: a row a sample, or a row a moment with a column a metric. What the columns mean is found out from the header."),
  h("p", {}, h("code", {}, "timestamp,metric_name,uuid,Hostname,value")),
  h("p", {}, "Rows go through the broker like any streamer’s; those without a time get the present. Lines that say nothing are told with their reason."),
  h("button", { type: "button", class: "button primary", onclick: () => input.click() }, "Choose files"),
  h("label", { class: "hidden", for: "upload-file" }, "CSV files"), input);
  const list = h("div", { class: "uploads" });
  const frame = panel({ title: "Upload CSV" });
  frame.body.append(drop);
  const listPanel = panel({ title: "Uploads", rows: () => [["file", "state", "bytes", "rows", "rejected"], ...done.map((u) => [u.name, u.state, u.size, u.rows ?? "", u.rejected ?? ""])] });
  listPanel.body.append(list);
  const done = [];
  fill(main, h("h1", { class: "hidden" }, "Upload"), frame.element, listPanel.element);
  listPanel.empty("Nothing was uploaded from here yet.");
  let closed = false;

  function take(files) {
    for (const file of files) upload(file);
    input.value = "";
  }

  async function upload(file) {
    listPanel.ready();
    const entry = { name: file.name, size: file.size, state: "sending", rows: null, rejected: null };
    done.unshift(entry);
    const bar = h("progress", { max: "1", value: "0", "aria-label": `${file.name}: bytes sent` });
    const badge = h("span", { class: "badge" }, "sending");
    const detail = h("div", { class: "found", role: "status" });
    const row = h("div", { class: "upload" }, h("div", { class: "row" }, h("strong", {}, file.name), h("span", { class: "found" }, bytes(file.size)), badge), bar, detail);
    list.prepend(row);
    const show = (state, kind, text) => {
      entry.state = state;
      badge.className = `badge ${kind}`;
      fill(badge, kind ? icon(kind === "good" ? "check" : "alert") : null, state);
      detail.textContent = text;
    };
    try {
      const accepted = await send(file, (share) => { bar.value = share; detail.textContent = `${Math.round(share * 100)} % of ${bytes(file.size)} sent`; });
      bar.value = 1;
      let status = accepted;
      while (!closed && !ENDED.includes(status.status)) {
        describe(status);
        await new Promise((resolve) => setTimeout(resolve, ASK_MS));
        status = await get(`api/v1/csv/uploads/${encodeURIComponent(accepted.id)}`);
      }
      describe(status);
      const bad = status.status === "failed";
      bar.hidden = true;
      show(bad ? "failed" : "done", bad ? "bad" : "good", [sentence(entry), status.message].filter(Boolean).join(" "));
      if (status.errors?.length) row.append(refused(status.errors));
      if (!bad) row.append(h("a", { href: link("fleet") }, "See the fleet"));
    } catch (error) {
      bar.hidden = true;
      show("failed", "bad", error.missing ? "This API takes no uploads." : error.message);
    }

    function describe(status) {
      entry.rows = status.durable_rows ?? entry.rows;
      entry.rejected = status.rejected_rows ?? entry.rejected;
      show(status.status, "", sentence(entry));
    }
  }

  const sentence = ({ rows, rejected }) => (rows === null ? "" : `${count(rows)} rows are durable at the broker${rejected ? `, ${count(rejected)} were refused` : ""}.`);

  return {
    title: "Upload",
    close() {
      closed = true;
    },
  };
}

/** Lines that gave nothing, with the reason. */
function refused(errors) {
  return h("details", {}, h("summary", {}, `${count(errors.length)} refused lines`), h("ul", {}, errors.map((error) => h("li", {}, `line ${error.line ?? error.index}: ${error.message}`))));
}

/** XMLHttpRequest, because fetch tells nothing of how much was sent. Asks for a key first if one is wanted. */
async function send(file, onProgress) {
  await answer(await request("api/v1/metrics", { method: "HEAD" }).then((r) => new Response("{}", { status: r.status }))).catch(() => {});
  const form = new FormData();
  form.append("file", file);
  const response = await new Promise((resolve, reject) => {
    const ask = new XMLHttpRequest();
    ask.open("POST", url("api/v1/csv/upload"));
    for (const [name, value] of Object.entries(headers())) ask.setRequestHeader(name, value);
    ask.upload.addEventListener("progress", (event) => event.lengthComputable && onProgress(event.loaded / event.total));
    ask.addEventListener("load", () => resolve(new Response(ask.responseText || "{}", { status: ask.status, statusText: ask.statusText })));
    ask.addEventListener("error", () => reject(new Error("The API cannot be reached")));
    ask.send(form);
  });
  return answer(response);
}
